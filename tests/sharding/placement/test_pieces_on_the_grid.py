"""Subnetworks that run their own layers on their own grid: subnet x pr x pc."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import sharding, solvers
from jtssm.nn.images import convolution, max_pool
from jtssm.nn.network import sequence
from jtssm.nn.perceptrons import dense
from jtssm.sharding.layers import traffic
from tests.cases import few_of

BATCH = 8
MOMENTUM = optax.sgd(0.05, momentum=0.9)
# eight layers, of which the pieces below hold unequal numbers
NET = sequence(
    [
        convolution(4, 3, 1, "SAME", jnp.tanh),
        max_pool(2),
        convolution(8, 3, 1, "SAME", jnp.tanh),
        dense(16, jnp.tanh),
        dense(16, jnp.tanh),
        dense(8, jnp.tanh),
        dense(8, jnp.tanh),
        dense(8),
    ],
    (13, 9, 3),
)
CUTS = {2: [3], 1: None, 4: [1, 3, 6], 8: list(range(1, 8))}
FORMS = ["domain", "domain", "domain", "model", "row", "scattered", "batch", "gathered"]


def method(subnets, make=solvers.gsadmm, **options):
    return make(
        NET, optimizer=MOMENTUM, batch_size=BATCH, cuts=CUTS[subnets] or [3], alpha=1.3, **options
    )


def run(method, num=9):
    """Weights after the steps, the last info, and predictions for a number no axis divides."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2 * BATCH, 13, 9, 3)), rng.integers(0, 8, 2 * BATCH).astype(np.int32)
    state, step = method.init(jax.random.key(0), x, y), jax.jit(method.step)
    for i in range(num):
        half = slice(None) if method.resident else slice(BATCH * (i % 2), BATCH * (i % 2) + BATCH)
        state, info = step(state, x[half], y[half])
    return method.params(state), info, np.asarray(jax.jit(method.predict)(state, x[:7]))


@functools.cache
def alone(subnets, make=solvers.gsadmm, num=9, **options):
    return run(method(subnets, make, **options), num)


def same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-10), one, other)


@pytest.mark.parametrize(
    ("shape", "forms"),
    [
        ((2, 2, 2), FORMS),
        ((1, 4, 2), FORMS),
        ((8, 1, 1), "auto"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (((4, 1, 2), "auto"), ((2, 2, 2), "auto"), ((4, 2, 1), FORMS))
        ),
    ],
    ids=str,
)
def test_each_subnetwork_runs_its_layers_on_its_grid(shape, forms):
    subnets = max(shape[0], 2)
    steps = 2 * subnets + 5
    placed = sharding.place(method(subnets), sharding.make_mesh(*shape), forms=forms)
    same(alone(subnets, num=steps), run(placed, steps))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        pytest.param(solvers.gsam, {}, marks=pytest.mark.slow),
        pytest.param(solvers.gsadmm, {"schedule": "stored"}, marks=pytest.mark.slow),
    ],
)
def test_other_schedules_too(make, options):
    placed = sharding.place(method(2, make, **options), sharding.make_mesh(2, 2, 2), forms=FORMS)
    same(alone(2, make, num=5, **options), run(placed, 5))


def branches(jaxpr, inside=False):
    """(name of a primitive, whether it stands in a branch) of a program."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name, inside
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from branches(inner, inside or eqn.primitive.name == "cond")


def test_no_permute_stands_in_a_branch_of_unequal_pieces():
    """There it would wait for devices that take another branch, for ever; rows go by all-gathers."""
    placed = sharding.place(method(2), sharding.make_mesh(2, 2, 2), forms=FORMS)
    x, y = np.zeros((BATCH, 13, 9, 3)), np.zeros(BATCH, np.int32)
    jaxpr = jax.make_jaxpr(placed.step)(placed.init(jax.random.key(0), x, y), x, y).jaxpr
    found = list(branches(jaxpr))
    assert ("ppermute", False) in found  # between subnetworks
    assert ("ppermute", True) not in found
    assert ("all_gather", True) in found


def test_in_a_branch_edges_move_by_all_gathers_as_the_formula_says():
    """The rows of the slabs' edges: above and below of each convolution and pool of the first piece."""
    grid = sharding.place(method(2), sharding.make_mesh(2, 2, 2), forms=FORMS)
    sizes = jax.eval_shape(NET.init, jax.random.key(0))
    at = grid.step.__self__.at.grid
    sent = [s for s in traffic.Pass(at, sizes, BATCH // 2, 2).sent() if s.what == "domain"]
    edges = {  # rows above and below, of 6 + 7 and 3 + 3; the pool of 2 x 2 between them needs none
        (0, "all_gather"): (1 + 1) * 9 * 3,
        (2, "all_gather"): (1 + 1) * 4 * 4,
        (2, "reduce_scatter"): 2 * (1 + 1) * 4 * 4,
    }
    assert {(s.layer, s.collective): s.numbers for s in sent} == {
        k: 4 * v for k, v in edges.items()
    }


SHAPES = [((2, 2, 2),), ((1, 4, 2),), ((4, 1, 2),), ((8, 1, 1),)]


@pytest.mark.parametrize("shape", few_of(SHAPES, SHAPES[:2]), ids=str)
def test_independent_subnets_split_their_samples_over_pr_and_pc(shape):
    net = jtssm.mlp([6, 16, 4], jnp.tanh, normalisation="batch")
    ist = solvers.ist(net, subnets=8, optimizer=MOMENTUM, local_steps=3, batch_size=8)
    placed = sharding.place(ist, sharding.make_mesh(*shape))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 8, 8, 6)), rng.integers(0, 4, (3, 8, 8)).astype(np.int32)
    results = []
    for m in (ist, placed):
        state = m.init(jax.random.key(0), x.reshape(-1, 6), y.reshape(-1))
        for _ in range(2):
            state, info = jax.jit(m.step)(state, x, y)
        results.append((m.params(state), info.loss))
    same(*results)
