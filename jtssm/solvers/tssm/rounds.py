r"""Local steps of cut networks: workers along "pc" run streams of their own and meet every R minibatches.

Worker w holds a copy of all subnetworks and of everything that a streaming schedule keeps
(`jtssm.solvers.tssm.streaming`). A step is a round:

    for r = 1 .. R:   W_w, in flight_w <- tick of the schedule on minibatch [r, w]    (all w in parallel)
    W <- mean over w of W_w, or the outer optimizer's step (`jtssm.solvers.workers.outer`);  W_w <- W

So every minibatch crosses the boundaries, along "subnet", and weights cross "pc" once in R. What is in
flight, duals and optimizers' states stay with their worker, as in local SGD; to a minibatch in flight a
meeting is one more step of the weights. A piece that took no turn in a round (a pipeline that fills or
drains, minibatches without weight) takes no step of its outer optimizer either.

Draining runs what is in flight to its end, then meets. With one subnetwork and one sweep nothing is in
flight: this is local SGD with its workers along "pc", and what `sgd` does with `workers`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jtssm.arrays import Array, Tree
from jtssm.protocol.declared import Declared, Move
from jtssm.protocol.exchange import Carried, Exchange
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method
from jtssm.protocol.program import Batch
from jtssm.solvers.microbatches import microbatches
from jtssm.solvers.tssm import streaming
from jtssm.solvers.tssm.crew import Crew
from jtssm.solvers.tssm.flow import Flow, State, summed_scan
from jtssm.solvers.tssm.turn import delay
from jtssm.solvers.tssm.updates import Penalties


def method(flow: Flow, crew: Crew, penalties: Penalties, precision: str | None) -> Method:
    """The schedule of a crew; arguments are checked by those that call.  flow: with that crew."""
    pieces, rule = flow.pieces, flow.rule
    taken = crew.local_steps * crew.num * flow.samples

    def step(exchange: Exchange, state: State, x: Tree, y: Array) -> tuple[State, Info]:
        """A round: x [R, N, b, ...], y [R, N, b, ...]; what it shows is of all its minibatches."""
        state, sums = _round(flow, crew, exchange, state, (x, y))
        return state, streaming.info(rule, exchange.samples.total(sums), taken)

    def drain(exchange: Exchange, state: State) -> State:
        return _round(flow, crew, exchange, state, None)[0] if flow.last else state

    kinds: dict[str, str | tuple[str | None, ...]] = {
        "weights": "weights",
        "opt_states": "samples",
        **({"summed": "samples"} if flow.recipe.microbatches > 1 else {}),
        "labels": (None, "pc"),
        "live": (None, "pc") if flow.weighted else (),
    }
    return pieces.program(
        rule.name,
        {**kinds, **streaming.KINDS},
        _declared(flow, crew),
        Batch(
            flow.samples,
            (crew.local_steps, crew.num, flow.samples),
            (None, "pc"),
            microbatches=flow.recipe.microbatches,
        ),
        precision,
        init=partial(streaming.init, flow, penalties),
        step=step,
        drain=drain,
        estimate=pieces.estimate,
        start=partial(crew.start, pieces),
        weight_fields=("weights", "opt_states", "summed"),
    ).on_one_device()


def _round(
    flow: Flow, crew: Crew, exchange: Exchange, state: State, batches: tuple[Tree, Array] | None
) -> tuple[State, Carried]:
    """(the state, sums of every piece) after the ticks of minibatches [R, N, b, ...] and a meeting.

    batches: None: as many ticks as empty the pipeline, in which nothing enters.
    """
    copies = crew.copies(exchange, state.weights, state.opt_states)
    inner = state._replace(weights=copies, opt_states=(), summed=_as(exchange, "copies", state))

    def tick(inner: State, batch: tuple | None) -> tuple[State, tuple[Carried, Array]]:
        given = flow.blank(exchange, inner) if batch is None else batch
        inner, sums = flow.tick(exchange, inner, *given)
        return inner, (sums, _turns(flow, inner))

    ticks = None if batches is None else _ticks(flow, exchange, state, *batches)
    inner, (sums, turns) = summed_scan(tick, inner, ticks, flow.last)
    inner = inner if batches is not None else flow.empty(inner)
    found = crew.met(exchange, state.weights, inner.weights, turns)
    summed = _as(exchange, "samples", inner)
    return inner._replace(weights=found[0], opt_states=found[1], summed=summed), sums


def _as(exchange: Exchange, kind: str, state: State) -> Carried:
    """`State.summed` carried as another kind: within a round it lies as the workers' weights do."""
    if isinstance(state.summed, tuple) and not state.summed:
        return ()
    return exchange.each(lambda l, summed: (summed,), state.summed, kinds=(kind,))[0]


def _ticks(flow: Flow, exchange: Exchange, state: State, x: Tree, y: Array) -> tuple:
    """x, y [R, N, b, ...], and the weights of their minibatches, as what R M ticks take."""
    parts = flow.recipe.microbatches
    weight = jax.vmap(lambda y: flow.weight(exchange, y, state.live.dtype))(y)
    row = lambda a: jnp.moveaxis(a, 0, 1).reshape(-1, *a.shape[2:])
    x, y = jax.tree.map(row, microbatches((x, y), parts, axis=2))
    return x, y, jnp.repeat(weight, parts, axis=0)


def _turns(flow: Flow, state: State) -> Array:
    """How many turns each piece took in the last tick, [n]; or their samples' weights, [n, N]."""
    n, ticks, t = flow.pieces.num, len(state.live), state.tick - 1
    delays = jnp.asarray([[delay(n, l, s) for s in range(flow.sweeps)] for l in range(n)])
    return state.live[(t - delays) % ticks].sum(axis=1)


def _declared(flow: Flow, crew: Crew) -> Declared:
    pieces, parts = flow.pieces, flow.recipe.microbatches
    ticks, samples = crew.local_steps * parts, crew.num * flow.samples // parts

    def moves(_: int) -> tuple[Move, ...]:
        return *streaming.boundary_moves(flow, samples, flow.sweeps * ticks), *crew.moves(pieces)

    return Declared(
        moves,
        lambda l, _: (streaming.run_of(flow, l, samples, ticks),),
        streaming.num_sums(flow),
        splits_layers=False,
        how="with workers",
        shows=flow.rule.shows,
        swaps=True,
        apart=True,
        in_turn=parts > 1,
    )
