"""Boundaries whose f and v cross as integers: equal to a written twin, on a mesh, to the byte."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import losses, sharding, solvers
from jtssm.sharding.cost.bytes_moved import step_bytes
from jtssm.sharding.cost.seconds import step_seconds
from jtssm.sharding.count import count_bytes, hlo
from jtssm.solvers import quantise
from tests.solvers.test_trees import BATCH as TREES
from tests.solvers.test_trees import network
from tests.solvers.tssm import twins
from tests.solvers.tssm.test_streaming import BATCH, MOMENTUM, assert_close, batches, trained

NET = jtssm.mlp([5] * 6)  # of few shapes, each of which a twin compiles
VALUES = np.linspace(-0.5, 3, 40)
WAYS = {"alpha": 1.7, "eta": 0.21}
ROUNDED = {  # f, v
    8: (twins.spaced(8), twins.spaced(8)),
    16: (twins.spaced(16), twins.spaced(16)),
    "values": (twins.nearest(VALUES), twins.spaced(8)),
}


def rounding(build, n, sweeps, grid, **more):
    """A method with rounded boundaries, and its rho."""
    rho = {"rho": 0.6} if build is solvers.gsadmm else {}
    given = {"subnets": n, "optimizer": MOMENTUM, "batch_size": BATCH, "microbatches": 1}
    given |= WAYS | rho | more
    schedule = solvers.Streaming(sweeps, delay_power=0)
    return build(NET, schedule=schedule, grid=VALUES if grid == "values" else grid, **given)


@pytest.mark.parametrize(
    ("build", "n", "sweeps", "grid", "shape"),
    [
        (solvers.gsadmm, 2, 2, 8, (2, 1, 2)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (solvers.gsadmm, 3, 2, 8, (3, 1, 2)),
                (solvers.gsadmm, 4, 1, 16, (2, 1, 2)),
                (solvers.gsadmm, 2, 3, "values", (2, 2, 1)),
                (solvers.gsam, 2, 1, 8, (2, 2, 1)),
                (solvers.gsam, 3, 2, "values", (3, 1, 1)),
            )
        ),
    ],
    ids=lambda a: getattr(a, "__name__", None),
)
def test_rounded_boundaries_equal_the_twin_and_send_their_integers(build, n, sweeps, grid, shape):
    """The same values are rounded on a mesh; formula, trace and compiled program agree on the bytes."""
    params = NET.init(jax.random.key(3), jnp.float64)
    method, given = rounding(build, n, sweeps, grid), batches(2 * n)
    state, infos = trained(method, given, params)
    assert_close(method.params(state), twin(method, params, given, sweeps, *ROUNDED[grid]))

    mesh = sharding.make_mesh(*shape)
    placed = sharding.place(method, mesh)
    other, seen = trained(placed, given, params)
    assert_close(placed.params(other), method.params(state), atol=1e-10)
    assert_close(seen, infos, atol=1e-10)
    integers = {a.dtype.name for a in jax.tree.leaves(other.forward)}
    assert ("uint16" if grid == 16 else "uint8") in integers
    assert ("float64" in integers) == (grid != "values")

    program = jax.jit(placed.step).lower(other, *given[0]).compile()
    counted = count_bytes(placed.step, other, *given[0])
    predicted = step_bytes(method, mesh, word=8)
    assert counted == predicted
    assert hlo.moved(program.as_text(), mesh) == predicted


def twin(method, params, given, sweeps, *ways):
    """The weights that the written twin ends with."""
    starts = method.program.stages.starts
    pieces = twins.Pieces(NET, params, starts, MOMENTUM, losses.cross_entropy())
    rho = 0.6 if method.name == "gsadmm" else None
    return twins.streaming(pieces, given, sweeps, rho, *WAYS.values(), *ways)


def test_a_message_is_within_half_a_step_and_hides_nothing():
    """Of arrays of any rank; a sample of one value is exact, what is no number stays so."""
    a = np.random.default_rng(0).normal(size=(4, 3, 5))
    a[1] = 2.5
    a[2, 0, 0] = np.nan
    for bits in (8, 16):
        grid = quantise.grid_of(bits)
        codes, (low, step) = message = grid.encode(jnp.asarray(a))
        assert codes.dtype == f"uint{bits}"
        assert low.shape == step.shape == (4, 1, 1)
        back = np.asarray(grid.decode(message, a.dtype))
        np.testing.assert_array_equal(back[1], a[1])
        assert np.isnan(back[2]).all()
        for i in (0, 3):
            step = (a[i].max() - a[i].min()) / (2**bits - 1)
            assert step / 4 < np.abs(back[i] - a[i]).max() <= step / 2 * (1 + 1e-9)


def test_what_awaits_its_turn_is_stored_as_it_arrived():
    """A float32 perceptron of equal widths: 8 minibatches in flight in a quarter of the bytes."""
    net = jtssm.mlp([32] * 5 + [4])
    shapes = {}
    for grid in (None, 8):
        method = solvers.gsadmm(
            net, subnets=3, optimizer=optax.sgd(0.1), batch_size=BATCH, grid=grid, microbatches=1
        )
        x = jax.ShapeDtypeStruct((BATCH, 32), np.float32)
        y = jax.ShapeDtypeStruct((BATCH,), np.int32)
        state = jax.eval_shape(method.init, jax.random.key(0), x, y)
        shapes[grid] = jax.tree.leaves(state.inputs[1])
    size = lambda leaves: sum(a.size * a.dtype.itemsize for a in leaves)
    assert size(shapes[None]) == 2 * BATCH * 32 * 4
    assert size(shapes[8]) == 2 * BATCH * (32 + 8)


def test_trees_keep_their_integers_and_a_grid_for_each_array():
    net = network("encoder")
    ways = {"optimizer": MOMENTUM, "batch_size": TREES, "microbatches": 1}
    method = solvers.gsadmm(net, subnets=2, grid=8, **ways)
    sent = {m.what: (m.shape, m.itemsize, m.source) for m in method.moves(TREES) if m.axis != "pc"}
    assert sent == {
        "codes of f": ((TREES, 16), 1, 0),
        "ends of f's grids": ((TREES, 2), None, 0),
        "codes of q - f": ((TREES, 16), 1, 1),
        "ends of q - f's grids": ((TREES, 2), None, 1),
        "f of bool": ((TREES, 4), 1, 0),
    }


def test_the_cost_model_knows_the_fewer_bytes():
    """Words elsewhere, a compute_dtype or none; given values have no ends to send forward."""
    net, mesh = jtssm.mlp([64] * 4 + [8]), sharding.make_mesh(2, 1, 1)
    shared = {"subnets": 2, "optimizer": optax.sgd(0.1), "batch_size": 32, "microbatches": 1}
    machine = sharding.Machine("slow", 1e12, 1e12, 1e6, 1e-3, 0.0, "made up")
    floats = 2 * 32 * 64 * 4
    for grid, size in (
        (None, floats),
        (16, floats // 2 + 2 * 32 * 8),
        (8, floats // 4 + 2 * 32 * 8),
        (range(9), floats // 4 + 32 * 8),
    ):
        for narrow in (None, "bfloat16"):
            method = solvers.gsadmm(net, grid=grid, compute_dtype=narrow, **shared)
            crossing = step_bytes(method, mesh)["permute", ("subnet",)]
            assert crossing == size / 2 if grid != range(9) else crossing <= size
            seconds = step_seconds(method, machine, subnet=2).permute
            # both ways at once: what the second device sends, q - f, always with its ends
            messages = 1 if grid is None else 2
            back = floats // 2 if grid is None else floats // 2 // (2 if grid == 16 else 4) + 32 * 8
            np.testing.assert_allclose(seconds, messages * 1e-3 + back / 1e6, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [None, (3, 1, 2)])
def test_integers_in_flight_stand_in_a_checkpoint(shape, tmp_path):
    """A run that ends after half of its epochs and goes on ends with the bits of one at a stretch."""
    x, y = (np.concatenate(a) for a in zip(*batches(8), strict=True))
    mesh = None if shape is None else sharding.make_mesh(*shape)
    method = rounding(solvers.gsadmm, 3, 2, 8)
    ways = {"key": jax.random.key(0), "mesh": mesh}
    whole = jtssm.fit(method, (x, y), epochs=2, **ways)
    for epochs in (1, 2):
        rest = jtssm.fit(method, (x, y), epochs=epochs, checkpoint=tmp_path / "kept", **ways)
    assert_close(rest.params, whole.params, atol=0)
    if mesh is not None:  # a state of one device goes on there
        alone = jtssm.fit(method, (x, y), epochs=1, key=ways["key"])
        spread = jtssm.fit(method, (x, y), epochs=1, state=alone.state, **ways)
        again = jtssm.fit(method, (x, y), epochs=1, state=alone.state, key=ways["key"])
        assert_close(spread.params, again.params, atol=1e-10)
