"""Checkpoints, signals, divergence: what a run has reached is not lost."""

import resource
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import sharding, solvers
from jtssm.train.checkpoint import Folder
from jtssm.train.checksums import checksums
from jtssm.train.fingerprint import abstract_state, fingerprint, samples
from jtssm.train.position import Checkpoint, Position
from tests.cases import few_of
from tests.train.killed import METHODS, bits, same
from tests.train.short_runs import KEY, NET, X, Y, adam, complete, fit, sgd, steps_in, stopping

# where reading or writing fails, tensorstore calls an event loop that orbax has closed already
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def child(kind: str, folder: Path, methods: tuple[str, ...]) -> list[list[str]]:
    """What the program of runs that are killed says, line by line, in words."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.train.killed", str(folder), kind, *methods],
        capture_output=True,
        text=True,
        timeout=550,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    return [line.split() for line in run.stdout.splitlines() if line]


@pytest.mark.parametrize(
    "methods", [("gsadmm",), pytest.param(("sgd", *METHODS[2:]), marks=pytest.mark.slow)], ids=str
)
def test_a_run_killed_at_three_points_comes_to_the_same_bits(tmp_path, methods):
    lines = child("points", tmp_path, methods)
    for name in methods:
        told = [line for line in lines if line[1] == name]
        assert [line[2] for line in told if line[0] == "KILLED"] == ["1", "2", "3"]
        assert [line for line in told if line[0] == "SAME"] == [["SAME", name, "True"]]
        # four lives, then the run that nobody killed; the later ones began where a checkpoint was
        steps = [int(line[2]) for line in told if line[0] == "BEGUN"]
        assert len(steps) == 5, lines
        assert steps[0] == steps[4] == 0
        assert 0 <= steps[1] < steps[2] < steps[3]
    # the epochs of workers and resident methods are too short for a checkpoint within one
    within = any(line[0] == "BEGUN" and int(line[4]) > 0 for line in lines)
    assert within or "sgd" not in methods


@pytest.mark.slow
def test_a_run_killed_at_random_moments_comes_to_the_same_bits(tmp_path):
    lines = child("random", tmp_path, METHODS)
    assert sum(line[0] == "KILLED" for line in lines) == 20
    assert [line[2] for line in lines if line[0] == "SAME"] == ["True"] * len(METHODS)


def test_a_complete_run_returns_at_once_and_a_longer_one_goes_on(tmp_path):
    gsadmm = solvers.gsadmm(NET, subnets=2, optimizer=adam(1e-2), batch_size=20)
    two = fit(tmp_path, gsadmm, 2)
    calls = []
    assert same(two, complete(tmp_path, gsadmm, 2, callbacks=[calls.append]))
    assert calls == []
    # the minibatches in flight went on: the bits are those of four epochs
    four, whole = fit(tmp_path, gsadmm, 4), fit(None, gsadmm, 4)
    assert bits(four.state) == bits(whole.state)
    assert [line["epoch"] for line in four.history] == [1, 2, 3, 4]
    with pytest.raises(
        ValueError, match="epochs: expected at least 4, which the checkpoint has begun; got 3"
    ):
        fit(tmp_path, gsadmm, 3)


def test_a_run_that_a_callback_stopped_is_complete(tmp_path):
    stopped = fit(tmp_path, epochs=9, callbacks=[stopping(2)])
    assert same(stopped, complete(tmp_path, epochs=9))
    assert [line["epoch"] for line in fit(tmp_path, epochs=10).history][-1] == 10


PLACES = {
    "sgd": ((1, 4, 2), (1, 2, 2)),
    "gsadmm": ((4, 1, 2), (2, 2, 2)),
    "stored": ((4, 1, 2), (2, 2, 2)),
    "uneven": ((3, 1, 2), (2, 1, 1)),  # 1, 2 and 2 subnetworks; 2 and 3
    "pdadmm": ((4, 1, 2), (2, 1, 2)),
    "ist": ((4, 1, 2), (2, 2, 2)),
}
DEEP = jtssm.mlp([4, 8, 8, 8, 8, 4])


def deep(name):
    batches = {"optimizer": adam(1e-2), "batch_size": 20}
    rounds = {"optimizer": adam(1e-2), "batch_size": 8, "local_steps": 2}
    return {
        "sgd": lambda: sgd(net=jtssm.mlp([4, 8, 8, 4], dropout=0.1)),
        "gsadmm": lambda: solvers.gsadmm(DEEP, subnets=4, **batches),
        "stored": lambda: solvers.gsadmm(DEEP, subnets=4, schedule="stored", **batches),
        "uneven": lambda: solvers.gsadmm(DEEP, subnets=5, **batches),
        "pdadmm": lambda: solvers.pdadmm(DEEP),
        "ist": lambda: solvers.ist(DEEP, subnets=4, **rounds),
    }[name]()


def placed(how, sizes):
    return how if sizes is None else sharding.place(how, sharding.make_mesh(*sizes))


def noisy(state):
    """A state of other numbers, none of them 0 or 1."""
    rng = np.random.default_rng(1)
    draw = lambda a: a + rng.normal(size=a.shape) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return jax.tree.map(draw, jax.tree.map(lambda a: a, sharding.gathered(state)))


def test_partial_gradients_in_numpy_are_gathered_as_those_on_their_mesh():
    how, sizes = deep("gsadmm"), (1, 2, 2)
    there = placed(how, sizes).spread(noisy(how.init(KEY, X, Y)))
    stored = jax.tree.map(np.asarray, there.summed)
    wanted, got = sharding.gathered(there.summed), sharding.gathered(stored, sizes[1])
    shapes = lambda tree: [a.shape for a in jax.tree.leaves(tree)]
    assert shapes(got) == shapes(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a) for a in jax.tree.leaves(got))


RARE = ("gsadmm", "pdadmm", "stored")  # of their kinds there are others


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in RARE else []) for n in PLACES]
)
def test_a_state_is_the_same_bits_on_another_mesh(name, tmp_path):
    how, (first, second) = deep(name), PLACES[name]
    state = noisy(how.init(KEY, X, Y))
    shapes = abstract_state(how, KEY, X, Y)
    run = fingerprint(how, shapes, samples((X, Y)), len(X), KEY, None)
    at = Position(1, 1, 0, 6, 0, {})
    # from each place to the next: a mesh, another one, one device and a mesh again
    places = [placed(how, sizes) for sizes in (first, second, None, first)]
    for i, (one, other) in enumerate(pairwise(places)):
        folder = Folder(tmp_path / str(i), 3, run)
        folder.save(Checkpoint(one.spread(state), at, None, [], (), 0, 0), one)
        folder.wait()
        found = folder.load(other, shapes, None)
        folder.close()
        assert found.position == at
        assert bits(found.state) == bits(state)
        where = [{d.id for d in a.sharding.device_set} for a in jax.tree.leaves(found.state)]
        devices = 1 if other.mesh is None else other.mesh.size
        assert all(len(ids) == devices for ids in where)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_another_kind_come_back_on_another_mesh(impl, tmp_path):
    how, key = deep("ist"), jax.random.key(5, impl=impl)
    state = how.init(key, X, Y)
    run = fingerprint(how, shapes := abstract_state(how, key, X, Y), "", len(X), key, None)
    one, other = (placed(how, sizes) for sizes in PLACES["ist"])
    folder = Folder(tmp_path, 3, run)
    folder.save(Checkpoint(one.spread(state), Position(1, 1, 0, 6, 0, {}), None, [], (), 0, 0), one)
    folder.wait()
    for method in (one, other, how):
        found = folder.load(method, shapes, None).state
        assert found.key.dtype == key.dtype
        assert bits(found) == bits(state)
    folder.close()


def steps_agree(name, folder, ways):
    """A run goes on from one mesh on another: 5 steps more are those of the first mesh to 1e-5."""
    more = 6 if name == "ist" else 5 if deep(name).resident else 1
    for one, other in ways:
        to = folder / str(one)
        fit(to, placed(deep(name), one), more)
        moved = fit(to, placed(deep(name), other), 2 * more)
        whole = fit(None, placed(deep(name), one), 2 * more)
        assert moved.history[-1]["step"] - moved.history[more - 1]["step"] >= 5
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved.params, whole.params
        )


def test_on_another_mesh_further_steps_agree(tmp_path):
    steps_agree("sgd", tmp_path, [PLACES["sgd"]])


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_on_another_mesh_further_steps_of_every_method_agree(name, tmp_path):
    first, second = PLACES[name]
    steps_agree(name, tmp_path, ((first, second), (second, None), (None, second)))


def spoil(step, how):
    """Do something to every file of numbers."""
    files = [path for path in (step / "arrays").rglob("d/*") if path.is_file()]
    assert len(files) > 1
    for path in files:
        path.write_bytes(how(bytearray(path.read_bytes())))


def truncate(step):
    spoil(step, lambda text: text[:-9])


def flip(step):
    def flipped(text):
        text[len(text) // 2] ^= 1
        return text

    spoil(step, flipped)


def remove(step):
    shutil.rmtree(step / "arrays")


def change(step):
    """A number of the document, its checksum left as it was."""
    path = step / "run" / "metadata"
    path.write_text(path.read_text().replace('\\"odd\\": 0', '\\"odd\\": 1'))


def garble(step):
    (step / "run" / "metadata").write_text("{")


@pytest.mark.parametrize(
    "damage", few_of([truncate, flip, remove, change, garble], [truncate, flip, change])
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_offered(damage, kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "kept")
    damage(folder / "steps" / "12")
    with pytest.raises(
        ValueError, match=r"checkpoint: step 12 in .*kept is damaged .*with resume=6"
    ):
        fit(folder, epochs=4)
    assert same(fit(folder, epochs=4, resume=6), fit(epochs=4))


def test_where_all_are_damaged_there_is_none_to_offer_and_no_other_step(kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "kept")
    garble(folder / "steps" / "6")
    with pytest.raises(ValueError, match=r"step 6 in .* is damaged .* there is none before it"):
        fit(folder, epochs=4, resume=6)
    with pytest.raises(
        ValueError, match=r"resume: expected one of \[6, 12\], the steps in .*; got 7"
    ):
        fit(folder, epochs=4, resume=7)


def test_a_checksum_sees_every_bit_and_every_place_and_no_mesh():
    a = np.random.default_rng(0).normal(size=(8, 6))
    one = checksums([a])
    swapped, flipped = a.copy(), a.copy()
    swapped[[2, 5]] = a[[5, 2]]
    flipped.view(np.uint64)[3, 3] ^= 1 << 40
    assert checksums([swapped]) != one
    assert checksums([flipped]) != one
    for x in (a, a.astype(np.float32), a > 0, a.astype(np.int8), a[0, 0:1].reshape(())):
        spec = jax.P("subnet", "pc") if np.ndim(x) == 2 else jax.P()
        mesh = sharding.make_mesh(2, 1, 2)
        there = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
        assert checksums([np.asarray(x)]) == checksums([jnp.asarray(x)]) == checksums([there])


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        (
            {"how": solvers.gsadmm(NET, subnets=1, optimizer=optax.adam(0.1), batch_size=20)},
            "method: sgd there, gsadmm here",
        ),
        (
            {"how": sgd(net=jtssm.mlp([4, 8, 6, 4]))},
            r"state: weights.*float64\[8, 8\] there, float64\[8, 6\] here",
        ),
        (
            {"how": sgd(net=jtssm.mlp([4, 8, 8, 4], activation=jnp.tanh))},
            "layers: .*relu.* there, .*tanh.* here",
        ),
        ({"how": sgd(batch_size=24)}, r"batch: \[20\] there, \[24\] here"),
        ({"how": sgd(precision="highest")}, "arguments: precision: None there, highest here"),
        ({"how": sgd(optimizer=optax.sgd(0.1))}, "state: weights.*opt_state.* there, None here"),
        ({"key": jax.random.key(7)}, "key: .* there, .* here"),
        ({"params": NET.init(KEY, jnp.float64)}, "params: None there, .* here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_what_differs(changed, differs, kept):
    with pytest.raises(
        ValueError,
        match=f"checkpoint: expected an empty folder or one of the same run; .*{differs}",
    ):
        fit(kept, **changed)
    assert steps_in(kept) == [6, 12]


def test_other_samples_are_another_run(kept):
    with pytest.raises(
        ValueError, match=r"train: float64\[120, 4\] of checksum \d+.* there, .* here"
    ):
        jtssm.fit(sgd(), (X + 1e-9, Y), epochs=3, key=KEY, checkpoint=kept)


def test_what_may_change_does(kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "kept")
    on = fit(
        folder, epochs=5, validation=(X, Y), evaluate_every=2, mesh=sharding.make_mesh(1, 1, 2)
    )
    assert [line["epoch"] for line in on.history] == [1, 2, 4, 5]
    assert "validation_loss" in on.history[-1]
    whole = fit(epochs=5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), on.params, whole.params)


def test_every_counts_steps_and_keep_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr("jtssm.train.batches.CHUNK", 2)  # ends of chunks: 2, 4, 6, ...
    fit(tmp_path, every=3, keep=2)
    assert steps_in(tmp_path) == [16, 18]
    for options, message in (
        ({"every": 3}, "every: expected None without a checkpoint; got 3"),
        ({"resume": 3}, "resume: expected None without a checkpoint; got 3"),
        ({"checkpoint": tmp_path, "every": 0}, "every: expected an integer of at least 1; got 0"),
        ({"checkpoint": tmp_path, "keep": 0}, "keep: expected an integer of at least 1; got 0"),
        ({"on_divergence": "pray"}, "on_divergence: expected one of"),
        ({"halvings": 0}, "halvings: expected an integer of at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(**options)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    seen = []
    with pytest.raises(
        OSError, match=r"checkpoint: expected a folder that can be written; got .*file/run"
    ):
        fit(tmp_path / "file" / "run", callbacks=[seen.append])
    for bucket in ("gs://bucket/run", Path("gs://bucket/run")):
        with pytest.raises(ValueError, match=r"folder of this machine.*got 'gs:/+bucket/run'"):
            fit(bucket, callbacks=[seen.append])
    assert seen == []


def test_a_full_disk_stops_the_run_with_its_state_in_memory(tmp_path, capfd):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limit[1]))

    try:
        with pytest.raises(OSError, match=r"could not be written to .*result\.state") as raised:
            fit(tmp_path, epochs=6, callbacks=[stopping(2, fill)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert capfd.readouterr().err == ""  # no tracebacks of somebody else's
    result = raised.value.result
    reached = len(result.history)
    assert 2 <= reached <= 4
    assert bits(result.state) == bits(fit(epochs=reached).state)
    assert same(fit(tmp_path, epochs=6), fit(epochs=6))  # from the last that was whole


def test_without_orbax_a_checkpoint_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    monkeypatch.setitem(sys.modules, "orbax", None)
    with pytest.raises(ImportError, match=r"pip install 'jtssm\[checkpoint\]'"):
        fit(tmp_path)
