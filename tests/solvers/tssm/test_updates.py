"""Every block update of gsADMM against the written Lagrangian."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import losses, solvers
from jtssm.protocol.exchange import by_index
from jtssm.solvers.pieces import Pieces
from jtssm.solvers.tssm.updates import update_p, update_q, update_u

RHO, ALPHA, ETA = 0.7, 1.9, 0.13


@pytest.fixture
def problem():
    """Three subnetworks of unequal widths, five samples, arbitrary p, q, u."""
    net = jtssm.mlp([4, 6, 5, 7, 3], activation=jnp.tanh)
    pieces = Pieces(net, (0, 1, 3, 4), (optax.sgd(0.1),) * 3, losses.cross_entropy())
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    params = net.init(jax.random.key(1), jnp.float64)
    W = [params[a:b] for a, b in ((0, 1), (1, 3), (3, 4))]
    p, q, u = (
        [draw(5, w) for w in (4, 6, 7)],
        [draw(5, w) for w in (6, 7)],
        [draw(5, w) for w in (6, 7)],
    )
    return pieces, solvers.Variables(W, p, q, u), rng.integers(0, 3, 5)


def L(pieces, variables, y):
    method = solvers.gsadmm(pieces.network, cuts=[1, 3], optimizer=optax.sgd(0.1), batch_size=5)
    return solvers.lagrangian(method, variables, y, rho=RHO, alpha=ALPHA)


def test_the_lagrangian_is_the_sum_that_the_docstring_writes(problem):
    pieces, v, y = problem
    f = [pieces.forward(by_index(3), l, v.W[l], v.p[l]) for l in range(3)]
    expected = float(losses.cross_entropy().value(f[2], y).sum())
    for l in range(2):
        gap, miss = np.asarray(v.p[l + 1] - v.q[l]), np.asarray(v.q[l] - f[l])
        expected += ALPHA / 2 * (miss**2).sum() + (np.asarray(v.u[l]) * gap).sum()
        expected += RHO / 2 * (gap**2).sum()
    np.testing.assert_allclose(L(pieces, v, y), expected, rtol=1e-12)


def test_p_moves_by_eta_along_minus_the_gradient_of_L(problem):
    pieces, v, y = problem
    dL = jax.grad(lambda p: L(pieces, v._replace(p=p), y))(v.p)
    follows = lambda p, l: (
        losses.cross_entropy().value(pieces.forward(by_index(3), l, v.W[l], p), y).sum()
        if l == 2
        else ALPHA / 2 * jnp.sum((v.q[l] - pieces.forward(by_index(3), l, v.W[l], p)) ** 2)
    )
    for l in (1, 2):
        g = jax.grad(follows)(v.p[l], l)
        p = update_p(v.p[l], g, v.u[l - 1], v.q[l - 1], rho=RHO, eta=ETA)
        np.testing.assert_allclose(p, v.p[l] - ETA * dL[l], atol=1e-13)


def test_q_is_the_minimiser_of_L(problem):
    pieces, v, y = problem
    exchange = by_index(3)
    q = [
        update_q(
            pieces.forward(exchange, l, v.W[l], v.p[l]), v.p[l + 1], v.u[l], rho=RHO, alpha=ALPHA
        )
        for l in range(2)
    ]
    at = lambda q: L(pieces, v._replace(q=q), y)
    for gradient in jax.grad(at)(q):
        np.testing.assert_allclose(gradient, 0, atol=1e-12)
    rng = np.random.default_rng(2)
    for _ in range(20):
        assert at([a + 1e-2 * rng.normal(size=a.shape) for a in q]) > at(q)


def test_u_moves_by_rho_along_the_gradient_of_L(problem):
    pieces, v, y = problem
    dL = jax.grad(lambda u: L(pieces, v._replace(u=u), y))(v.u)
    for l in range(2):
        u = update_u(v.u[l], v.p[l + 1], v.q[l], rho=RHO)
        np.testing.assert_allclose(u, v.u[l] + RHO * dL[l], atol=1e-13)


def test_after_q_and_u_the_dual_is_alpha_times_q_minus_f(problem):
    pieces, v, _ = problem
    f = pieces.forward(by_index(3), 0, v.W[0], v.p[0])
    q = update_q(f, v.p[1], v.u[0], rho=RHO, alpha=ALPHA)
    u = update_u(v.u[0], v.p[1], q, rho=RHO)
    np.testing.assert_allclose(u, ALPHA * (q - f), atol=1e-13)


def test_the_weights_step_follows_the_gradient_of_L(problem):
    pieces, v, y = problem
    dL = jax.grad(lambda W: L(pieces, v._replace(W=W), y))(v.W)
    for l in range(3):
        weights = pieces.start(l, v.W[l])
        moved = pieces.descend(l, weights, dL[l]).params
        expected = jax.tree.map(lambda w, g: w - 0.1 * g, v.W[l], dL[l])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), moved, expected)
        still = pieces.descend(l, weights, dL[l], live=jnp.array(False)).params
        jax.tree.map(np.testing.assert_array_equal, still, v.W[l])
