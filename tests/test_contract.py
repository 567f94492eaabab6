"""One table over all methods: what every one of them promises."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import sharding, solvers, testing
from jtssm.data import synthetic
from jtssm.protocol.workers import WorkerProgram

NET = jtssm.mlp([4, 16, 12, 3])
BATCH = 20
X, Y = synthetic.separable(0, 120, 4, 3, np.float64)
GSADMM = {"optimizer": optax.adam(1e-2), "batch_size": BATCH}
ROUND = {"optimizer": optax.adam(1e-2), "batch_size": 10, "local_steps": 2}
METHODS = {
    "sgd": solvers.sgd(NET, optimizer=optax.adam(1e-2), batch_size=BATCH),
    "pipeline, 2 subnets": solvers.pipeline(NET, subnets=2, microbatches=2, **GSADMM),
    "pipeline, 3 subnets, gpipe": solvers.pipeline(
        NET, subnets=3, microbatches=5, schedule="gpipe", **GSADMM
    ),
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
LONG = (
    "gsadmm, 2 subnets",
    "gsam, stored",
    "pipeline, 3 subnets, gpipe",
)  # others show what they would
PARAMS = [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in METHODS]


@pytest.fixture(params=PARAMS)
def method(request):
    return METHODS[request.param]


@cache
def made(name):
    """(first state, compiled step): shared, since arrays never change."""
    method = METHODS[name]
    return method.init(jax.random.key(0), X, Y), jax.jit(method.step)


@pytest.fixture
def begun(method, request):
    return made(request.node.callspec.params["method"])


def tree_shapes(tree):
    return jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), tree)


@pytest.mark.parametrize("check", [testing.check_init, testing.check_step, testing.check_predict])
def test_what_is_promised_to_any_method(check, method):
    check(method, X, Y)


def test_parameters_are_the_networks_in_the_dtype_of_x(method):
    params = method.params(method.init(jax.random.key(0), X.astype(np.float32), Y))
    assert tree_shapes(params) == tree_shapes(NET.init(jax.random.key(0)))


def test_predict_is_the_composed_network(method, begun):
    state, step = begun
    state, _ = step(state, *testing.minibatch(method, X, Y))
    expected = NET.apply(method.params(state), X)
    np.testing.assert_allclose(method.predict(state, X), expected, atol=1e-12)


def test_a_step_shows_what_is_declared_and_nan_where_nothing_was_measured(method, begun):
    state, step = begun
    _, info = step(state, *testing.minibatch(method, X, Y))
    assert set(info.shown) == set(method.program.declared.shows) == SHOWN.get(method.name, set())
    numbers = [info.loss, info.accuracy, *info.shown.values()]
    assert {bool(np.isfinite(a)) for a in numbers} == {bool(info.samples)}


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
def test_on_a_mesh_the_protocol_and_the_numbers_are_the_same(method):
    mesh = sharding.make_mesh(pc=2)
    testing.check_placed(method, X, Y, mesh)
    testing.check_bytes(method, X, Y, mesh)


def test_what_moves_is_declared(method):
    testing.check_moves(method, BATCH)
    moves = method.moves(BATCH)
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
