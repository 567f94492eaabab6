"""A method on a mesh: the same numbers, less memory a device, and no more bytes than declared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import jtssm
from jtssm import sharding, solvers
from jtssm.nn.network import sequence
from jtssm.nn.perceptrons import dense
from jtssm.sharding.count import hlo
from tests.nn.own_layer import Grow

BATCH = 8
NET = jtssm.mlp([6, 8, 12, 8, 4])
RATE = optax.sgd(0.05, momentum=0.9)


def samples(num, dtype=np.float64):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num, 6)).astype(dtype), rng.integers(0, 4, num).astype(np.int32)


def gsadmm(net=NET, optimizer=RATE, **options):
    ways = {"batch_size": BATCH, "microbatches": 1, "rho": 0.7, "alpha": 1.3} | options
    return solvers.gsadmm(net, optimizer=optimizer, **ways)


def gsam(**options):
    ways = {"batch_size": BATCH, "microbatches": 1, "alpha": 1.3} | options
    return solvers.gsam(NET, optimizer=RATE, **ways)


def run(method, steps, dtype=np.float64, params=None):
    """The state after the steps, in the one-device form, the last info, and some outputs."""
    x, y = samples(2 * BATCH, dtype)
    state = method.init(jax.random.key(0), x, y, params)
    step = jax.jit(method.step)
    for i in range(steps):
        rows = slice(None) if method.resident else slice(BATCH * (i % 2), BATCH * (i % 2) + BATCH)
        state, info = step(state, x[rows], y[rows])
    outputs = np.asarray(jax.jit(method.predict)(state, x))
    state = jax.jit(method.drain)(state)
    return sharding.gathered(state), info, outputs


def assert_same(one, other, atol):
    flat = lambda state: jax.tree_util.tree_leaves_with_path(state)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), (_, b) in zip(flat(one), flat(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(b, a, atol=atol, err_msg=jax.tree_util.keystr(path))


@functools.cache
def unsharded(n, **options):
    """What one device gives; computed once for all mesh shapes."""
    return run(gsadmm(subnets=n, **options), 2 * (n - 1) + 5)


SHAPES = {
    4: [(2, 2, 2), (4, 1, 2), (2, 1, 4), (1, 2, 4)],
    3: [(2, 1, 2)],  # two slots a device, the first one empty
    2: [(2, 1, 1), (2, 2, 2)],
    1: [(1, 2, 2)],
}


def cases():
    """The first shape of 4 and of 3 subnetworks, others slow: test_pieces_on_the_grid has more shapes."""
    for schedule in ("streaming", solvers.Streaming(sweeps=2), "stored"):
        options = {"schedule": schedule}
        for n, shapes in SHAPES.items():
            for shape in shapes:
                first = n in (3, 4) and isinstance(schedule, str) and shape == shapes[0]
                first = first and (n == 4 or schedule == "streaming")
                marks = [] if first else [pytest.mark.slow]
                yield pytest.param(n, shape, options, marks=marks)


@pytest.mark.parametrize(("n", "shape", "options"), list(cases()), ids=str)
def test_sharded_equals_unsharded(n, shape, options):
    method = gsadmm(subnets=n, **options)
    got = run(sharding.place(method, sharding.make_mesh(*shape)), 2 * (n - 1) + 5)
    assert_same(unsharded(n, **options), got, atol=1e-10)


@pytest.mark.parametrize(
    "schedule",
    [
        "streaming",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("stored", solvers.Streaming(sweeps=2))),
    ],
    ids=str,
)
def test_a_first_device_without_a_piece(schedule):
    """Five subnetworks on four devices: none, 1, 2 and 2, of which the second holds the first."""
    method = gsadmm(jtssm.mlp([6, 8, 12, 7, 8, 4]), subnets=5, schedule=schedule)
    placed = sharding.place(method, sharding.make_mesh(4, 1, 2))
    assert_same(run(method, 13), run(placed, 13), atol=1e-10)


@pytest.mark.parametrize("shape", [(2, 2, 2), pytest.param((4, 1, 2), marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "stored"},
        pytest.param({"schedule": solvers.Streaming(sweeps=2)}, marks=pytest.mark.slow),
        pytest.param({"schedule": solvers.Stored(order="parallel")}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_gsam_sharded_equals_unsharded(shape, options):
    method = gsam(subnets=4, **options)
    expected = run(method, 11)
    assert_same(expected, run(sharding.place(method, sharding.make_mesh(*shape)), 11), atol=1e-10)


@pytest.mark.parametrize("shape", [(2, 2, 2), pytest.param((4, 1, 1), marks=pytest.mark.slow)])
def test_in_float32_too(shape):
    method = gsadmm(subnets=4, optimizer=optax.sgd(0.05), precision="highest")
    expected = run(method, 11, np.float32)
    got = run(sharding.place(method, sharding.make_mesh(*shape)), 11, np.float32)
    assert_same(expected, got, atol=1e-4)
    assert got[2].dtype == np.float32


def test_sgd_is_data_and_model_parallel():
    method = solvers.sgd(NET, optimizer=RATE, batch_size=BATCH)
    expected = run(method, 5)
    for shape in ((1, 2, 2), (1, 1, 8)):
        placed = sharding.place(method, sharding.make_mesh(*shape))
        assert_same(expected, run(placed, 5), atol=1e-10)


def test_a_whole_optimizer_a_subnetwork_sees_what_it_would_see_alone():
    """Clipping by the global norm of a subnetwork, several subnetworks a device, samples split."""
    clipped = optax.chain(optax.clip_by_global_norm(0.05), optax.adam(1e-2))
    method = gsadmm(subnets=4, optimizer=[clipped, RATE, clipped, RATE])
    expected = run(method, 11)
    assert_same(expected, run(sharding.place(method, sharding.make_mesh(2, 1, 2)), 11), atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 1, 2), pytest.param((3, 1, 1), marks=pytest.mark.slow)])
def test_pieces_of_unequal_depth_and_width(shape):
    net = jtssm.mlp([6, 3, 14, 2, 9, 4])
    method = gsadmm(net, cuts=[1, 4], schedule=solvers.Streaming(sweeps=2))
    expected = run(method, 9)
    assert_same(expected, run(sharding.place(method, sharding.make_mesh(*shape)), 9), atol=1e-10)


def test_boundaries_may_be_images_and_forms_may_be_chosen():
    """A layer of the user's own, without forms; the others split over pr as told."""
    net = sequence([Grow(3, 2, 1), dense(8, jnp.tanh), dense(8, jnp.tanh), dense(4)], (6,))
    method = gsadmm(net, cuts=[1, 3])
    expected = run(method, 9)
    forms = ["batch", "model", "batch", "model"]
    placed = sharding.place(method, sharding.make_mesh(3, 2, 1), forms=forms)
    assert_same(expected, run(placed, 9), atol=1e-10)


@pytest.mark.parametrize(
    "kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit]
)
def test_a_users_own_mesh_with_its_own_names(kind):
    mesh = jax.make_mesh((2, 2), ("data", "stage"), axis_types=(kind,) * 2)
    method = gsadmm(subnets=2)
    placed = sharding.place(method, mesh, axes={"subnet": "stage", "pc": "data"})
    assert_same(unsharded(2), run(placed, 7), atol=1e-10)


def test_a_warm_start_is_laid_out_and_comes_back():
    params = NET.init(jax.random.key(9), jnp.float64)
    method = gsadmm(subnets=4)
    placed = sharding.place(method, sharding.make_mesh(2, 2, 2))
    x, y = samples(BATCH)
    state = placed.init(jax.random.key(0), x, y, params)
    jax.tree.map(np.testing.assert_array_equal, placed.params(state), params)
    assert_same(run(method, 5, params=params), run(placed, 5, params=params), atol=1e-10)


def test_predict_takes_any_number_of_samples():
    method = gsadmm(subnets=2)
    placed = sharding.place(method, sharding.make_mesh(subnet=2, pc=4))
    x, y = samples(16)
    states = [m.init(jax.random.key(0), x, y) for m in (method, placed)]
    one, other = (jax.jit(m.predict) for m in (method, placed))
    for num in (1, 3, 16):
        expected = one(states[0], x[:num])
        np.testing.assert_allclose(other(states[1], x[:num]), expected, atol=1e-12)


BIG = jtssm.mlp([6, *[64] * 7, 4])


def compiled(method, shape, dtype=np.float32):
    placed = sharding.place(method, sharding.make_mesh(*shape))
    x, y = samples(2 * BATCH if method.resident else BATCH, dtype)
    state = placed.init(jax.random.key(0), x, y)
    return jax.jit(placed.step).lower(state, x, y).compile(), state


def device_bytes(tree):
    """Bytes that one device holds of a tree of arrays."""
    size = lambda a: int(np.prod(a.sharding.shard_shape(a.shape))) * a.dtype.itemsize
    return sum(size(a) for a in jax.tree.leaves(tree) if a.dtype != jax.dtypes.prng_key)


@pytest.mark.parametrize("schedule", ["streaming", pytest.param("stored", marks=pytest.mark.slow)])
def test_memory_a_device_falls_with_every_axis(schedule):
    """Read from memory_analysis(): weights, optimizer state and p, q, u are a step's arguments."""
    method = gsadmm(BIG, optimizer=optax.adam(1e-3), subnets=4, schedule=schedule)
    used, weights, rest, temporary = {}, {}, {}, {}
    for shape in ((1, 1, 1), (4, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2)):
        program, state = compiled(method, shape)
        memory = program.memory_analysis()
        used[shape], temporary[shape] = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        weights[shape] = device_bytes(state.weights)
        rest[shape] = device_bytes(state._replace(weights=()))
        beside = used[shape] - weights[shape] - rest[shape]
        assert 0 <= beside < 2 * BATCH * (6 + 1) * 8 + 64  # x, y and scalars: all of them are state
    whole = (1, 1, 1)
    # four subnetworks of two layers, of which the ends are smaller: rows are as long as the longest, on
    # one device each is as long as it is
    longest, all_of_them = 2 * (64 * 64 + 64), 6 * (64 * 64 + 64) + 7 * 64 + 65 * 4
    share = longest / all_of_them
    assert weights[4, 1, 1] == pytest.approx(share * weights[whole], rel=0.01)
    assert used[4, 1, 1] < (share + 0.03) * used[whole]
    assert used[2, 2, 2] < (share + 0.03) * used[whole]
    assert weights[1, 2, 1] < 0.52 * weights[whole]
    assert rest[1, 1, 2] < 0.55 * rest[whole]
    assert temporary[4, 1, 1] < 1.5 * weights[4, 1, 1]


@pytest.mark.parametrize(
    ("net", "options", "shape"),
    [
        (NET, {"subnets": 4}, (4, 1, 2)),
        (NET, {"subnets": 4, "schedule": "stored"}, (4, 1, 2)),
        (
            NET,
            {"subnets": 4, "alternating": True, "schedule": solvers.Stored(order="parallel")},
            (4, 1, 2),
        ),
        (NET, {"subnets": 4, "alternating": True, "schedule": "stored"}, (4, 1, 2)),
        (
            jtssm.mlp([6, 3, 14, 2, 9, 4]),
            {"cuts": [1, 4], "schedule": solvers.Streaming(sweeps=2)},
            (3, 1, 2),
        ),
        *(
            pytest.param(NET, {"subnets": 4} | options, shape, marks=pytest.mark.slow)
            for options, shape in (
                ({}, (4, 1, 1)),
                ({"schedule": solvers.Streaming(sweeps=3)}, (4, 1, 2)),
                ({"alternating": True, "schedule": solvers.Streaming(sweeps=2)}, (4, 1, 2)),
            )
        ),
    ],
)
def test_two_matrices_a_boundary_a_sweep_cross_and_no_more(net, options, shape):
    """Counted in the compiled program; equal to what the method declares."""
    options = dict(options)
    alternating = options.pop("alternating", False)
    method = gsam(**options) if alternating else gsadmm(net, **options)
    program, _ = compiled(method, shape)
    num = 2 * BATCH if method.resident else BATCH
    declared = [m for m in method.moves(num) if m.axis == "subnet"]
    numbers = sum(int(np.prod(m.shape)) * m.times for m in declared)
    widths = [int(np.prod(net.shapes[s])) for s in method.program.stages.starts[1:-1]]
    assert numbers == 2 * num * sum(widths) * getattr(options.get("schedule"), "sweeps", 1)
    assert hlo.permuted_bytes(program.as_text()) == 4 * numbers


def test_inside_a_device_nothing_is_sent():
    program, _ = compiled(gsadmm(subnets=4), (2, 1, 1))
    width = 12  # of the one boundary between devices, before the third layer
    assert hlo.permuted_bytes(program.as_text()) == 4 * 2 * BATCH * width


def test_permutes_are_read_from_the_text_of_a_program():
    text = """
  %cp = f32[4,12]{1,0} collective-permute(%a), channel_id=1, source_target_pairs={{0,2},{1,3}}, x
  %s = (bf16[2,3]{1,0}, bf16[2,3]{1,0}) collective-permute-start(%b), source_target_pairs={{0,1}}
  %d = bf16[2,3]{1,0} collective-permute-done(%s)
"""
    found = hlo.permutes(text)
    assert [p.shape for p in found] == [(4, 12), (2, 3)]
    assert found[0].pairs == ((0, 2), (1, 3))
    assert hlo.permuted_bytes(text) == 2 * 4 * 12 * 4 + 2 * 3 * 2


def test_the_step_can_be_scanned_and_donated():
    method = gsadmm(subnets=2)
    placed = sharding.place(method, sharding.make_mesh(2, 1, 2))
    x, y = samples(4 * BATCH)
    xs, ys = x.reshape(4, BATCH, -1), y.reshape(4, BATCH)
    many = lambda m: jax.jit(
        lambda s, xs, ys: jax.lax.scan(lambda s, b: m.step(s, *b), s, (xs, ys)), donate_argnums=0
    )
    results = [many(m)(m.init(jax.random.key(0), x, y), xs, ys) for m in (method, placed)]
    assert_same(*(sharding.gathered(r[0]) for r in results), atol=1e-10)
    np.testing.assert_allclose(results[0][1].loss, results[1][1].loss, atol=1e-10)
