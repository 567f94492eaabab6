r"""Minibatches in flight: at every tick all subnetworks work, on different minibatches.

Minibatch b enters at tick b. It runs forward, one subnetwork a tick, and reaches subnetwork n at
tick b + n - 1; sweep s runs backward from there, subnetwork l (from 1) taking its turn at tick
b + 2n - 1 - l + 2s. The turn of subnetwork l on a minibatch, with v_l = q_l - f_l sent by
subnetwork l + 1, p_l = f_{l-1} + e and u = u_{l-1} kept here while the minibatch is in flight:

    g_W, g_p <- gradients of (alpha/2)|q_l - f_l|^2 = (alpha/2)|v_l|^2 (l < n) or of R (l = n)
    W_l      <- optimizer(W_l, g_W / samples)
    e        <- e - eta (g_p + u + rho (e - v))         the p-step, v = u / alpha
    v        <- (rho e + u) / (alpha + rho)             the q-step of q_{l-1}
    u        <- u + rho (e - v)                         the dual step
    send v to l - 1, and f_l to l + 1 if another sweep follows

That is gsADMM; gsAM has q_l = p_{l+1} and no u, so that v = e and the p-step is

    e        <- e - eta (g_p + alpha e)

A first sweep starts from e = u = 0, that is p = q = f. A tick of a minibatch that never entered
(the first ones, and while draining) changes nothing, nor does one in which no sample has weight.

Departs from the paper:
- p_{l+1} and q_l are counted from f_l: when W_l has moved while a minibatch was in flight, both move
  along with f_l (else the stale pair pulls W_l back to where it was).
- g_W and g_p are taken at the same W_l, which halves the products; the paper takes g_p after the
  W-step.
- Subnetworks take their turns on one minibatch from the last to the first, each with its
  neighbour's newest variables; the paper updates all of them from the previous iteration's.
- Where subnetworks hand each other trees of arrays, p, q and u are of their floats. Integers and
  booleans go forward with f_l as they are.
- With `grid` f_l and v_l cross as integers (`jtssm.solvers.quantise`). The neighbour's f_{l-1} and v_l
  are then the nearest values of the grid: p_l is counted from the f_{l-1} that arrived. Who sends keeps
  what it did not round. Integers that await their turn are stored as such.
- With one sweep u never acts, and with the default eta (1/alpha + 1/rho for gsADMM, 1/alpha for
  gsAM) v_l is -1/alpha times the back-propagated gradient: this *is* training with delayed
  gradients, those of subnetwork l being `delays(n)[l - 1]` = 2(n - l) minibatches old. gsADMM and
  gsAM are then the same method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jtssm.arrays import Array, Scalar, Tree
from jtssm.nn.boundary import float_dtype, floats_of, stacked, zeros
from jtssm.protocol.declared import Declared, Move, Run
from jtssm.protocol.exchange import Carried, Exchange
from jtssm.protocol.info import Info, measured
from jtssm.protocol.method import Method
from jtssm.protocol.program import Batch
from jtssm.solvers.pieces import Pieces
from jtssm.solvers.quantise import UNROUNDED, Crossing, rounded
from jtssm.solvers.tssm.ahead import Recipe, divided
from jtssm.solvers.tssm.crew import Crew, CrewTurn
from jtssm.solvers.tssm.turn import Kept, Rule, Turn
from jtssm.solvers.tssm.updates import Penalties
from jtssm.solvers.weighing import total_weight


class State(NamedTuple):
    """What the next tick needs; n pieces, b samples, K sweeps, `Carried` = one tree a piece."""

    weights: Carried  # Weights
    forward: (
        Carried  # tuple of K f_{l-1} [b, ...] that arrived, arrays or trees; the first is fresh
    )
    backward: Carried  # tuple of K v_l [b, ...] that arrived, one a sweep: of the floats of f_l
    inputs: Carried  # line [2(n - l), b, ...] of inputs that await their first sweep
    kept: Carried  # line of K - 1 Kept, leaves [2, b, ...]
    labels: Array  # [n, b, ...] y of the minibatches on their way to the last piece
    # [2(n - 1) + 2K - 1, and 2(n - 1) more where weights are predicted] which of the last microbatches
    # really entered; of a loss with weights the sum of their minibatch's, 0 for one that did not
    live: Array
    tick: Array  # [] int32
    penalties: Penalties  # scalars
    key: Array | None  # of dropout; None: no layer draws
    pace: Array  # [] what the steps of W (and of p with K > 1) are multiplied by: see `fit`
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
        turn = Turn(
            self.rule,
            self.pieces,
            exchange,
            x,
            labels[(t + 1) % n],
            live,
            t,
            state.penalties._replace(eta=self._eta(state)),
            state.pace,
            self.sweeps,
            self.samples,
            state.key,
            self.recipe,
            self.crossing,
        )
        own = turn if self.crew is None else self.crew.turn(turn, exchange)
        weights, entry, made, sums = _sweeps(own, exchange, state, t)
        ahead, behind, kept = made
        forward, backward = exchange.swap(ahead, behind)
        state = state._replace(
            weights=weights,
            forward=forward,
            backward=backward,
            inputs=exchange.ring.store(state.inputs, entry, t),
            kept=exchange.ring.store(state.kept, kept, t),
            labels=labels,
            live=live,
            tick=t + 1,
        )
        return state, sums

    def blank(self, exchange: Exchange, state: State) -> tuple[Tree, Array, bool]:
        """Zeros in the place of a microbatch that does not enter, and that it does not."""
        dtype = jnp.result_type(state.penalties.alpha)
        x = zeros(stacked(self.pieces.arriving(0), *self.lead(exchange), dtype=dtype))
        return x, jnp.zeros_like(state.labels[0]), False

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
) -> tuple[Carried, Carried, tuple[Carried, ...], Carried]:
    """(weights, what entered, (f_l, v, `Kept`) of all sweeps, sums) at the end of a tick."""
    arrived = (
        state.forward,
        state.backward,
        exchange.ring.recall(state.inputs, t),
        exchange.ring.recall(state.kept, t),
    )
    weights, entry, sums = state.weights, None, None
    made: list[Carried] = []
    for s in range(turn.sweeps):
        gradient, fresh, *made, seen = exchange.each(
            partial(turn.take, s),
            weights,
            *arrived,
            *made,
            kinds=("gradients", *("samples",) * 4, "sums"),
        )
        entry = fresh if entry is None else entry
        weights = _renewed(turn, exchange, s, weights, gradient, made)
        sums = seen if sums is None else jax.tree.map(jnp.add, sums, seen)
    return weights, entry, tuple(made), sums


def _renewed(
    turn: Turn | CrewTurn,
    exchange: Exchange,
    s: int,
    weights: Carried,
    gradient: Carried,
    made: list[Carried],
) -> Carried:
    """The weights of the pieces that a minibatch has come to its end in, or its gradients so far."""
    live = turn.lives(s)
    if turn.recipe.microbatches == 1:
        return exchange.renew(turn.descend, weights, gradient, where=live, after=made)
    closes = turn.closes(s)
    weights = exchange.renew(turn.add, weights, gradient, where=live & ~closes, after=made)
    return exchange.renew(turn.descend, weights, gradient, where=live & closes, after=made)


def method(flow: Flow, penalties: Penalties, precision: str | None) -> Method:
    """The streaming schedule; arguments are checked by `jtssm.solvers.tssm`."""

    def step(exchange: Exchange, state: State, x: Tree, y: Array) -> tuple[State, Info]:
        weight, parts = flow.weight(exchange, y, state.live.dtype), flow.recipe.microbatches
        if parts == 1:
            state, sums = flow.tick(exchange, state, x, y, weight)
        else:
            tick = lambda state, batch: flow.tick(exchange, state, *batch, weight)
            state, sums = summed_scan(tick, state, divided((x, y), parts))
        return state, info(flow.rule, exchange.samples.total(sums), flow.samples)

    pieces = flow.pieces
    return pieces.program(
        flow.rule.name,
        {"weights": "weights", **KINDS, "labels": (None, "pc")},
        _declared(flow),
        Batch(flow.samples, (flow.samples,), microbatches=flow.recipe.microbatches),
        precision,
        init=partial(init, flow, penalties),
        step=step,
        drain=partial(_drain, flow),
        estimate=pieces.estimate,
        start=partial(flow.recipe.start, pieces),
    ).on_one_device()


def summed_scan(
    tick: Callable[[State, Tree], tuple[State, Tree]], state: State, batches: Tree, length: int | None = None
) -> tuple[State, Tree]:
    """(the state, what `tick` gives summed) after ticks on batches [ticks, ...], or so many on None."""
    length = length if batches is None else None
    state, found = lax.scan(tick, state, batches, length)
    return state, jax.tree.map(lambda a: a.sum(axis=0), found)


KINDS: dict[str, str] = {  # of what is in flight
    **dict.fromkeys(("forward", "backward"), "samples"),
    **dict.fromkeys(("inputs", "kept"), "line"),
}


def _declared(flow: Flow) -> Declared:
    pieces, sweeps, parts = flow.pieces, flow.sweeps, flow.recipe.microbatches

    def moves(samples: int) -> tuple[Move, ...]:
        return (
            *boundary_moves(flow, samples // parts, sweeps * parts),
            *pieces.gradient_moves(sweeps * parts),
            *pieces.loss_moves(sweeps * parts),
        )

    work = lambda l, samples: (run_of(flow, l, samples // parts, parts),)
    return Declared(
        moves, work, num_sums(flow), swaps=True, shows=flow.rule.shows, weighed_first=True
    )


def boundary_moves(flow: Flow, samples: int, times: int) -> tuple[Move, ...]:
    """What crosses the boundaries, of minibatches of so many samples together."""
    ends = {"forward": "f", "backward": flow.rule.sends}
    return flow.pieces.boundary_moves(samples, times, **ends, crossing=flow.crossing)


def run_of(flow: Flow, l: int, samples: int, ticks: int) -> Run:
    """What piece l multiplies in so many ticks of microbatches of so many samples."""
    # all but the last piece run forward once more, on the minibatch that comes in
    more = int(l < flow.pieces.num - 1)  # and the last sweep's gradient needs no f
    turns = flow.sweeps * ticks
    steps = turns // flow.recipe.microbatches
    forward, unused = turns + more * ticks, more * ticks
    return Run(samples, forward, turns, turns, first=l > 0, unused=unused, steps=steps)


def num_sums(flow: Flow) -> int:
    """How many scalars a tick sums: loss, right answers, weights, squares of residuals."""
    return 3 + (len(flow.rule.shows) if flow.pieces.num > 1 else 0)


def init(
    flow: Flow,
    penalties: Penalties,
    exchange: Exchange,
    key: Array,
    x: Tree,
    y: Array,
    params: Carried | None,
) -> State:
    """The state in which nothing is in flight."""
    pieces, crew, n, dtype = flow.pieces, flow.crew, flow.pieces.num, float_dtype(x)
    lead, sweeps = flow.lead(exchange), flow.sweeps
    # a message is of the samples of one minibatch
    each = jax.vmap if crew is not None else lambda fn: fn
    ahead, behind = (each(partial(rounded, grid)) for grid in flow.crossing)

    def empty(l: int) -> tuple[Tree, Tree, Tree, tuple[Kept, ...]]:
        def blank(piece: int, *ticks: int) -> Tree:
            return zeros(stacked(pieces.arriving(piece), *ticks, *lead, dtype=dtype))

        inner, last = l > 0, l == n - 1
        own = blank(l, 2)
        e = floats_of(own)
        labels = jnp.zeros((2, *lead, *y.shape[1:]), y.dtype) if last else ()
        dual = e if flow.rule.dual else ()
        kept = Kept((), e, dual, labels) if inner else Kept(own, (), (), labels)
        came = ahead(blank(l)) if inner else blank(l)
        forward = (came,) * sweeps if inner else ()
        backward = () if last else (behind(floats_of(blank(l + 1))),) * sweeps
        # of minibatches that never entered: any numbers will do
        line = lambda a: jnp.zeros((2 * (n - 1 - l), *a.shape), a.dtype)
        waiting = () if last else jax.tree.map(line, came)
        return forward, backward, waiting, (kept,) * (sweeps - 1)

    start = partial((flow.recipe if crew is None else crew).start, pieces)
    weights = pieces.weights(exchange, key, dtype, params, start)
    forward, backward, inputs, kept = exchange.each(
        empty, kinds=("samples", "samples", "line", "line")
    )
    own = lead[:1] if crew is not None and flow.weighted else ()
    return State(
        weights,
        forward,
        backward,
        inputs,
        kept,
        labels=jnp.zeros((n, *lead, *y.shape[1:]), y.dtype),
        live=jnp.zeros((flow.remembered, *own), dtype if flow.weighted else bool),
        tick=jnp.zeros((), jnp.int32),
        penalties=penalties.as_arrays(dtype),
        key=key if pieces.network.random else None,
        pace=jnp.ones((), dtype),
        opt_states=()
        if crew is None
        else crew.opt_states(pieces, flow.recipe, exchange, weights),
    )


def info(rule: Rule, totals: Sequence[Array], samples: int) -> Info:
    """What sums over so many samples show."""
    loss, right, weight, *squares = totals
    mean = jnp.where(weight > 0, 1 / weight, 0)
    # of a single piece 0 by construction
    squares = squares or [jnp.zeros_like(loss)] * len(rule.shows)
    residuals = (jnp.sqrt(a * (1 / jnp.full_like(weight, samples))) for a in squares)
    shown = dict(zip(rule.shows, residuals, strict=True))
    return measured(Info(loss * mean, right * mean, weight, shown))


def _drain(flow: Flow, exchange: Exchange, state: State) -> State:
    blank = flow.blank(exchange, state)
    one = lambda _, state: flow.tick(exchange, state, *blank)[0]
    return flow.empty(lax.fori_loop(0, flow.last, one, state))
