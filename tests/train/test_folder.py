"""A folder of checkpoints: one run at a time, small however long that is, nobody else's, read without it."""

import json
import os
import subprocess
import sys
import threading
import time
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtssm
from jtssm import sharding, solvers
from jtssm.protocol.info import Info
from jtssm.train import document as documents
from jtssm.train import lock
from jtssm.train.checkpoint import Folder
from jtssm.train.checksums import checksums
from jtssm.train.fingerprint import abstract_state
from jtssm.train.journal import Journal
from jtssm.train.lock import Lock
from jtssm.train.position import Checkpoint, Position
from tests.train.killed import bits
from tests.train.short_runs import KEY, NET, X, Y, adam, sgd

# where reading or writing fails, tensorstore calls an event loop that orbax has closed already
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def drawn(how, y=Y):
    """A state of a method with numbers of all kinds, nothing compiled."""
    rng = np.random.default_rng(1)

    def draw(a):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.key(3)
        if jnp.issubdtype(a.dtype, jnp.floating):
            return rng.normal(size=a.shape).astype(a.dtype)
        return np.full(a.shape, 7, a.dtype)

    return jax.tree.map(draw, abstract_state(how, KEY, X, y))


def saved(folder, how, state, history=(), **position):
    """The checkpoint of a state, written."""
    at = Position(1, 1, 0, 6, len(history), {})._replace(**position)
    folder.save(Checkpoint(state, at, None, list(history), (), 0, 0), how)
    folder.wait()


DEEP = jtssm.mlp([4, 8, 8, 7, 8, 4], normalisation="running")
ROUNDS = {"optimizer": adam(0.1), "batch_size": 8, "local_steps": 2}
BATCHES = {"optimizer": adam(0.1), "batch_size": 20}
# methods, and the meshes that they were placed on
WEIGHTS = {
    "sgd": (lambda: solvers.sgd(DEEP, **BATCHES), (1, 2, 2)),
    "gsadmm": (lambda: solvers.gsadmm(NET, subnets=2, **BATCHES), (2, 2, 2)),
    "pdadmm": (lambda: solvers.pdadmm(jtssm.mlp([4, 8, 8, 4])), (2, 1, 2)),
    "ist": (
        lambda: solvers.ist(DEEP, subnets=2, carry="moments", **ROUNDS),
        (2, 1, 2),
    ),  # 7 neurons of two homes
    "ensemble": (lambda: solvers.ensemble(NET, members=2, **ROUNDS), (2, 1, 2)),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("placed", [False, True])
def test_weights_are_read_without_the_method_and_its_mesh(name, placed, tmp_path):
    make, sizes = WEIGHTS[name]
    how = make()
    state = drawn(how)
    there = sharding.place(how, sharding.make_mesh(*sizes)) if placed else how
    folder = Folder(tmp_path, 3, {})
    saved(folder, there, there.spread(state))
    found = jtssm.load_params(tmp_path)  # beside the run that holds the folder
    folder.close()
    assert bits(found) == bits(how.params(state))
    assert jax.tree.structure(found) == jax.tree.structure(list(how.params(state)))
    if name == "sgd":
        names = {p.name for p in (tmp_path / "steps").iterdir()}
        assert names == {"6"}
        document = json.loads((tmp_path / "steps" / "6" / "run" / "metadata").read_text())["text"]
        assert "weights.0.params.1.W" in json.loads(document)["checksums"]
        with pytest.raises(
            ValueError, match=r"step: expected one of \[6\], the steps in .*; got 7"
        ):
            jtssm.load_params(tmp_path, step=7)
        with pytest.raises(ValueError, match="folder: expected one with checkpoints; got"):
            jtssm.load_params(tmp_path / "other")


@pytest.mark.parametrize("subnet", [2, 3])
def test_slots_that_were_filled_otherwise_are_refused(subnet, tmp_path, monkeypatch):
    """Of the format before empty slots were the last ones: three layers leave one on two devices."""
    how = solvers.pdadmm(jtssm.mlp([4, 8, 8, 4]))
    placed = sharding.place(how, sharding.make_mesh(subnet))
    state, shapes = drawn(how), abstract_state(how, KEY, X, Y)
    folder = Folder(tmp_path, 3, {})
    with monkeypatch.context() as before:
        before.setattr(documents, "FORMAT", documents.EMPTY_LAST)
        saved(folder, placed, placed.spread(state))
    if subnet == 3:
        assert bits(folder.load(how, shapes, None).state) == bits(state)
    else:
        with pytest.raises(
            ValueError, match=r"format 4, whose empty slots .* 3 pieces on subnet = 2"
        ):
            folder.load(how, shapes, None)
    folder.close()


def test_parameters_that_a_method_computes_are_not_read_without_it(tmp_path):
    how = sgd()
    twice = how._replace(params=lambda state: jax.tree.map(lambda a: 2 * a, how.params(state)))
    folder = Folder(tmp_path, 3, {"method": "twice"})
    saved(folder, twice, drawn(how))
    folder.close()
    with pytest.raises(ValueError, match=r"parameters are its state's arrays; got .*of twice"):
        jtssm.load_params(tmp_path)


def test_two_bits_that_change_are_seen_wherever_they_are():
    rng = np.random.default_rng(0)
    for dtype in (np.float64, np.float32, np.float16, np.int8, np.uint16):
        a = (8 * rng.normal(size=(3, 2))).astype(dtype)
        flat, top = a.reshape(-1), 8 * a.dtype.itemsize - 1
        seen = {checksums([a])[0]}
        word = np.dtype(f"u{a.dtype.itemsize}")
        # every pair of signs, and every pair of bits of one number
        flips = [((i, top), (j, top)) for i, j in combinations(range(a.size), 2)]
        flips += [((1, i), (1, j)) for i, j in combinations(range(top + 1), 2)]
        for pair in flips:
            b = flat.copy()
            for place, bit in pair:
                b.view(word)[place] ^= word.type(1 << bit)
            seen.add(checksums([b.reshape(a.shape)])[0])
        assert len(seen) == len(flips) + 1
    zeros = np.zeros((2, 3), np.float32)
    assert checksums([zeros]) != checksums([-zeros]) != checksums([zeros.T])


def line(i):
    return {"epoch": i, "loss": 1 / (i + 1), "accuracy": float("nan")}


def infos(*numbers):
    a = np.asarray(numbers, np.float32)
    return Info(a, a / 3, a * 0, {"coupling": a.astype(np.float64) / 7})


def test_a_journal_goes_back_branches_and_outlives_half_a_record(tmp_path):
    path = tmp_path / "journal.jsonl"
    history, seen = [line(i) for i in range(5)], [infos(1, 2), infos(3)]
    journal = Journal(path)
    five = journal.write(history, seen)
    assert journal.write(history, seen) == five
    size = path.stat().st_size
    del history[3:]  # it diverged, and went back
    history.append(line(30))
    four = journal.write(history, ())
    with path.open("ab") as file:
        file.write(b'{"before": 12, "crc')  # killed there
    other = Journal(path)
    found, back = other.read(five)
    assert repr(found) == repr([line(i) for i in range(5)])
    assert bits(list(back)) == bits(seen)
    assert [a.shown["coupling"].dtype for a in back] == [np.float64] * 2
    six = other.write([*found, line(5)], back)  # and on from there
    ends = {"five": five, "four": four, "six": six}
    lengths = {name: len(Journal(path).read(end)[0]) for name, end in ends.items()}
    assert lengths == {"five": 5, "four": 4, "six": 6}
    assert repr(Journal(path).read(four)[0][-1]) == repr(line(30))
    # one line each was added, whatever stood before
    assert path.stat().st_size - size < 2 * size / 5 + 40
    text = bytearray(path.read_bytes())
    text[size // 3] ^= 1
    path.write_bytes(text)
    with pytest.raises(
        ValueError, match="its history is lost: expected 5 records of it in journal"
    ):
        Journal(path).read(five)


def test_a_checkpoint_of_a_long_run_is_as_small_as_that_of_a_short_one(tmp_path):
    how = sgd()
    state, sizes, history = drawn(how), [], []
    folder = Folder(tmp_path, 3, {})
    for i in range(3):
        chunks = tuple(infos(*range(50)) for _ in range(10 ** (i + 1)))
        saved(folder, how, state, history, steps=10**i, infos=chunks, chunks=len(chunks))
        steps = sorted((tmp_path / "steps").iterdir(), key=lambda path: int(path.name))
        sizes.append((steps[-1] / "run" / "metadata").stat().st_size)
        history += [line(j) for j in range(5000)]
    assert max(sizes) < min(sizes) + 100
    shapes = abstract_state(how, KEY, X, Y)
    found = folder.load(how, shapes, None)
    assert (len(found.history), len(found.position.infos)) == (10_000, 1000)
    journal = tmp_path / "journal.jsonl"
    text = journal.read_bytes()
    journal.unlink()
    with pytest.raises(ValueError, match=r"step 100 in .* is damaged .*its history is lost"):
        folder.load(how, shapes, None)
    journal.write_bytes(text[:-2000])
    with pytest.raises(ValueError, match=r"its history is lost: expected 1000\d? records"):
        folder.load(how, shapes, None)
    folder.close()


def test_a_folder_is_one_runs_at_a_time(tmp_path):
    folder = Folder(tmp_path, 3, {})
    with pytest.raises(
        ValueError,
        match=rf"expected a folder that no other run uses; got .*in use by process {os.getpid()} on",
    ):
        Folder(tmp_path, 3, {})
    folder.close()
    folder = Folder(tmp_path, 3, {})
    (tmp_path / "lock").write_text("{}")  # another run's, which saw no sign of life
    with pytest.raises(OSError, match="lock to be this run's; got another's"):
        saved(folder, sgd(), drawn(sgd()))
    folder.close()
    assert (tmp_path / "lock").exists()


def test_a_dead_runs_lock_is_taken_at_once_and_a_living_ones_is_not(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from jtssm.train.lock import Lock\n"
        "lock = Lock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(600)"
    )
    path = tmp_path / "lock"
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert run.stdout.readline() == b"locked\n"
    with pytest.raises(ValueError, match=f"in use by process {run.pid} on"):
        Lock(path)
    run.kill()  # it stays a zombie until it is waited for: dead all the same
    begun = time.monotonic()
    while time.monotonic() - begun < 20:
        try:
            Lock(path).release()
            break
        except ValueError:
            time.sleep(0.05)
    assert not path.exists()
    assert time.monotonic() - begun < 15
    run.wait()


@pytest.mark.parametrize("lives", [False, True])
def test_a_run_on_another_machine_lives_while_it_gives_signs_of_life(lives, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LOST", 0.6)
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "process": os.getpid(), "began": "now"}))
    ended = threading.Event()

    def beat():
        while lives and not ended.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    if lives:
        with pytest.raises(ValueError, match=f"by process {os.getpid()} on elsewhere since now"):
            Lock(path)
    else:
        mine = Lock(path)
        mine.check()
        mine.release()
        assert list(tmp_path.iterdir()) == []
    ended.set()
    thread.join()


def test_what_lay_in_the_folder_stays_as_it_is(tmp_path):
    for name in ("7", "30"):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "mine.txt").write_text("mine")
    folder = Folder(tmp_path, 1, {})
    how = sgd()
    for _ in range(3):
        saved(folder, how, drawn(how))
    assert folder.steps() == [8]
    folder.close()
    assert all((tmp_path / name / "mine.txt").read_text() == "mine" for name in ("7", "30"))
    assert not (tmp_path / "lock").exists()


def test_folders_that_are_no_ours_are_refused_before_training(tmp_path):
    (tmp_path / "a" / "steps" / "3").mkdir(parents=True)
    (tmp_path / "b" / "6" / "run").mkdir(parents=True)
    (tmp_path / "b" / "6" / "run" / "metadata").write_text("{}")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "jtssm.json").write_text('{"format": 99}')
    for path, message in (
        (
            "gs://bucket/run",
            "expected a folder of this machine, .*; got 'gs://bucket/run', an addr",
        ),
        (tmp_path / "a", "expected a folder without 'steps', .* whose 'steps' jtssm has not made"),
        (tmp_path / "b", "or checkpoints of format 5; got .* with those of format 3"),
        (tmp_path / "c", "it has format 99, this jtssm reads 4 and 5"),
    ):
        with pytest.raises(ValueError, match=f"checkpoint: .*{message}"):
            Folder(path, 3, {})
    assert not any("lock" in name for _, _, names in os.walk(tmp_path) for name in names)
