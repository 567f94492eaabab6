"""Minibatch gradient descent on the whole network: the baseline.

    g <- grad of the mean loss of the minibatch;  W <- optimizer(W, g)

On a mesh the samples are split over "pc" and every layer over "pr" as its form says
(`jtssm.sharding.layers.forms`): synchronous descent, the same numbers as on one device. The gradient
is taken inside shard_map; the optimizer sees whole arrays, which jax keeps sharded: clipping by the
global norm, lamb or muon give what they give on one device. In the form "gathered" weights, gradients and
optimizer's state are split over "pr" for layers of any kind.

With `workers` these lie along "pc" and meet once in a round of local steps: `jtssm.solvers.tssm.rounds`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jtssm import checks, losses
from jtssm.arrays import Array, Tree
from jtssm.losses import Sums
from jtssm.nn.boundary import float_dtype, num_samples
from jtssm.nn.cuts import cut
from jtssm.nn.network import Network, estimate_layers
from jtssm.nn.ops import Products
from jtssm.protocol.arguments import documented
from jtssm.protocol.declared import Declared, Run
from jtssm.protocol.exchange import Carried, Exchange
from jtssm.protocol.info import Info, measured
from jtssm.protocol.method import Method
from jtssm.protocol.piece_optimizers import of_pieces
from jtssm.protocol.program import Batch
from jtssm.protocol.settings import recorded
from jtssm.protocol.whole import WholeProgram
from jtssm.solvers.pieces import Pieces, Weights, precisely, training
from jtssm.solvers.tssm import rounds
from jtssm.solvers.tssm.crew import TEXTS, crew_of
from jtssm.solvers.tssm.flow import Flow
from jtssm.solvers.tssm.rules import SGD
from jtssm.solvers.tssm.updates import Penalties
from jtssm.solvers.weighing import kept, means, weigh


class State(NamedTuple):
    """What the next step needs."""

    weights: Carried  # one Weights, the whole network's
    key: Array | None  # of the next minibatch's dropout; None: no layer draws
    pace: Array  # [] what the optimizer's updates are multiplied by: 1, less after a divergence


@recorded()
@documented(TEXTS)
def sgd(
    net: Network,
    *,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    batch_size: int,
    workers: int | None = None,
    local_steps: int | None = None,
    outer_optimizer: optax.GradientTransformation | optax.MultiSteps | None = None,
    loss: str | losses.Loss = "cross_entropy",
    precision: str | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Method:
    """End-to-end training with any optax optimizer; on a mesh model, batch and domain parallel.

    Args:
      net: the network.
      optimizer: an optax optimizer; it sees the gradient of the minibatch's mean loss and, if it wants
        one, that loss as `value`.
      batch_size: samples of the whole minibatch, all devices together; with workers one worker's.

    Raises:
      ValueError: bad arguments, an optimizer that wants more than gradient, parameters and loss; from
        `init`, bad samples; from `step`, wrong shapes or dtypes.

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import solvers
      >>> from jtssm.data import synthetic
      >>> net = jtssm.mlp([4, 8, 8, 3])
      >>> method = solvers.sgd(net, optimizer=optax.adam(1e-2), batch_size=40)
      >>> x, y = synthetic.separable(0, 40, 4, 3)
      >>> state = method.init(jax.random.key(0), x, y)
      >>> state, info = jax.jit(method.step)(state, x, y)
      >>> method.predict(state, x).shape
      (40, 3)
    """
    (batch_size,) = checks.count(batch_size=batch_size)
    checks.precision(precision)
    starts, dtype = cut(net, 1, None), checks.compute_dtype(compute_dtype)
    pieces = Pieces(net, starts, of_pieces(optimizer, net, starts), losses.find(loss), dtype)
    crew = crew_of(pieces, workers, local_steps, outer_optimizer)
    if crew is not None:  # a stream through a single piece: nothing is ever in flight
        flow = Flow(SGD, pieces, 1, batch_size, crew=crew)
        return rounds.method(flow, crew, Penalties(None, 1.0, None), precision)

    def forward(exchange: Exchange, l: int, weights: Weights, x: Tree) -> Array:
        return pieces.forward(exchange, l, weights.params, x)

    return WholeProgram(
        name="sgd",
        stages=pieces,
        batch=Batch(batch_size, (batch_size,)),
        declared=Declared(
            moves=lambda samples: pieces.gradient_moves(1),
            work=lambda l, samples: (Run(samples, 1, 1, 1, first=False),),
            sums=2 if pieces.loss.weight is None else 3,
        ),
        kinds={"weights": "weights"},
        init=precisely(precision, partial(_init, pieces)),
        gradient=precisely(precision, _gradient(pieces)),
        descend=precisely(precision, _descend(pieces)),
        forward=precisely(precision, forward),
        estimate=_estimate(pieces),
    ).on_one_device()


def _init(
    pieces: Pieces, exchange: Exchange, key: Array, x: Tree, y: Array, params: list[Tree] | None
) -> State:
    dtype = float_dtype(x)
    weights = pieces.weights(exchange, key, dtype, params)
    return State(weights, key if pieces.network.random else None, jnp.ones((), dtype))


def _gradient(pieces: Pieces) -> Callable[..., tuple[Carried, Info]]:
    def gradient(exchange: Exchange, state: State, x: Tree, y: Array) -> tuple[Carried, Info]:
        samples = num_samples(x) * exchange.samples.num_splits
        draw = None if state.key is None else jax.random.split(state.key)[1]
        ids = exchange.samples.own(jnp.arange(samples))
        products = lambda i, here: training(exchange.layers.products(i, here), draw, i, ids)

        def work(l: int, weights: Weights) -> tuple[list[Tree], tuple[Array, ...]]:
            sums, found = loss_gradient(pieces, exchange, l, weights, x, y, samples, products)
            return found, kept(pieces.loss, sums)

        found, sums = exchange.each(work, state.weights, kinds=("weights", "sums"))
        loss, right, count = means(exchange.samples.total(sums), samples)
        return found, measured(Info(loss, right, count, {}))

    return gradient


def _descend(pieces: Pieces) -> Callable[[State, Carried, Info], State]:
    def descend(state: State, gradient: Carried, info: Info) -> State:
        counts = True if pieces.loss.weight is None else info.samples > 0
        key = None if state.key is None else jax.random.split(state.key)[0]
        pairs = enumerate(zip(state.weights, gradient, strict=True))
        weights = (pieces.descend(l, w, g, counts, state.pace, info.loss) for l, (w, g) in pairs)
        return State(tuple(weights), key, state.pace)

    return descend


def _estimate(pieces: Pieces) -> Callable[[Exchange, State, Tree], State]:
    def estimate(exchange: Exchange, state: State, x: Tree) -> State:
        def work(l: int, weights: Weights) -> tuple[Weights]:
            products = lambda i: exchange.layers.products(i, num_samples(x)).to_train()
            found = estimate_layers(
                pieces.network.layers, weights.params, x, products, pieces.compute_dtype
            )
            return (weights._replace(params=found),)

        return state._replace(weights=exchange.each(work, state.weights, kinds=("weights",))[0])

    return estimate


def loss_gradient(
    pieces: Pieces,
    exchange: Exchange,
    l: int,
    weights: Weights,
    x: Tree,
    y: Array,
    samples: int,
    products: Callable[[int, int], Products] | None = None,
) -> tuple[Sums, list[Tree]]:
    """(sums, gradient of the minibatch's mean loss) of the samples at hand."""
    weighing = weigh(pieces.loss, y, samples, exchange.samples.sum, float_dtype(x))

    def mean_loss(params: list[Tree]) -> tuple[Array, Sums]:
        params = pieces.joined(exchange, l, params)
        outputs = pieces.forward(exchange, l, params, x, products)
        scaled, sums = weighing.scaled(outputs)
        return scaled / samples, sums

    gradient, sums = jax.grad(mean_loss, has_aux=True)(weights.params)
    return sums, gradient
