"""A network's pieces at a tick of the streaming schedule: what is in flight, and what becomes of it.

The schedule stands in `jtssm.solvers.tssm.streaming`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jtssm.arrays import Array, Scalar, Tree
from jtssm.nn.boundary import stacked, zeros
from jtssm.protocol.exchange import Carried, Exchange
from jtssm.solvers.pieces import Pieces
from jtssm.solvers.quantise import UNROUNDED, Crossing
from jtssm.solvers.tssm.ahead import Recipe
from jtssm.solvers.tssm.crew import Crew, CrewTurn
from jtssm.solvers.tssm.rules import Rule
from jtssm.solvers.tssm.turn import Turn
from jtssm.solvers.tssm.updates import Penalties
from jtssm.solvers.weighing import total_weight


class State(NamedTuple):
    """What the next tick needs; n pieces, b samples, K sweeps, `Carried` = one tree a piece."""

    weights: Carried  # Weights
    forward: (
        Carried  # tuple of K f_{l-1} [b, ...] that arrived, arrays or trees; the first is fresh
    )
    backward: Carried  # tuple of K v_l [b, ...] that arrived, one a sweep: of the floats of f_l
    # line [2(n - l), b, ...] of inputs that await their first sweep; with recompute=False of what their
    # gradients need, rows [b, numbers]
    inputs: Carried
    kept: Carried  # line of K - 1 Kept, leaves [2, b, ...]
    labels: Array  # [n, b, ...] y of the minibatches on their way to the last piece
    # [2(n - 1) + 2K - 1, and 2(n - 1) more where weights are predicted] which of the last microbatches
    # really entered; of a loss with weights the sum of their minibatch's, 0 for one that did not
    live: Array
    tick: Array  # [] int32
    penalties: Penalties  # scalars
    key: Array | None  # of dropout; None: no layer draws
    pace: Array  # [] what the steps of W (and of p with K > 1) are multiplied by: see `fit`
    # (gradient, loss) of the microbatches of a minibatch so far, of the samples here; () where M is 1
    summed: Carried
    opt_states: (
        Carried  # of workers (`jtssm.solvers.tssm.rounds`): [N, ...] their optimizers'; else ()
    )


class Flow(NamedTuple):
    """What every tick of a method needs to know."""

    rule: Rule
    pieces: Pieces
    sweeps: int
    samples: int  # of the minibatch that a gradient sees
    recipe: Recipe = Recipe()
    crossing: Crossing = UNROUNDED  # what f and v are rounded to
    # workers along pc, each with a minibatch of its own; None: all devices share one
    crew: Crew | None = None

    def lead(self, exchange: Exchange) -> tuple[int, ...]:
        """The first dimensions of the samples of a microbatch that live here."""
        splits, rows = exchange.samples.num_splits, self.samples // self.recipe.microbatches
        if self.crew is None:
            return (rows // splits,)
        return self.crew.num // splits, rows

    @property
    def last(self) -> int:
        """Ticks after the entry of a microbatch until its last turn."""
        return 2 * (self.pieces.num - 1) + 2 * (self.sweeps - 1)

    @property
    def weighted(self) -> bool:
        """Whether samples have weights."""
        return self.pieces.loss.weight is not None

    @property
    def remembered(self) -> int:
        """Of how many microbatches `State.live` tells."""
        predicts = self.recipe.prediction and self.pieces.num > 1
        return self.last + 1 + (2 * (self.pieces.num - 1) if predicts else 0)

    def tick(
        self, exchange: Exchange, state: State, x: Tree, y: Array, weight: Array | bool
    ) -> tuple[State, Carried]:
        """(the state, sums of every piece as `Turn.take` gives them) after a tick.

        weight: of the minibatch of which the microbatch x, y enters, `weight`; False: none enters.
        """
        t, n = state.tick, self.pieces.num
        labels = state.labels.at[t % n].set(y)
        live = state.live.at[t % len(state.live)].set(weight)
        turn = self.turn(exchange, state._replace(live=live), x, labels[(t + 1) % n])
        own = turn if self.crew is None else self.crew.turn(turn, exchange)
        weights, summed, entry, made, sums = _sweeps(own, exchange, state, t)
        ahead, behind, kept = made
        forward, backward = exchange.swap(ahead, behind)
        state = state._replace(
            weights=weights,
            summed=summed,
            forward=forward,
            backward=backward,
            inputs=exchange.ring.store(state.inputs, entry, t),
            kept=exchange.ring.store(state.kept, kept, t),
            labels=labels,
            live=live,
            tick=t + 1,
        )
        return state, sums

    def turn(self, exchange: Exchange, state: State, x: Tree, y: Array) -> Turn:
        """The turns of all pieces at the state's tick, on the microbatches in flight.

        x: which enters.  y: labels of the one that reaches the last piece.
        """
        return Turn(
            self.rule,
            self.pieces,
            exchange,
            x,
            y,
            state.live,
            state.tick,
            state.penalties._replace(eta=self._eta(state)),
            state.pace,
            self.sweeps,
            self.samples,
            state.key,
            self.recipe,
            self.crossing,
        )

    def blank(self, exchange: Exchange, state: State) -> tuple[Tree, Array, bool]:
        """Zeros in the place of a microbatch that does not enter, and that it does not."""
        dtype = jnp.result_type(state.penalties.alpha)
        x = zeros(stacked(self.pieces.arriving(0), *self.lead(exchange), dtype=dtype))
        lead, y = self.lead(exchange), jnp.zeros_like(state.labels[0])
        # samples that differ along pc, as those that enter do: a zero of what there is of each
        none = jnp.isnan(state.labels[0].astype(dtype)).reshape(*lead, -1)[..., 0] & False
        own = lambda a: a + none.reshape(*lead, *[1] * (a.ndim - len(lead))).astype(a.dtype)
        return jax.tree.map(own, x), y, False

    def empty(self, state: State) -> State:
        """A state in which nothing is in flight any more, at whose next tick a minibatch begins."""
        parts = self.recipe.microbatches
        if parts == 1:
            return state
        tick = -(-state.tick // parts) * parts
        return state._replace(tick=tick, live=jnp.zeros_like(state.live))

    def _eta(self, state: State) -> Scalar:
        """The step length of p."""
        eta = state.penalties.eta
        if eta is None:
            eta = self.rule.default_eta(state.penalties, self.sweeps)
        # with one sweep eta is no step: it makes v the back-propagated gradient
        return state.pace * eta if self.sweeps > 1 else eta

    def weight(self, exchange: Exchange, y: Array, dtype: DTypeLike) -> Array:
        """What `State.live` says of a minibatch that enters: y of all its samples."""
        if self.weighted and self.crew is not None:
            return self.crew.weights_of(self.pieces.loss, y, dtype)
        total = total_weight(self.pieces.loss, y, exchange.samples.sum, dtype)
        return jnp.asarray(True) if total is None else total


def _sweeps(
    turn: Turn | CrewTurn, exchange: Exchange, state: State, t: Array
) -> tuple[Carried, Carried, Carried, tuple[Carried, ...], Carried]:
    """(weights, `State.summed`, what entered, (f_l, v, `Kept`) of all sweeps, sums) after a tick."""
    arrived = (
        state.forward,
        state.backward,
        exchange.ring.recall(state.inputs, t),
        exchange.ring.recall(state.kept, t),
    )
    weights, summed, entry, sums = state.weights, state.summed, None, None
    gradients = "partial_gradients" if turn.recipe.microbatches > 1 else "gradients"
    made: list[Carried] = []
    for s in range(turn.sweeps):
        gradient, fresh, *made, seen = exchange.each(
            partial(turn.take, s),
            weights,
            *arrived,
            *made,
            kinds=(gradients, *("samples",) * 4, "sums"),
        )
        entry = fresh if entry is None else entry
        weights, summed = _renewed(turn, exchange, s, weights, summed, gradient, made)
        sums = seen if sums is None else jax.tree.map(jnp.add, sums, seen)
    return weights, summed, entry, tuple(made), sums


def _renewed(
    turn: Turn | CrewTurn,
    exchange: Exchange,
    s: int,
    weights: Carried,
    summed: Carried,
    gradient: Carried,
    made: list[Carried],
) -> tuple[Carried, Carried]:
    """The weights of the pieces that a minibatch has come to its end in, and its gradients so far."""
    live = turn.lives(s)
    if turn.recipe.microbatches == 1:
        return exchange.renew(turn.descend, weights, gradient, where=live, after=made), summed
    closes = turn.closes(s) & live
    given = summed, gradient
    if isinstance(turn, Turn) and exchange.samples.num_splits > 1:
        given = exchange.each(partial(turn.total, closes), *given, kinds=("gradients",))
    weights = exchange.renew(turn.descend, weights, *given, where=closes, after=made)
    # what reads the sum so far comes before what changes it
    added = exchange.renew(turn.add, summed, gradient, where=live & ~closes, after=[weights])
    return weights, added


def summed_scan(
    tick: Callable[[State, Tree], tuple[State, Tree]],
    state: State,
    batches: Tree,
    length: int | None = None,
) -> tuple[State, Tree]:
    """(the state, what `tick` gives summed) after ticks on batches [ticks, ...], or so many on None."""
    length = length if batches is None else None
    state, found = lax.scan(tick, state, batches, length)
    return state, jax.tree.map(lambda a: a.sum(axis=0), found)
