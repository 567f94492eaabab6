"""Where no mesh goes the reasons are told, each once, the nearest mesh's first, with what is missing."""

import re
import time
from itertools import product

import jax
import numpy as np
import optax
import pytest

import jtssm
from jtssm import losses, nn, solvers
from jtssm.cli import main
from jtssm.sharding.cost import demand, memory, planner, refusals
from jtssm.sharding.cost.machine_table import MACHINES
from jtssm.sharding.layers.choose import misfit
from jtssm.sharding.layers.forms import FORMS
from jtssm.train import placing

H100 = MACHINES["h100-nvlink"]
TOKENS = nn.layers(
    [
        (lambda key, x: jax.random.normal(key, (50, 8)), lambda table, x: table[x]),
        (lambda key, x: jax.random.normal(key, (8, 50)), lambda W, x: jax.numpy.dot(x, W)),
    ],
    np.zeros((1, 6), np.int32),
)
NET = jtssm.mlp([12, 16, 4])
ADAM = optax.adam(1e-3)
DEVICES = 8
SHAPES = [sizes for sizes in planner.factorisations(DEVICES) if sizes[0] == 1]


def refused(call):
    """The text of the error, and the processor's seconds till it came."""
    start = time.process_time()
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    return str(caught.value), time.process_time() - start


def least_bytes(method, sizes):
    """Of a whole step, by brute force over all forms, and the part that is largest."""
    net, params = method.network, method.network.parameter_shapes()
    layers = range(len(net.layers)) if sizes[1] > 1 else ()
    have = [[f for f in FORMS if not misfit(net, i, params[i], f, sizes[1])] for i in layers]
    held = []
    for forms in product(*have) if have else [("batch",) * len(net.layers)]:
        step = demand.step_demand(method, sizes, forms, None)
        held.append(memory.step_memory(method, sizes, step, forms=list(forms)))
    return min(held, key=lambda each: each.total)


@pytest.mark.parametrize(
    ("net", "options", "limit"),
    [(TOKENS, {}, 900), (NET, {"loss": "squared_error"}, 300)],
    ids=["tokens", "squared error"],
)
def test_the_nearest_mesh_says_how_many_bytes_are_missing(net, options, limit):
    """By brute force over meshes and forms; the answer comes within seconds."""
    method = solvers.sgd(net, optimizer=ADAM, batch_size=16, **options)
    needs = {sizes: least_bytes(method, sizes) for sizes in SHAPES}
    nearest = min(needs, key=lambda sizes: needs[sizes].total)
    needed, parts = needs[nearest].total, needs[nearest]._asdict()
    largest = max(parts.keys() - {"outputs"}, key=lambda name: parts[name])
    ask = {"optimizer": ADAM, "memory_limit": limit, **options}
    text, seconds = refused(lambda: jtssm.plan(net, DEVICES, 16, H100, **ask))
    assert (
        f"none goes: {nearest}: memory_limit: expected at least {needed} bytes a device, as subnet, pr, "
        f"pc = {nearest} may take, {parts[largest]} of them {largest}; got {limit}, {needed - limit} missing"
    ) in text
    assert text.count("memory_limit: ") == text.count("sgd trains the network as one piece") == 1
    assert text.count("nor do") == 2
    assert seconds < 5
    # one byte less than is missing is refused, what is needed is enough
    assert (
        jtssm.plan(net, DEVICES, 16, H100, **ask | {"memory_limit": needed}).best.shape == nearest
    )
    with pytest.raises(ValueError, match=r", 1 missing"):
        jtssm.plan(net, DEVICES, 16, H100, **ask | {"memory_limit": needed - 1})


@pytest.mark.slow
def test_pieces_are_refused_with_the_bytes_of_the_nearest_mesh():
    ask = {"method": "gsadmm", "optimizer": ADAM, "memory_limit": 50}
    text, seconds = refused(lambda: jtssm.plan(NET, 2, 16, H100, **ask))
    needs = {
        sizes: least_bytes(
            solvers.gsadmm(NET, subnets=sizes[0], optimizer=ADAM, batch_size=16), sizes
        ).total
        for sizes in planner.factorisations(2)
    }
    nearest = min(needs, key=lambda sizes: needs[sizes])
    needed = needs[nearest]
    assert f"none goes: {nearest}: memory_limit: expected at least {needed} bytes" in text
    assert f"got 50, {needed - 50} missing (nor do " in text
    assert seconds < 5


def test_meshes_that_go_stand_beside_those_that_do_not_the_nearest_first():
    free = planner.plan(NET, DEVICES, 16, H100, method=lambda *given: made(*given), runners_up=9)
    held = sorted(p.memory.total for p in (free.best, *free.runners_up))
    limit = held[0]
    found = jtssm.plan(NET, DEVICES, 16, H100, optimizer=ADAM, memory_limit=limit)
    whys = list(found.refused.values())
    missing = [int(re.search(r"(\d+) missing", why)[1]) for why in whys if "missing" in why]
    assert missing == sorted(missing)
    assert len(missing) == len(SHAPES) - 1 - len(found.runners_up) > 0
    assert all("missing" in why for why in whys[: len(missing)])
    assert all(why.startswith("subnet: ") for why in whys[len(missing) :])


def made(net, n, batch):
    if n > 1:
        raise ValueError(f"subnet: expected 1; got {n}")
    return solvers.sgd(net, optimizer=ADAM, batch_size=batch)


def test_reasons_are_told_once_whatever_their_numbers():
    found = refusals.distinct(
        {
            (1, 2, 4): "memory_limit: expected at least 7 bytes, as layers 0 to 3 hold; got 3",
            (1, 1, 8): "memory_limit: expected at least 9 bytes, 8 of them samples; got 3",
            **{(n, 1, 1): f"subnet: expected 1; got {n}" for n in range(2, 8)},
            (9, 1, 1): "pc: expected 1; got 9",
        }
    )
    assert found == [
        "(1, 2, 4): memory_limit: expected at least 7 bytes, as layers 0 to 3 hold; got 3"
        " (nor do (1, 1, 8))",
        "(2, 1, 1): subnet: expected 1; got 2 (nor do (3, 1, 1), (4, 1, 1), (5, 1, 1) and 2 more)",
        "(9, 1, 1): pc: expected 1; got 9",
    ]


def test_a_sweep_tells_the_same_bytes_shape_by_shape():
    limit = 300
    records = jtssm.sweep(
        NET, DEVICES, 16, H100, memory_limit=limit, optimizer=ADAM, progress=False
    )
    method = solvers.sgd(NET, optimizer=ADAM, batch_size=16)
    for record in records[: len(SHAPES)]:
        sizes = (record["subnet"], record["pr"], record["pc"])
        assert record["memory_missing"] == least_bytes(method, sizes).total - limit
        assert record["error"].startswith("ValueError: memory_limit: expected at least ")
    assert not any("memory_missing" in record for record in records[len(SHAPES) :])
    assert not any(record["best"] for record in records)


def test_the_command_line_tells_every_reason_once(tmp_path, capsys):
    words = ["--widths", "12,16,4", "--devices", "8", "--batch", "16", "--machine", "h100-nvlink"]
    out = ["--memory-limit", "300", "--out", str(tmp_path / "sweep")]
    assert main(["sweep", "sgd", *words, *out]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("does not go: ") == 2
    assert shown.index("memory_limit") < shown.index("sgd trains the network as one piece")
    assert main(["plan", "sgd", *words]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "6 other meshes do not go: does not go: 2 x 1 x 4: subnet: expected 1" in shown
    assert "(nor do 2 x 2 x 2, 2 x 4 x 1, 4 x 1 x 2 and 2 more)" in shown


X = np.random.default_rng(0).normal(size=(48, 12)).astype(np.float32)


def test_fit_says_why_auto_finds_no_mesh():
    method = solvers.sgd(NET, optimizer=ADAM, batch_size=3, loss="squared_error")
    run = lambda: jtssm.fit(method, (X, X[:, :4]), epochs=1, key=jax.random.key(0), mesh="auto")
    text, seconds = refused(run)
    assert text.startswith(
        "mesh: expected a jax.sharding.Mesh, or 'auto' where some mesh of all 8 devices goes; got 'auto', "
        "and none goes: (1, 1, 8): pc: expected one of [1, 3], which divide 3 samples of a step; got 8"
    )
    assert "(1, 8, 1): pr: expected a size that divides the 3 samples" in text
    assert seconds < 5


def test_a_loss_of_ones_own_is_planned_with_what_it_takes():
    """Labels if it takes them, else targets like outputs: (1, 2, 4) of 16 samples holds these bytes."""
    squares = lambda outputs, y: ((outputs - y) ** 2).sum(axis=-1)
    own = losses.cross_entropy().value
    for loss, numbers in ((squares, 4), (lambda outputs, y: own(outputs, y), 1)):
        method = solvers.sgd(NET, optimizer=ADAM, batch_size=16, loss=loss)
        assert method.program.samples_like((16,))[1].shape == ((16, 4) if numbers > 1 else (16,))
        found = planner.propose(method, (1, 1, 8), H100)
        assert found.memory.samples == 4 * 2 * (12 + numbers)
    method = solvers.sgd(NET, optimizer=ADAM, batch_size=16, loss=squares)
    assert placing.on_mesh(method, "auto", "auto", H100, 48).mesh.size == jax.device_count()


def test_a_state_that_this_host_cannot_hold_is_planned_for_machines_that_can():
    """10^12 weights: their bytes are those of the machine asked for, not of this one."""
    net = jtssm.mlp([10**6, 10**6, 8])
    for method in ("sgd", "gsadmm", "local_sgd"):
        text, _ = refused(lambda m=method: jtssm.plan(net, 2, 64, H100, method=m, optimizer=ADAM))
        assert "whose state fits" not in text
        assert int(re.search(r"at least (\d+) bytes", text)[1]) > 4 * 10**12
