"""One table over all methods: what every one of them promises."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import sharding, solvers
from jtssm.data import synthetic
from jtssm.protocol.workers import WorkerProgram

NET = jtssm.mlp([4, 16, 12, 3])
BATCH = 20
X, Y = synthetic.separable(0, 120, 4, 3, np.float64)
GSADMM = {"optimizer": optax.adam(1e-2), "batch_size": BATCH}
ROUND = {"optimizer": optax.adam(1e-2), "batch_size": 10, "local_steps": 2}
METHODS = {
    "sgd": solvers.sgd(NET, optimizer=optax.adam(1e-2), batch_size=BATCH),
    "gsadmm, 1 subnet": solvers.gsadmm(NET, subnets=1, **GSADMM),
    "gsadmm, 2 subnets": solvers.gsadmm(NET, subnets=2, **GSADMM),
    "gsadmm, 3 subnets, 2 sweeps": solvers.gsadmm(
        NET, subnets=3, schedule=solvers.Streaming(sweeps=2), **GSADMM
    ),
    "gsadmm, stored": solvers.gsadmm(NET, subnets=2, schedule="stored", **GSADMM),
    "gsam, 3 subnets, 2 sweeps": solvers.gsam(
        NET, subnets=3, schedule=solvers.Streaming(sweeps=2), **GSADMM
    ),
    "gsam, stored": solvers.gsam(NET, subnets=2, schedule="stored", **GSADMM),
    "ist": solvers.ist(NET, subnets=2, **ROUND),
    "local_sgd": solvers.local_sgd(NET, workers=2, **ROUND),
    "pdadmm": solvers.pdadmm(NET),
    "gsam, stored, parallel": solvers.gsam(
        NET, subnets=3, schedule=solvers.Stored(order="parallel"), **GSADMM
    ),
}


RESIDUALS = {"primal_residual", "dual_residual", "coupling"}
CERTIFIED = RESIDUALS | {"objective", "decrease"}
SHOWN = {"gsadmm": RESIDUALS, "gsam": {"coupling"}, "pdadmm": CERTIFIED}  # others: nothing
LONG = ("gsadmm, 2 subnets", "gsam, stored")  # others show what they would
PARAMS = [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in METHODS]


@pytest.fixture(params=PARAMS)
def method(request):
    return METHODS[request.param]


def batch(method, i=0):
    if method.resident:
        return X, Y
    size = np.prod(method.batch_shape)
    start = (i * size) % len(X)
    shape = method.batch_shape
    return X[start : start + size].reshape(*shape, -1), Y[start : start + size].reshape(shape)


@cache
def made(name):
    """(first state, compiled step, list that grows with each trace): shared, since arrays never change."""
    method, traces = METHODS[name], []

    def step(*args):
        traces.append(1)
        return method.step(*args)

    return method.init(jax.random.key(0), X, Y), jax.jit(step), traces


@pytest.fixture
def begun(method, request):
    return made(request.node.callspec.params["method"])


def tree_shapes(tree):
    return jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), tree)


def test_init_needs_only_a_key_and_samples_and_is_reproducible(method, begun):
    one, *_ = begun
    two, other = (method.init(jax.random.key(k), X, Y) for k in (0, 1))
    for a, b in zip(method.params(one), method.params(two), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert (method.params(one)[0]["W"] != method.params(other)[0]["W"]).any()


def test_parameters_are_one_tree_a_layer_of_the_dtype_of_x(method, begun):
    params = method.params(method.init(jax.random.key(0), X.astype(np.float32), Y))
    assert tree_shapes(params) == tree_shapes(NET.init(jax.random.key(0)))
    params = method.params(begun[0])
    assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype("float64")}


def test_a_warm_start_gives_these_parameters_back(method):
    given = NET.init(jax.random.key(7), jnp.float64)
    state = method.init(jax.random.key(0), X, Y, given)
    jax.tree.map(np.testing.assert_array_equal, method.params(state), given)


def test_predict_is_the_composed_network(method, begun):
    state, step, _ = begun
    state, _ = step(state, *batch(method))
    expected = NET.apply(method.params(state), X)
    np.testing.assert_allclose(method.predict(state, X), expected, atol=1e-12)


def test_a_step_keeps_the_states_structure_and_leaves_the_old_one_alone(method, begun):
    state, step, _ = begun
    before = [np.asarray(a).copy() for a in jax.tree.leaves(method.params(state))]
    new, info = step(state, *batch(method))
    assert tree_shapes(new) == tree_shapes(state)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.leaves(method.params(state)))
    assert isinstance(info, jtssm.Info)
    assert all(jnp.shape(a) == () for a in jax.tree.leaves(info))
    assert set(info.shown) == set(method.program.declared.shows) == SHOWN.get(method.name, set())
    numbers = [info.loss, info.accuracy, *info.shown.values()]
    assert {bool(np.isfinite(a)) for a in numbers} == {bool(info.samples)}


def test_one_trace_serves_all_steps(method, begun):
    state, step, traces = begun
    for i in range(4):
        state, _ = step(state, *batch(method, i))
    assert len(traces) == 1


def test_a_separable_problem_is_learned(method):
    result = jtssm.fit(method, (X, Y), epochs=60, key=jax.random.key(0), validation=(X, Y))
    assert result.history[-1]["validation_accuracy"] == 1.0
    assert result.divergence is None
    assert len(result.history) == 60


# tests/sharding/placement has the others on more meshes
ON_A_MESH = ("sgd", "gsadmm, 3 subnets, 2 sweeps", "local_sgd", "pdadmm")


@pytest.mark.parametrize(
    "method",
    [pytest.param(n, marks=[] if n in ON_A_MESH else [pytest.mark.slow]) for n in METHODS],
    indirect=True,
)
def test_on_a_mesh_the_protocol_and_the_numbers_are_the_same(method, begun):
    placed = sharding.place(method, sharding.make_mesh(pc=2))
    state, step, _ = begun
    other = placed.init(jax.random.key(0), X, Y)
    assert tree_shapes(placed.params(other)) == tree_shapes(method.params(state))
    for i in range(3):
        state, info = step(state, *batch(method, i))
        other, seen = jax.jit(placed.step)(other, *batch(method, i))
        leaves = map(jax.tree.leaves, (seen, info))
        np.testing.assert_allclose(*leaves, atol=1e-9)
    np.testing.assert_allclose(placed.predict(other, X), method.predict(state, X), atol=1e-3)


def test_what_moves_is_declared(method):
    moves = method.moves(BATCH)
    assert {m.axis for m in moves} <= {"subnet", "pr", "pc"}
    gradients = sum(m.shape[0] for m in moves if m.what == "gradient of W")
    total = sum(a.size for a in jax.tree.leaves(NET.init(jax.random.key(0))))
    if isinstance(method.program, WorkerProgram):
        # of one: half of the neurons, or the whole network
        half = sum(a.size for a in jax.tree.leaves(jtssm.mlp([4, 8, 6, 3]).init(jax.random.key(0))))
        assert gradients == (half if method.name == "ist" else total)
        return
    pieces = method.program.stages.num
    assert len([m for m in moves if m.axis == "subnet"]) == 2 * (pieces - 1)
    assert gradients == total
