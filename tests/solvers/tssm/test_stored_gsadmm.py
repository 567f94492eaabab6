"""gsADMM as the paper writes it: p, q, u of every sample."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import losses, solvers
from jtssm.data import synthetic
from jtssm.solvers.tssm.stored import Strata
from tests.cases import few_of
from tests.solvers.tssm import twins

NET = jtssm.mlp([5, 7, 6, 8, 3])
M, BATCH = 12, 4


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=(M, 5)), rng.integers(0, 3, M).astype(np.int32)


def paper_iteration(twin, x, y, p, q, u, minibatches, rho, alpha, eta):
    """The algorithm box, on lists: p[0] is unused, p[l + 1], q[l], u[l] belong to boundary l."""
    n = twin.num
    inputs = [x, *p[1:]]

    def omega(l, W, p_l, rows):
        if l == n - 1:
            return twin.R(W, p_l, y[rows])
        return alpha / 2 * jnp.sum((q[l][rows] - twin.f(l, W, p_l)) ** 2)

    for rows in minibatches:
        mean = lambda W, l, rows=rows: omega(l, W, inputs[l][rows], rows) / len(rows)
        gradients = [jax.grad(mean)(twin.W[l], l) for l in range(n)]
        for l in range(n):
            twin.descend(l, gradients[l])
    everything = np.arange(len(y))
    new_p = [None]
    for l in range(1, n):
        g = jax.grad(lambda p_l, l=l: omega(l, twin.W[l], p_l, everything))(p[l])
        new_p.append(p[l] - eta * (g + u[l - 1] + rho * (p[l] - q[l - 1])))
    inputs = [x, *new_p[1:]]
    new_q, new_u = [], []
    for l in range(n - 1):
        f = twin.f(l, twin.W[l], inputs[l])
        new_q.append((alpha * f + rho * new_p[l + 1] + u[l]) / (alpha + rho))
        new_u.append(u[l] + rho * (new_p[l + 1] - new_q[l]))
    return new_p, new_q, new_u


CASES = list(product((1, 2, 4), (1, 3, 5)))


@pytest.mark.parametrize(("n", "weight_steps"), few_of(CASES, [(1, 3), (2, 5), (4, 1)]))
def test_iterations_equal_the_papers_algorithm_box(problem, n, weight_steps):
    x, y = problem
    numbers = {"rho": 0.6, "alpha": 1.7, "eta": 0.21}
    optimizer = optax.sgd(0.05, momentum=0.9)
    method = solvers.gsadmm(
        NET,
        subnets=n,
        optimizer=optimizer,
        batch_size=BATCH,
        schedule=solvers.Stored(weight_steps=weight_steps),
        **numbers,
    )
    params = NET.init(jax.random.key(2), jnp.float64)
    state = method.init(jax.random.key(0), x, y, params)
    twin = twins.Pieces(
        NET, params, method.program.stages.starts, optimizer, losses.cross_entropy()
    )
    p, f = [None], x
    for l in range(n - 1):
        f = twin.f(l, twin.W[l], f)
        p.append(f)
    q, u = p[1:], [jnp.zeros_like(a) for a in p[1:]]
    step = jax.jit(method.step)
    for _ in range(4):
        columns = Strata(BATCH, M // BATCH).draw(jax.random.split(state.key)[1], weight_steps)
        minibatches = [np.arange(BATCH) * (M // BATCH) + np.asarray(c) for c in columns]
        state, info = step(state, x, y)
        p, q, u = paper_iteration(twin, x, y, p, q, u, minibatches, **numbers)
        for l in range(n - 1):
            held, after = state.held[l + 1], state.held[l]
            for a, b in (
                (held.p, p[l + 1]),
                (held.q_before, q[l]),
                (after.q, q[l]),
                (held.u, u[l]),
            ):
                np.testing.assert_allclose(a, b, atol=1e-11)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11),
            method.params(state),
            twin.params(),
        )
    gaps = sum(float(((p[l + 1] - q[l]) ** 2).sum()) for l in range(n - 1))
    np.testing.assert_allclose(info.shown["primal_residual"], np.sqrt(gaps / M), atol=1e-12)


def test_at_the_start_the_lagrangian_is_the_loss_of_the_composed_network(problem):
    x, y = problem
    method = solvers.gsadmm(
        NET, subnets=3, optimizer=optax.sgd(0.05), batch_size=BATCH, schedule="stored"
    )
    state = method.init(jax.random.key(0), x, y)
    at = lambda s: float(solvers.lagrangian(method, solvers.variables(s, x), y, rho=1.0, alpha=1.0))
    value = float(losses.cross_entropy().value(NET.apply(method.params(state), x), y).sum())
    np.testing.assert_allclose(at(state), value, rtol=1e-12)
    moved, _ = method.step(state, x, y)
    assert at(moved) < at(state)


def test_several_sweeps_a_step_are_as_many_steps(problem):
    x, y = problem
    shared = {"optimizer": optax.sgd(0.05), "batch_size": BATCH, "subnets": 3}
    twice, once = (solvers.gsadmm(NET, schedule=solvers.Stored(sweeps=k), **shared) for k in (2, 1))
    state, other = (m.init(jax.random.key(0), x, y) for m in (twice, once))
    state, _ = twice.step(state, x, y)
    for _ in range(2):
        other, _ = once.step(other, x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), state.held, other.held)


def test_an_epoch_draws_every_sample_once():
    columns = np.asarray(Strata(4, 5).draw(jax.random.key(0), 10))
    rows = np.arange(4)[None] * 5 + columns
    for epoch in (rows[:5], rows[5:]):
        assert sorted(epoch.ravel()) == list(range(20))
    assert (rows[:5] != rows[5:]).any()


def test_a_small_separable_problem_is_solved():

    net = jtssm.mlp([4, 16, 16, 3])
    x, y = synthetic.separable(0, 120, 4, 3, np.float64)
    method = solvers.gsadmm(
        net, subnets=3, optimizer=optax.adam(1e-2), batch_size=20, schedule="stored"
    )
    state = method.init(jax.random.key(1), x, y)
    run = jax.jit(lambda s: jax.lax.fori_loop(0, 60, lambda _, s: method.step(s, x, y)[0], s))
    outputs = method.predict(run(state), x)
    assert float((outputs.argmax(1) == y).mean()) == 1.0
