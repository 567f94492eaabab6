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
from jtssm.solvers.pieces import Pieces, Weights
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
        return (
            *pieces.boundary_moves(samples, sweeps, forward="q", backward="p + u / rho"),
            *pieces.gradient_moves(sweeps * steps),
        )

    return as_method(
        pieces.parts(
            name="gsadmm",
            kinds={"weights": "weights", "held": "samples"},
            init=_init(pieces, penalties),
            step=_step(pieces, batch_size, sweeps, weight_steps),
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


def _step(pieces: Pieces, batch_size: int, sweeps: int, weight_steps: int | None) -> Callable:
    def step(exchange, state, x, y):
        for _ in range(sweeps):
            state, info = _sweep(pieces, batch_size, weight_steps, exchange, state, x, y)
        return state, info

    return step


def _sweep(pieces, batch_size, weight_steps, exchange, state: State, x, y) -> tuple[State, Info]:
    rho, alpha, eta = state.penalties
    numbers = Penalties(rho, alpha, 1 / (alpha + rho) if eta is None else eta)
    samples = x.shape[0] * exchange.num_splits
    key, draw_key = jax.random.split(state.key)
    strata = Strata(batch_size, samples // batch_size)
    draws = draw(draw_key, *strata, weight_steps or strata.each)
    draws = exchange.own_samples(draws.T).T  # columns: the strata that live here
    sweep = Sweep(pieces, exchange, x, y, numbers, strata, draws)
    weights, held, message, seen = exchange.each(
        sweep.train_weights_and_p, state.weights, state.held,
        kinds=("weights", "samples", "samples", "sums"),
    )  # fmt: skip
    held, message, moved = exchange.each(
        sweep.renew_q, weights, held, exchange.to_previous(message),
        kinds=("samples", "samples", "sums"),
    )  # fmt: skip
    held, gap = exchange.each(
        sweep.renew_u, held, exchange.to_next(message), kinds=("samples", "sums")
    )
    sums = (exchange.total(a) for a in (seen, gap, moved))
    loss, right, *residuals = (total / samples for each in sums for total in each)
    info = Info(loss, right, jnp.full_like(loss, samples), *map(jnp.sqrt, residuals))
    return State(weights, held, key, state.penalties), info


class Strata(NamedTuple):
    """How the samples are divided: a minibatch takes one of each stratum."""

    num: int
    each: int  # samples in one


class Sweep(NamedTuple):
    """What all pieces share within one sweep; the methods are the work of one of them."""

    pieces: Pieces
    exchange: Any
    x: Array  # [M, ...]
    y: Array  # [M, ...]
    penalties: Penalties
    strata: Strata
    draws: Array  # [weight steps, strata] which sample of each stratum a minibatch takes

    def train_weights_and_p(self, l: int, weights: Weights, held: Held) -> tuple:
        """W-steps on minibatches, then the p-step on every sample; sends p + u / rho backward."""
        p = self.x if l == 0 else held.p

        def weight_step(weights, columns):
            p_, q_, y_ = jax.tree.map(lambda a: self._pick(a, columns), (p, held.q, self.y))
            mean = lambda W: self._objective(W, p_, q_, y_, l)[0] / self.strata.num
            return self.pieces.descend(l, weights, jax.grad(mean)(weights.params)), None

        weights, _ = lax.scan(weight_step, weights, self.draws)
        at = weights.params, p, held.q, self.y, l
        if l == 0:
            return weights, held, (), self._objective(*at)[1]
        rho, _, eta = self.penalties
        g, seen = jax.grad(self._objective, 1, has_aux=True)(*at)
        p = update_p(p, g, held.u, held.q_before, rho=rho, eta=eta)
        return weights, held._replace(p=p), p + held.u / rho, seen

    def renew_q(self, l: int, weights: Weights, held: Held, from_next: Any) -> tuple:
        """The q-step; sends q forward. Sums: |rho (q - q before)|^2, |q - f|^2."""
        if l == self.pieces.num - 1:
            return held, (), (jnp.zeros((), self.x.dtype),) * 2
        rho, alpha, _ = self.penalties
        p = self.x if l == 0 else held.p
        f = self.pieces.forward(self.exchange, l, weights.params, p)
        q = update_q(f, from_next, 0.0, rho=rho, alpha=alpha)
        return held._replace(q=q), q, (squared(rho * (q - held.q)), squared(q - f))

    def renew_u(self, l: int, held: Held, q_before: Any) -> tuple:
        """The dual step at the piece's input. Sum: |p - q|^2."""
        if l == 0:
            return held, (jnp.zeros((), self.x.dtype),)
        u = update_u(held.u, held.p, q_before, rho=self.penalties.rho)
        return held._replace(u=u, q_before=q_before), (squared(held.p - q_before),)

    def _objective(self, W, p, q, y, l: int) -> tuple:
        """R or Omega_l summed over the samples at hand, and (loss, number right)."""
        f = self.pieces.forward(self.exchange, l, W, p)
        if l < self.pieces.num - 1:
            zero = jnp.zeros((), p.dtype)
            return self.penalties.alpha / 2 * squared(q - f), (zero, zero)
        loss = self.pieces.loss.value(f, y).sum()
        return loss, (loss, self.pieces.loss.correct(f, y).sum())

    def _pick(self, a: Array, columns: Array) -> Array:
        """Row columns[i] of stratum i, for all strata that live here."""
        return a[jnp.arange(columns.size) * self.strata.each + columns]


def draw(key: Array, strata: int, per_stratum: int, steps: int) -> Array:
    """[steps, strata] which sample of each stratum a minibatch takes; an epoch takes each once."""
    epochs = -(-steps // per_stratum)
    order = jnp.broadcast_to(jnp.arange(per_stratum), (epochs * strata, per_stratum))
    order = jax.random.permutation(key, order, axis=1, independent=True)
    return order.reshape(epochs, strata, per_stratum).swapaxes(1, 2).reshape(-1, strata)[:steps]
