r"""gsADMM as the paper writes it: p, q, u of every sample are stored, all samples stay in place.

One sweep, all l in parallel (the problem stands in `jtssm.solvers.tssm`):

    W_l     <- `weight_steps` optimizer steps, each on a minibatch of (p_l, q_l)
    p_l     <- p_l - eta dL/dp_l                               (l >= 2)
    q_l     <- (alpha f_l(W_l, p_l) + rho p_{l+1} + u_l) / (alpha + rho)      (l < n)
    u_l     <- u_l + rho (p_{l+1} - q_l)

p and q start from a forward pass, u from 0. u_l is kept by subnetwork l + 1 alone: it sends
p_{l+1} + u_l / rho backward, which is all that the q-step needs, and gets q_l in return.

Minibatches: the M samples are seen as batch_size strata of M / batch_size neighbours; every epoch
draws one permutation a stratum, and a minibatch takes one sample of each. So a minibatch is the same
set of samples on any mesh, and no sample moves.

Departs from the paper: see `jtssm.solvers.tssm` (sums over samples), and more than one W-step a
sweep by default (an epoch; the paper's 1 is `weight_steps=1`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.protocol import Array, Info, Method, as_method
from jtssm.solvers.pieces import Pieces
from jtssm.solvers.streaming import boundary_moves
from jtssm.solvers.updates import Penalties, squared, update_p, update_q, update_u


class Held(NamedTuple):
    """What subnetwork l stores of every sample: leaves [M, ...], () where it has none."""

    p: Any  # p_l, its input; () in the first: the data
    u: Any  # u_{l-1}
    q_before: Any  # q_{l-1}
    q: Any  # q_l, () in the last


class State(NamedTuple):
    """What the next step needs."""

    weights: Any  # carried Weights
    held: Any  # carried Held
    key: Array  # draws the minibatches
    penalties: Penalties  # scalars


def method(
    pieces: Pieces,
    batch_size: int,
    penalties: Penalties,
    sweeps: int,
    precision: Any,
    weight_steps: int | None,
) -> Method:
    """The stored schedule of gsADMM; arguments are checked by `jtssm.solvers.tssm.gsadmm`."""

    def moves(samples):
        steps = weight_steps or samples // batch_size
        return boundary_moves(pieces, samples, sweeps, sweeps * steps)

    return as_method(
        pieces.parts(
            name="gsadmm",
            kinds={"weights": "weights", "held": "samples"},
            init=_init(pieces, penalties),
            step=_step(_sweep(pieces, batch_size, weight_steps), sweeps),
            drain=lambda exchange, state: state,
            moves=moves,
            precision=precision,
            batch_size=batch_size,
            resident=True,
        )
    )


def _init(pieces: Pieces, penalties: Penalties) -> Callable:
    def init(exchange, key, x, y, params):
        weights_key, key = jax.random.split(key)
        weights = pieces.weights(exchange, weights_key, x.dtype, params)
        run = lambda l, weights, p: pieces.forward(exchange, l, weights.params, p)
        _, inputs, outputs = exchange.chain(run, weights, x, keep=True)

        def hold(l, p, f):
            q = () if l == pieces.num - 1 else f
            return (Held((), (), (), q) if l == 0 else Held(p, jnp.zeros_like(p), p, q),)

        (held,) = exchange.each(hold, inputs, outputs, kinds=("samples",))
        return State(weights, held, key, penalties.as_arrays(x.dtype))

    return init


def _step(sweep: Callable, sweeps: int) -> Callable:
    def step(exchange, state, x, y):
        for _ in range(sweeps):
            state, info = sweep(exchange, state, x, y)
        return state, info

    return step


def _sweep(pieces: Pieces, batch_size: int, weight_steps: int | None) -> Callable:
    last = pieces.num - 1

    def sweep(exchange, state, x, y):
        rho, alpha, eta = state.penalties
        eta = 1 / (alpha + rho) if eta is None else eta
        key, draw_key = jax.random.split(state.key)
        per_stratum = x.shape[0] * exchange.num_splits // batch_size
        draws = draw(draw_key, batch_size, per_stratum, weight_steps or per_stratum)
        draws = exchange.own_samples(draws.T).T  # columns: the strata that live here

        def train_weights_and_p(l, weights, held):
            p = x if l == 0 else held.p
            objective = _objective(pieces, exchange, l, alpha)

            def weight_step(weights, columns):
                batch = jax.tree.map(lambda a: _pick(a, columns, per_stratum), (p, held.q, y))
                gradient = jax.grad(lambda W: objective(W, *batch)[0] / batch_size)(weights.params)
                return pieces.descend(l, weights, gradient), None

            weights, _ = lax.scan(weight_step, weights, draws)
            if l == 0:
                _, seen = objective(weights.params, p, held.q, y)
                return weights, held, (), seen
            g, seen = jax.grad(objective, 1, has_aux=True)(weights.params, p, held.q, y)
            p = update_p(p, g, held.u, held.q_before, rho=rho, eta=eta)
            return weights, held._replace(p=p), p + held.u / rho, seen

        def renew_q(l, weights, held, from_next):
            if l == last:
                return held, (), jnp.zeros((), x.dtype), jnp.zeros((), x.dtype)
            f = pieces.forward(exchange, l, weights.params, x if l == 0 else held.p)
            q = update_q(f, from_next, 0.0, rho=rho, alpha=alpha)
            return held._replace(q=q), q, squared(rho * (q - held.q)), squared(q - f)

        def renew_u(l, held, q_before):
            if l == 0:
                return held, jnp.zeros((), x.dtype)
            u = update_u(held.u, held.p, q_before, rho=rho)
            return held._replace(u=u, q_before=q_before), squared(held.p - q_before)

        weights, held, message, seen = exchange.each(
            train_weights_and_p, state.weights, state.held,
            kinds=("weights", "samples", "samples", "sums"),
        )  # fmt: skip
        held, message, dual, coupling = exchange.each(
            renew_q, weights, held, exchange.to_previous(message),
            kinds=("samples", "samples", "sums", "sums"),
        )  # fmt: skip
        held, primal = exchange.each(
            renew_u, held, exchange.to_next(message), kinds=("samples", "sums")
        )
        totals = (*exchange.total(seen), *map(exchange.total, (primal, dual, coupling)))
        samples = x.shape[0] * exchange.num_splits
        return State(weights, held, key, state.penalties), _info(totals, samples)

    return sweep


def _info(totals, samples: int) -> Info:
    loss, right, *residuals = (total / samples for total in totals)
    count = jnp.full_like(loss, samples)
    return Info(loss, right, count, *map(jnp.sqrt, residuals))


def _objective(pieces: Pieces, exchange: Any, l: int, alpha: Any) -> Callable:
    """(W_l, p_l, q_l, y) -> (R or Omega_l summed over the samples at hand, (loss, number right))."""

    def objective(W, p, q, y):
        f = pieces.forward(exchange, l, W, p)
        if l < pieces.num - 1:
            zero = jnp.zeros((), p.dtype)
            return alpha / 2 * squared(q - f), (zero, zero)
        loss = pieces.loss.value(f, y).sum()
        return loss, (loss, pieces.loss.correct(f, y).sum())

    return objective


def draw(key: Array, strata: int, per_stratum: int, steps: int) -> Array:
    """[steps, strata] which sample of each stratum a minibatch takes; an epoch takes each once."""
    epochs = -(-steps // per_stratum)
    order = jnp.broadcast_to(jnp.arange(per_stratum), (epochs * strata, per_stratum))
    order = jax.random.permutation(key, order, axis=1, independent=True)
    return order.reshape(epochs, strata, per_stratum).swapaxes(1, 2).reshape(-1, strata)[:steps]


def _pick(a: Array, columns: Array, per_stratum: int) -> Array:
    """Row columns[i] of stratum i, for all strata: [strata, ...] from [strata * per_stratum, ...]."""
    return a[jnp.arange(columns.size) * per_stratum + columns]
