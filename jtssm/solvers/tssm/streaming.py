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

from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import float_dtype, floats_of, num_samples, stacked, zeros
from jtssm.protocol.declared import Declared, Move, Run
from jtssm.protocol.exchange import Carried, Exchange
from jtssm.protocol.info import Info, measured
from jtssm.protocol.method import Method
from jtssm.protocol.program import Batch
from jtssm.solvers.pieces import Pieces
from jtssm.solvers.quantise import Crossing, rounded
from jtssm.solvers.tssm.turn import Kept, Rule, Turn
from jtssm.solvers.tssm.updates import Penalties
from jtssm.solvers.weighing import total_weight


def delays(num: int) -> list[int]:
    """How many minibatches old the gradients of each of `num` subnetworks are: 2(n - l), l = 1 .. n.

    That is, how often the subnetwork steps between its forward pass on a minibatch and the step
    that this minibatch causes, in the first of its sweeps.
    """
    return [2 * (num - 1 - l) for l in range(num)]


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
    # [2(n - 1) + 2K - 1] which of the last minibatches really entered; of a loss with weights their sum,
    # 0 for one that did not
    live: Array
    tick: Array  # [] int32
    penalties: Penalties  # scalars
    key: Array | None  # of dropout; None: no layer draws
    pace: Array  # [] what the steps of W (and of p with K > 1) are multiplied by: see `fit`


Tick = Callable[..., tuple[State, Info]]  # (exchange, state, x, y, whether a minibatch enters)


def method(
    rule: Rule,
    pieces: Pieces,
    batch_size: int,
    penalties: Penalties,
    sweeps: int,
    precision: str | None,
    crossing: Crossing,
) -> Method:
    """The streaming schedule; arguments are checked by `jtssm.solvers.tssm`."""

    tick = _tick(rule, pieces, sweeps, crossing)
    samples = dict.fromkeys(("forward", "backward"), "samples")
    lines = dict.fromkeys(("inputs", "kept"), "line")
    return pieces.program(
        rule.name,
        {"weights": "weights", **samples, **lines, "labels": (None, "pc")},
        _declared(rule, pieces, sweeps, crossing),
        Batch(batch_size, (batch_size,)),
        precision,
        init=_init(rule, pieces, batch_size, penalties, sweeps, crossing),
        step=lambda exchange, state, x, y: tick(exchange, state, x, y, True),
        drain=_drain(tick, pieces),
        estimate=pieces.estimate,
    ).on_one_device()


def _declared(rule: Rule, pieces: Pieces, sweeps: int, crossing: Crossing) -> Declared:
    def moves(samples: int) -> tuple[Move, ...]:
        ends = {"forward": "f", "backward": rule.sends}
        crossed = pieces.boundary_moves(samples, sweeps, **ends, crossing=crossing)
        return (*crossed, *pieces.gradient_moves(sweeps), *pieces.loss_moves(sweeps))

    def work(l: int, samples: int) -> tuple[Run]:
        # all but the last piece run forward once more, on the minibatch that comes in
        more = int(l < pieces.num - 1)  # and the last sweep's gradient needs no f
        return (Run(samples, sweeps + more, sweeps, sweeps, first=l > 0, unused=more),)

    sums = 3 + (len(rule.shows) if pieces.num > 1 else 0)
    return Declared(moves, work, sums, shows=rule.shows, weighed_first=True)


def _init(
    rule: Rule,
    pieces: Pieces,
    batch_size: int,
    penalties: Penalties,
    sweeps: int,
    crossing: Crossing,
) -> Callable[..., State]:
    n = pieces.num

    def init(exchange: Exchange, key: Array, x: Tree, y: Array, params: Carried | None) -> State:
        b, dtype = batch_size // exchange.samples.num_splits, float_dtype(x)

        def empty(l: int) -> tuple[Tree, Tree, Tree, tuple[Kept, ...]]:
            def blank(piece: int, *lead: int) -> Tree:
                return zeros(stacked(pieces.arriving(piece), *lead, b, dtype=dtype))

            inner, last = l > 0, l == n - 1
            own = blank(l, 2)
            e = floats_of(own)
            labels = jnp.zeros((2, b, *y.shape[1:]), y.dtype) if last else ()
            kept = (
                Kept((), e, e if rule.dual else (), labels) if inner else Kept(own, (), (), labels)
            )
            came = rounded(crossing.forward, blank(l)) if inner else blank(l)
            forward = (came,) * sweeps if inner else ()
            backward: tuple[Tree, ...] = ()
            if not last:
                backward = (rounded(crossing.backward, floats_of(blank(l + 1))),) * sweeps
            # of minibatches that never entered: any numbers will do
            line = lambda a: jnp.zeros((2 * (n - 1 - l), *a.shape), a.dtype)
            waiting = () if last else jax.tree.map(line, came)
            return forward, backward, waiting, (kept,) * (sweeps - 1)

        weights = pieces.weights(exchange, key, dtype, params)
        forward, backward, inputs, kept = exchange.each(
            empty, kinds=("samples", "samples", "line", "line")
        )
        labels = jnp.zeros((n, b, *y.shape[1:]), y.dtype)
        entered = bool if pieces.loss.weight is None else dtype
        live = jnp.zeros(2 * (n - 1) + 2 * sweeps - 1, entered)
        return State(
            weights,
            forward,
            backward,
            inputs,
            kept,
            labels,
            live,
            jnp.zeros((), jnp.int32),
            penalties.as_arrays(dtype),
            key if pieces.network.random else None,
            jnp.ones((), dtype),
        )

    return init


def _tick(rule: Rule, pieces: Pieces, sweeps: int, crossing: Crossing) -> Tick:
    def tick(
        exchange: Exchange, state: State, x: Tree, y: Array, entering: bool
    ) -> tuple[State, Info]:
        t, n = state.tick, pieces.num
        samples = num_samples(x) * exchange.samples.num_splits
        labels = state.labels.at[t % n].set(y)
        weight = _weight(pieces, exchange, y, state.live.dtype) if entering else False
        live = state.live.at[t % state.live.size].set(weight)
        eta = state.penalties.eta
        if eta is None:
            eta = rule.default_eta(state.penalties, sweeps)
        if sweeps > 1:  # with one sweep eta is no step: it makes v the back-propagated gradient
            eta = state.pace * eta
        turn = Turn(
            rule,
            pieces,
            exchange,
            x,
            labels[(t + 1) % n],
            live,
            t,
            state.penalties._replace(eta=eta),
            state.pace,
            sweeps,
            samples,
            state.key,
            crossing,
        )
        weights, entry, made, sums = _sweeps(turn, exchange, state, t)
        ahead, behind, kept = made
        forward, backward = exchange.swap(ahead, behind)
        state = State(
            weights,
            forward,
            backward,
            exchange.ring.store(state.inputs, entry, t),
            exchange.ring.store(state.kept, kept, t),
            labels,
            live,
            t + 1,
            state.penalties,
            state.key,
            state.pace,
        )
        return state, _info(rule, exchange.samples.total(sums), samples)

    return tick


def _sweeps(
    turn: Turn, exchange: Exchange, state: State, t: Array
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
        weights = exchange.renew(turn.descend, weights, gradient, where=turn.lives(s), after=made)
        sums = seen if sums is None else jax.tree.map(jnp.add, sums, seen)
    return weights, entry, tuple(made), sums


def _weight(pieces: Pieces, exchange: Exchange, y: Array, dtype: DTypeLike) -> Array | bool:
    """What `State.live` says of a minibatch that enters."""
    total = total_weight(pieces.loss, y, exchange.samples.sum, dtype)
    return True if total is None else total


def _info(rule: Rule, totals: Sequence[Array], samples: int) -> Info:
    loss, right, weight, *squares = totals
    mean = jnp.where(weight > 0, 1 / weight, 0)
    # of a single piece 0 by construction
    squares = squares or [jnp.zeros_like(loss)] * len(rule.shows)
    residuals = (jnp.sqrt(a * (1 / jnp.full_like(weight, samples))) for a in squares)
    shown = dict(zip(rule.shows, residuals, strict=True))
    return measured(Info(loss * mean, right * mean, weight, shown))


def _drain(tick: Tick, pieces: Pieces) -> Callable[[Exchange, State], State]:
    def drain(exchange: Exchange, state: State) -> State:
        dtype = jnp.result_type(state.penalties.alpha)
        x = zeros(stacked(pieces.arriving(0), state.labels.shape[1], dtype=dtype))
        y = jnp.zeros_like(state.labels[0])
        rest = state.live.size - 1
        return lax.fori_loop(0, rest, lambda _, s: tick(exchange, s, x, y, False)[0], state)

    return drain
