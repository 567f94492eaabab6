r"""A synchronous pipeline: subnetworks on devices of their own, flushed after every minibatch.

Of a minibatch of B samples in M microbatches, with f_l the outputs of subnetwork l and R the loss:

    forward   p_{l+1} = f_l(W_l, p_l)                      microbatch after microbatch
    backward  g_l, g_{W_l} += gradients of <g_{l+1}, f_l>  (l < n) or of R / B  (l = n)
    step      W_l <- optimizer(W_l, g_{W_l})               once the last microbatch is through

in the order "1f1b" or "gpipe" (`jtssm.solvers.pipelines.orders`). Every gradient is taken at the weights
of the same step, so the numbers are those of `sgd`; for that n - 1 of M + n - 1 turns are waited for.
Streaming gsADMM (`jtssm.solvers.tssm.streaming`) has the same subnetworks, boundaries and mesh, and never
waits.

A subnetwork keeps its inputs and runs forward again when it runs backward, as `jax.checkpoint` would (the
last one runs once). Gradients are summed over "pc" once a minibatch.

Departs from the papers:
- One tick of "1f1b" is a microbatch forward and another backward, after which neighbours tell each other
  both at once. Subnetwork l, from 1, keeps 2 (n - l) microbatches' inputs where theirs keeps n - l + 1
  microbatches' activations.
- Sources: Huang et al., arXiv 1811.06965 (GPipe, which runs forward again too); Narayanan et al., arXiv
  2104.04473 (1F1B with a flush, which may keep activations instead).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jtssm import checks, losses
from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import float_dtype
from jtssm.nn.cuts import cut
from jtssm.nn.network import Network
from jtssm.protocol import sample_checks
from jtssm.protocol.arguments import documented
from jtssm.protocol.declared import SUMMED, Declared, Move, Run
from jtssm.protocol.exchange import Carried, Exchange
from jtssm.protocol.info import Info, measured
from jtssm.protocol.method import Method
from jtssm.protocol.piece_optimizers import of_pieces
from jtssm.protocol.program import Batch
from jtssm.protocol.settings import recorded
from jtssm.solvers.pieces import Pieces, Weights
from jtssm.solvers.pipelines.minibatch import Gradient, Minibatch
from jtssm.solvers.pipelines.orders import Order, order_of
from jtssm.solvers.weighing import means, total_weight


class State(NamedTuple):
    """What the next step needs: nothing is in flight between two."""

    weights: Carried  # Weights, one a subnetwork
    key: Array | None  # of the next minibatch's dropout; None: no layer draws
    pace: Array  # [] what the optimizer's updates are multiplied by: 1, less after a divergence


@recorded()
@documented()
def pipeline(
    net: Network,
    *,
    optimizer: optax.GradientTransformation
    | optax.MultiSteps
    | Sequence[optax.GradientTransformation | optax.MultiSteps],
    batch_size: int,
    microbatches: int | None = None,
    subnets: int | None = None,
    cuts: Sequence[int] | None = None,
    balance: str = "forward",
    schedule: str = "1f1b",
    loss: str | losses.Loss = "cross_entropy",
    precision: str | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Method:
    """Synchronous pipeline-parallel descent, the numbers of `sgd`: what gsADMM does not wait for.

    Layers that take statistics over samples ("batch", "running") take those of a microbatch, as pipelines
    do: there the numbers are those of `sgd` with microbatches=1 alone.

    Args:
      net: the network; its layers are never cut themselves.
      optimizer: an optax optimizer, or a sequence of n, one a subnetwork. It sees the layers of the whole
        network, the arrays of its subnetwork, the gradient of the minibatch's mean loss, and as `value`
        that loss; a norm is its subnetwork's (`sgd`: the network's).
      batch_size: samples of a whole minibatch, all microbatches and devices together.
      microbatches: M, into which the samples of each device of "pc" are divided: a divisor of batch_size
        / pc. n - 1 of M + n - 1 turns are waited for. None: the smallest divisor of batch_size that is at
        least 2 n, else batch_size; 1 if n is 1.
      subnets: n, from 1 (gradients added up, None) to the number of layers; cut by `balance`.
      cuts: instead of subnets, the first layer of every subnetwork but the first.
      balance: what is as equal as can be of n subnetworks: "forward", multiply-adds of a pass forward;
        "work", of a step, in which a subnetwork that is not the last runs forward once more; "memory",
        parameters.
      schedule: "1f1b": backward as soon as may be, so that subnetwork l, from 1, keeps the inputs of
        2 (n - l) microbatches; "gpipe": all forward, then all backward, it keeps those of all M.

    Raises:
      ValueError: bad arguments; from `init`, bad samples; from `step`, wrong shapes or dtypes; from
        `sharding.place`, a "pc" of which a device's samples are no multiple of M.

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import solvers
      >>> from jtssm.data import synthetic
      >>> net = jtssm.mlp([4, 8, 8, 3])
      >>> ways = {"optimizer": optax.adam(1e-2), "batch_size": 40}
      >>> method = solvers.pipeline(net, subnets=3, microbatches=4, **ways)
      >>> x, y = synthetic.separable(0, 40, 4, 3)
      >>> state = method.init(jax.random.key(0), x, y)
      >>> state, info = jax.jit(method.step)(state, x, y)
      >>> method.predict(state, x).shape
      (40, 3)
    """
    (batch_size,) = checks.count(batch_size=batch_size)
    checks.precision(precision)
    starts = cut(net, subnets, cuts, balance=balance)
    sample_checks.floats_cross(net, starts, "pipeline")
    order = order_of(schedule, len(starts) - 1, microbatches, batch_size)
    each, dtype = of_pieces(optimizer, net, starts), checks.compute_dtype(compute_dtype)
    pieces = Pieces(net, starts, each, losses.find(loss), dtype)
    return pieces.program(
        "pipeline",
        {"weights": "weights"},
        _declared(pieces, order),
        Batch(batch_size, (batch_size,), microbatches=order.microbatches),
        precision,
        init=partial(_init, pieces),
        step=partial(_step, pieces, order, batch_size),
        estimate=pieces.estimate,
    ).on_one_device()


def _init(
    pieces: Pieces, exchange: Exchange, key: Array, x: Tree, y: Array, params: Carried | None
) -> State:
    dtype = float_dtype(x)
    weights = pieces.weights(exchange, key, dtype, params)
    return State(weights, key if pieces.network.random else None, jnp.ones((), dtype))


def _step(
    pieces: Pieces,
    order: Order,
    samples: int,
    exchange: Exchange,
    state: State,
    x: Tree,
    y: Array,
) -> tuple[State, Info]:
    total = total_weight(pieces.loss, y, exchange.samples.sum, state.pace.dtype)
    key, draw = (None, None) if state.key is None else jax.random.split(state.key)
    work = Minibatch(pieces, exchange, order, samples, x, y, total, draw)
    gradient, sums = work.run(state.weights)
    info = measured(Info(*means(exchange.samples.total(sums), samples), {}))

    def descend(l: int, weights: Weights, gradient: Gradient) -> Weights:
        return pieces.descend(l, weights, gradient[0], True, state.pace, info.loss)

    counts = jnp.full(pieces.num, True if total is None else total > 0)
    weights = exchange.renew(descend, state.weights, gradient, where=counts)
    return State(weights, key, state.pace), info


def _declared(pieces: Pieces, order: Order) -> Declared:
    num, each, last = pieces.num, order.microbatches, pieces.num - 1

    def moves(samples: int) -> tuple[Move, ...]:
        ticks = each + order.idle  # neighbours tell each other something in all of them
        there_and_back = pieces.boundary_moves(
            samples // each, ticks, forward="f", backward="gradient of f"
        )
        return (*there_and_back, *pieces.gradient_moves(1))

    def work(l: int, samples: int) -> tuple[Run, ...]:
        again = each if l < last else 0
        passes = each + again, each, each
        beside = SUMMED * each
        return (Run(samples // each, *passes, l > 0, again, steps=1, beside=beside),)

    return Declared(
        moves,
        work,
        sums=2 if pieces.loss.weight is None else 3,
        swaps=order.name == "1f1b",
        weighed_first=True,
        idle=tuple(map(order.left_out, range(num))),
        stored=tuple(order.kept(l) for l in range(num)),
        sums_once=True,
    )
