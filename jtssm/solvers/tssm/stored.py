"""Methods that store variables for every sample: their state, their minibatches, their W-steps.

The M samples are seen as batch_size strata of M / batch_size neighbours; every epoch draws one
permutation a stratum, and a minibatch takes one sample of each. So a minibatch is the same set of
samples on any mesh, and no sample moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jtssm.arrays import Array, Scalar, Tree
from jtssm.nn.boundary import float_dtype
from jtssm.protocol.declared import Declared, Move, Run
from jtssm.protocol.exchange import Carried, Exchange
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method
from jtssm.protocol.program import Batch
from jtssm.solvers.pieces import Pieces, Weights
from jtssm.solvers.tssm.updates import Penalties, squared
from jtssm.solvers.weighing import Weighing, weigh


class State(NamedTuple):
    """What the next step needs."""

    weights: Carried  # Weights
    held: Carried  # variables of every sample, leaves [M, ...]
    key: Array  # draws the minibatches
    penalties: Penalties  # scalars
    # [] what the optimizer's updates and the steps of p are multiplied by: 1, less after a divergence
    pace: Array


Swept = tuple[Carried, Carried, Info]  # weights, held, what a sweep showed
Seen = tuple[Array, Array]  # sums over samples: loss, number right
Omega = tuple[Array, tuple[Array, Seen]]  # R or Omega_l summed over samples, with f_l


class StoredRule(NamedTuple):
    """What tells one stored method from another."""

    name: str
    # (l, p_l, f_l of the first forward pass, whether l is the last) -> held
    hold: Callable[[int, Array, Array, bool], Tree]
    # (Sweep, weights, held, penalties) -> (weights, held, Info)
    sweep: Callable[[Sweep, Carried, Carried, Penalties], Swept]
    forward: str  # what goes forward over a boundary
    backward: str
    # (l, number of pieces) -> how often piece l runs forward, but for its W-steps
    passes: Callable[[int, int], int]
    shows: tuple[str, ...]  # names of its residuals


def to_renew_and_to_send(l: int, num: int) -> int:
    """Passes forward of piece l: one for the p-step (or the loss), one after it for its neighbour."""
    return (l > 0 or num == 1) + (l < num - 1)


class Strata(NamedTuple):
    """How the samples are divided: a minibatch takes one of each stratum."""

    num: int
    each: int  # samples in one

    def draw(self, key: Array, steps: int) -> Array:
        """[steps, num] which sample of each stratum a minibatch takes; an epoch takes each once."""
        epochs = -(-steps // self.each)
        order = jnp.broadcast_to(jnp.arange(self.each), (epochs * self.num, self.each))
        order = jax.random.permutation(key, order, axis=1, independent=True)
        order = order.reshape(epochs, self.num, self.each)
        return order.swapaxes(1, 2).reshape(-1, self.num)[:steps]


class Sweep(NamedTuple):
    """The samples at hand and the minibatches of one sweep, as all pieces see them."""

    pieces: Pieces
    exchange: Exchange
    x: Array  # [M, ...]
    y: Array  # [M, ...]
    alpha: Scalar  # weight of |q - f|^2
    pace: Scalar  # of the steps of W and p
    strata: Strata
    draws: Array  # [weight steps, strata] which sample of each stratum a minibatch takes

    def train(self, l: int, weights: Weights, p: Array, q: Tree) -> Weights:
        """W-steps of piece l, each on a minibatch of (p_l, q_l)."""

        def weight_step(weights: Weights, columns: Array) -> tuple[Weights, None]:
            p_, q_, y_ = jax.tree.map(lambda a: self._pick(a, columns), (p, q, self.y))
            weighing = self._weighing(l, y_, self.strata.num)
            own = lambda W: self.pieces.joined(self.exchange, l, W)
            mean = lambda W: self._objective(l, own(W), p_, q_, weighing)[0] / self.strata.num
            loss, gradient = jax.value_and_grad(mean)(weights.params)
            told = self.exchange.samples.sum(loss) if self.pieces.wants_loss(l) else None
            live = True if weighing is None else weighing.counts
            return self.pieces.descend(l, weights, gradient, live, self.pace, told), None

        return lax.scan(weight_step, weights, self.draws)[0]

    def follows(self, l: int, weights: Weights, q: Tree) -> Callable[[Array], Omega]:
        """p_l -> (R or Omega_l summed over all samples at hand, (f_l, (loss, number right)))."""
        weighing = self._weighing(l, self.y, self._count)
        return lambda p: self._objective(l, weights.params, p, q, weighing)

    def info(self, seen: Carried, **squares: Carried) -> Info:
        """Means over all samples, those of other devices too.

        seen: carried (loss, number right); squares: by name, carried sums of a residual's squares.
        """
        total, count = self.exchange.samples.total, self._count
        loss, right = (a / count for a in total(seen))
        shown = {name: jnp.sqrt(total(a) / count) for name, a in squares.items()}
        return Info(loss, right, jnp.full_like(loss, count), shown)

    @property
    def dtype(self) -> np.dtype:
        """Of parameters and variables; tokens are integers."""
        return float_dtype(self.x)

    @property
    def _count(self) -> int:
        return self.strata.num * self.strata.each

    def _weighing(self, l: int, y: Array, samples: int) -> Weighing | None:
        """The loss of the last piece on a minibatch; the others have none."""
        if l < self.pieces.num - 1:
            return None
        return weigh(self.pieces.loss, y, samples, self.exchange.samples.sum, self.dtype)

    def _objective(
        self, l: int, W: list[Tree], p: Array, q: Tree, weighing: Weighing | None
    ) -> Omega:
        f = self.pieces.forward(self.exchange, l, W, p)
        if weighing is None:
            zero = jnp.zeros((), self.dtype)
            return self.alpha / 2 * squared(q - f), (f, (zero, zero))
        loss, sums = weighing.scaled(f)
        return loss, (f, (loss, sums.right * weighing.scale))

    def _pick(self, a: Array, columns: Array) -> Array:
        """Row columns[i] of stratum i, for all strata that live here."""
        return a[jnp.arange(columns.size) * self.strata.each + columns]


def method(
    rule: StoredRule,
    pieces: Pieces,
    batch_size: int,
    penalties: Penalties,
    sweeps: int,
    precision: str | None,
    weight_steps: int | None,
) -> Method:
    """A stored schedule; arguments are checked by `jtssm.solvers.tssm`."""

    def step(exchange: Exchange, state: State, x: Array, y: Array) -> tuple[State, Info]:
        for _ in range(sweeps):
            key, draw_key = jax.random.split(state.key)
            at = _samples(exchange, x, y, state.penalties.alpha, state.pace, draw_key)
            weights, held, info = rule.sweep(at, state.weights, state.held, state.penalties)
            state = state._replace(weights=weights, held=held, key=key)
        return state, info

    def _samples(
        exchange: Exchange, x: Array, y: Array, alpha: Scalar, pace: Scalar, key: Array
    ) -> Sweep:
        strata = Strata(batch_size, x.shape[0] * exchange.samples.num_splits // batch_size)
        draws = strata.draw(key, weight_steps or strata.each)
        draws = exchange.samples.own(draws.T).T  # columns: the strata that live here
        return Sweep(pieces, exchange, x, y, alpha, pace, strata, draws)

    def moves(samples: int) -> tuple[Move, ...]:
        steps = weight_steps or samples // batch_size
        crossing = pieces.boundary_moves(
            samples, sweeps, forward=rule.forward, backward=rule.backward
        )
        trained = (pieces.gradient_moves(sweeps * steps), pieces.loss_moves(sweeps * steps))
        return (*crossing, *trained[0], *trained[1])

    def work(l: int, samples: int) -> tuple[Run, ...]:
        steps = sweeps * (weight_steps or samples // batch_size)
        passes = sweeps * rule.passes(l, pieces.num)
        return (
            Run(batch_size, steps, steps, steps, first=False),
            Run(samples, passes, 0, sweeps * (l > 0), first=True),
        )

    return pieces.program(
        rule.name,
        {"weights": "weights", "held": "samples"},
        Declared(
            moves,
            work,
            sums=2 + len(rule.shows),
            shows=rule.shows,
            weighings=lambda samples: sweeps * ((weight_steps or samples // batch_size) + 1),
        ),
        Batch(batch_size, None, resident=True),
        precision,
        init=_init(rule, pieces, penalties),
        step=step,
    ).on_one_device()


def _init(rule: StoredRule, pieces: Pieces, penalties: Penalties) -> Callable[..., State]:
    def init(exchange: Exchange, key: Array, x: Array, y: Array, params: Carried | None) -> State:
        weights_key, key = jax.random.split(key)
        dtype = float_dtype(x)
        weights = pieces.weights(exchange, weights_key, dtype, params)
        run = lambda l, weights, p: pieces.forward(exchange, l, weights.params, p)
        _, inputs, outputs = exchange.chain(run, weights, x=x, keep=True)
        hold = lambda l, p, f: (rule.hold(l, p, f, l == pieces.num - 1),)
        (held,) = exchange.each(hold, inputs, outputs, kinds=("samples",))
        return State(weights, held, key, penalties.as_arrays(dtype), jnp.ones((), dtype))

    return init
