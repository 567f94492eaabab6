"""gsAM as the paper writes it: p of every sample, q and u eliminated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import losses, solvers
from jtssm.data import synthetic
from jtssm.solvers.tssm.stored import Strata
from jtssm.solvers.tssm.updates import update_p
from tests.cases import few_of
from tests.solvers.tssm import twins

NET = jtssm.mlp([5, 7, 6, 8, 3])
M, BATCH = 12, 4
ORDERS = ("sequential", "parallel")


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=(M, 5)), rng.integers(0, 3, M).astype(np.int32)


def objective(twin, W, p, y, alpha):
    """F = R + sum_l (alpha/2) |p_{l+1} - f_l|^2, with p[0] the data."""
    total = twin.R(W[-1], p[-1], y)
    for l in range(twin.num - 1):
        total += alpha / 2 * jnp.sum((p[l + 1] - twin.f(l, W[l], p[l])) ** 2)
    return total


def paper_iteration(twin, y, p, minibatches, order, alpha, eta):
    """The algorithm box on lists, every step a gradient of the written objective."""
    for rows in minibatches:
        mean = lambda W, rows=rows: (
            objective(twin, W, [a[rows] for a in p], y[rows], alpha) / len(rows)
        )
        for l, gradient in enumerate(jax.grad(mean)(twin.W)):
            twin.descend(l, gradient)
    slope = lambda p: jax.grad(lambda p: objective(twin, twin.W, p, y, alpha))(p)
    if order == "parallel":
        return [p[0], *(a - eta * g for a, g in zip(p[1:], slope(p)[1:], strict=True))]
    for l in range(1, twin.num):  # each with the new p[l - 1]
        p = [*p[:l], p[l] - eta * slope(p)[l], *p[l + 1 :]]
    return p


CASES = [(n, k, order) for n, k in ((1, 3), (2, 1), (4, 1), (4, 5)) for order in ORDERS]
FEW = [(2, 1, "parallel"), (4, 1, "sequential"), (4, 5, "parallel")]


@pytest.mark.parametrize(("n", "weight_steps", "order"), few_of(CASES, FEW))
def test_iterations_equal_the_papers_algorithm_box(problem, n, weight_steps, order):
    x, y = problem
    numbers = {"alpha": 1.7, "eta": 0.21}
    optimizer = optax.sgd(0.05, momentum=0.9)
    method = solvers.gsam(
        NET,
        subnets=n,
        optimizer=optimizer,
        batch_size=BATCH,
        schedule=solvers.Stored(weight_steps=weight_steps, order=order),
        **numbers,
    )
    params = NET.init(jax.random.key(2), jnp.float64)
    state = method.init(jax.random.key(0), x, y, params)
    twin = twins.Pieces(
        NET, params, method.program.stages.starts, optimizer, losses.cross_entropy()
    )
    p = [x]
    for l in range(n - 1):
        p.append(twin.f(l, twin.W[l], p[-1]))
    step = jax.jit(method.step)
    for _ in range(4):
        strata = Strata(BATCH, M // BATCH)
        columns = strata.draw(jax.random.split(state.key)[1], weight_steps)
        minibatches = [np.arange(BATCH) * strata.each + np.asarray(c) for c in columns]
        state, info = step(state, x, y)
        p = paper_iteration(twin, y, p, minibatches, order, **numbers)
        for l in range(n - 1):
            np.testing.assert_allclose(state.held[l + 1].p, p[l + 1], atol=1e-11)
            np.testing.assert_allclose(state.held[l].target, p[l + 1], atol=1e-11)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11),
            method.params(state),
            twin.params(),
        )
    assert list(info.shown) == ["coupling"]
    if order == "sequential" and n > 1:
        gaps = [p[l + 1] - twin.f(l, twin.W[l], p[l]) for l in range(n - 1)]
        size = np.sqrt(sum(float((g**2).sum()) for g in gaps) / M)
        np.testing.assert_allclose(info.shown["coupling"], size, rtol=1e-10)


def test_the_p_step_follows_the_gradient_of_the_objective(problem):
    """p, g and f_{l-1} arbitrary: one step of length eta along -dF/dp_l."""
    rng = np.random.default_rng(1)
    p, f = rng.normal(size=(2, M, 7))
    W = rng.normal(size=(7, 3))
    after = lambda p: jnp.sum(jnp.tanh(p @ W) ** 2)
    F = lambda p: after(p) + 1.9 / 2 * jnp.sum((p - f) ** 2)
    moved = update_p(p, jax.grad(after)(p), 0.0, f, rho=1.9, eta=0.13)
    np.testing.assert_allclose(moved, p - 0.13 * jax.grad(F)(p), atol=1e-13)


@pytest.mark.parametrize("order", ORDERS)
def test_the_variables_of_gsam_put_into_L_give_its_objective(problem, order):
    x, y = problem
    method = solvers.gsam(
        NET,
        subnets=3,
        optimizer=optax.sgd(0.05),
        batch_size=BATCH,
        schedule=solvers.Stored(order=order),
    )
    state = method.init(jax.random.key(0), x, y)
    start = float(losses.cross_entropy().value(NET.apply(method.params(state), x), y).sum())
    at = lambda s, rho: float(
        solvers.lagrangian(method, solvers.variables(s, x), y, rho=rho, alpha=1.0)
    )
    np.testing.assert_allclose(at(state, 0.3), start, rtol=1e-12)
    moved, _ = method.step(state, x, y)
    np.testing.assert_allclose(at(moved, 0.3), at(moved, 5.0), rtol=1e-12)
    twin = twins.Pieces(
        NET,
        method.params(moved),
        method.program.stages.starts,
        optax.sgd(0.0),
        losses.cross_entropy(),
    )
    p = [x, *(held.p for held in moved.held[1:])]
    np.testing.assert_allclose(at(moved, 0.3), objective(twin, twin.W, p, y, 1.0), rtol=1e-12)
    assert at(moved, 0.3) < start


def test_the_orders_differ_and_gsam_stores_less_than_gsadmm(problem):
    x, y = problem
    shared = {"optimizer": optax.sgd(0.05), "batch_size": BATCH, "subnets": 4}
    states = {}
    for order in ORDERS:
        method = solvers.gsam(NET, schedule=solvers.Stored(order=order), **shared)
        states[order] = method.init(jax.random.key(0), x, y)
        for _ in range(3):
            states[order], _ = method.step(states[order], x, y)
    one, other = (states[order].held[3].p for order in ORDERS)
    assert float(jnp.abs(one - other).max()) > 1e-6
    admm = solvers.gsadmm(NET, schedule="stored", **shared).init(jax.random.key(0), x, y)
    numbers = lambda held: sum(a.size for a in jax.tree.leaves(held))
    widths = 7 + 6 + 8
    assert numbers(states["parallel"].held) == 2 * M * widths
    assert numbers(admm.held) == 4 * M * widths


@pytest.mark.parametrize("order", ORDERS)
def test_a_small_separable_problem_is_solved(order):
    net = jtssm.mlp([4, 16, 16, 3])
    x, y = synthetic.separable(0, 120, 4, 3, np.float64)
    method = solvers.gsam(
        net,
        subnets=3,
        optimizer=optax.adam(1e-2),
        batch_size=20,
        schedule=solvers.Stored(order=order),
    )
    state = method.init(jax.random.key(1), x, y)
    run = jax.jit(lambda s: jax.lax.fori_loop(0, 60, lambda _, s: method.step(s, x, y)[0], s))
    outputs = method.predict(run(state), x)
    assert float((outputs.argmax(1) == y).mean()) == 1.0
