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

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import float_dtype, floats_of, stacked, zeros
from jtssm.protocol.declared import SUMMED, Declared, Move, Run
from jtssm.protocol.exchange import Carried, Exchange, by_index
from jtssm.protocol.info import Info, measured
from jtssm.protocol.method import Method
from jtssm.protocol.program import Batch
from jtssm.solvers.microbatches import microbatches
from jtssm.solvers.pieces import Weights
from jtssm.solvers.quantise import rounded
from jtssm.solvers.tssm.flow import Flow, State, summed_scan
from jtssm.solvers.tssm.rules import Kept, Rule
from jtssm.solvers.tssm.updates import Penalties


def method(flow: Flow, penalties: Penalties, precision: str | None) -> Method:
    """The streaming schedule; arguments are checked by `jtssm.solvers.tssm`."""

    def step(exchange: Exchange, state: State, x: Tree, y: Array) -> tuple[State, Info]:
        weight, parts = flow.weight(exchange, y, state.live.dtype), flow.recipe.microbatches
        if parts == 1:
            state, sums = flow.tick(exchange, state, x, y, weight)
        else:
            tick = lambda state, batch: flow.tick(exchange, state, batch[0], batch[1], weight)
            state, sums = summed_scan(tick, state, microbatches((x, y), parts))
        return state, info(flow.rule, exchange.samples.total(sums), flow.samples)

    pieces = flow.pieces
    return pieces.program(
        flow.rule.name,
        {"weights": "weights", **KINDS, **_summed(flow), "labels": (None, "pc")},
        _declared(flow),
        Batch(flow.samples, (flow.samples,), microbatches=flow.recipe.microbatches),
        precision,
        init=partial(init, flow, penalties),
        step=step,
        drain=partial(_drain, flow),
        estimate=pieces.estimate,
        start=partial(flow.recipe.start, pieces),
        weight_fields=("weights", "summed"),
    ).on_one_device()


KINDS: dict[str, str] = {  # of what is in flight
    **dict.fromkeys(("forward", "backward"), "samples"),
    **dict.fromkeys(("inputs", "kept"), "line"),
}


def _summed(flow: Flow) -> dict[str, str]:
    """Of the gradients so far, where there are any."""
    return {"summed": "partial_gradients"} if flow.recipe.microbatches > 1 else {}


def _declared(flow: Flow) -> Declared:
    pieces, sweeps, parts = flow.pieces, flow.sweeps, flow.recipe.microbatches

    def moves(samples: int) -> tuple[Move, ...]:
        return (
            *boundary_moves(flow, samples // parts, sweeps * parts),
            *pieces.gradient_moves(sweeps),
            *pieces.loss_moves(sweeps),
        )

    work = lambda l, samples: (run_of(flow, l, samples // parts, parts),)
    return Declared(
        moves,
        work,
        num_sums(flow),
        splits_layers=flow.recipe.recompute,
        how="" if flow.recipe.recompute else "with recompute=False",
        swaps=True,
        shows=flow.rule.shows,
        weighed_first=True,
        sums_once=parts > 1,
        in_turn=parts > 1,
    )


def boundary_moves(flow: Flow, samples: int, times: int) -> tuple[Move, ...]:
    """What crosses the boundaries, of minibatches of so many samples together."""
    ends = {"forward": "f", "backward": flow.rule.sends}
    return flow.pieces.boundary_moves(samples, times, **ends, crossing=flow.crossing)


def run_of(flow: Flow, l: int, samples: int, ticks: int) -> Run:
    """What piece l multiplies in so many ticks of microbatches of so many samples."""
    # all but the last piece run forward once more, on the microbatch that comes in
    more = int(
        l < flow.pieces.num - 1 and flow.recipe.recompute
    )  # and the last gradient needs no f
    turns = flow.sweeps * ticks
    steps = turns // flow.recipe.microbatches
    forward, unused = turns + more * ticks, more * ticks
    # a sum is read and written, and a gradient read; the newest prediction is written, the one before
    # it read and written
    beside = SUMMED * turns * (flow.recipe.microbatches > 1)
    beside += 3 * steps * (flow.recipe.steps(flow.pieces, l) > 0)
    return Run(samples, forward, turns, turns, l > 0, unused, steps, beside)


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
    summed = _no_gradients(flow, exchange, weights)
    forward, backward, inputs, kept = exchange.each(
        empty, kinds=("samples", "samples", "line", "line")
    )
    own = lead[:1] if crew is not None and flow.weighted else ()
    opt_states = () if crew is None else crew.opt_states(pieces, flow.recipe, exchange, weights)
    state = State(
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
        summed=summed,
        opt_states=opt_states,
    )
    return state if flow.recipe.recompute else _waiting(flow, exchange, state, x)


def _no_gradients(flow: Flow, exchange: Exchange, weights: Carried) -> Carried:
    """Of a minibatch of which no microbatch has come to its turn."""
    if flow.recipe.microbatches == 1:
        return ()

    def none(l: int, weights: Weights) -> tuple[tuple[Tree, Tree]]:
        zeros = jax.tree.map(jnp.zeros_like, weights.params)
        loss = jnp.zeros((), float_dtype(zeros)) if flow.pieces.wants_loss(l) else ()
        if flow.crew is not None:
            return (flow.crew.copied(exchange, (zeros, loss)),)
        return (exchange.samples.apart((zeros, loss)),)

    kind = "partial_gradients" if flow.crew is None else "samples"
    return exchange.each(none, weights, kinds=(kind,))[0]


def _waiting(flow: Flow, exchange: Exchange, state: State, x: Tree) -> State:
    """The state with lines of what gradients need, in the place of inputs."""
    n, (*workers, samples) = flow.pieces.num, flow.lead(exchange)
    turn = flow.turn(exchange if flow.crew is None else by_index(n), state, (), state.labels[0])
    of_worker = (
        jax.tree.map(lambda a: a[0], state.live) if workers and flow.weighted else state.live
    )
    turn = turn._replace(live=of_worker)

    def line(l: int, weights: Weights, forward: tuple[Tree, ...]) -> tuple[Tree]:
        if l == n - 1:
            return ((),)
        many = lambda a: jnp.broadcast_to(a[:1], (samples, *a.shape[1:]))
        one = lambda a: a[0] if workers else a
        p = jax.tree.map(many, x) if l == 0 else turn.came(l, jax.tree.map(one, forward[0]))
        rows = jax.eval_shape(lambda p: turn.awaits(l, weights.params, p), p)
        empty = lambda a: jnp.zeros((2 * (n - 1 - l), *workers, *a.shape), a.dtype)
        return (jax.tree.map(empty, rows),)

    (inputs,) = exchange.each(line, state.weights, state.forward, kinds=("line",))
    return state._replace(inputs=inputs)


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
