"""Minibatch gradient descent on the whole network: the baseline.

    g <- grad of the mean loss of the minibatch;  W <- optimizer(W, g)

On a mesh the samples are split over "pc" and every layer over "pr" as its form says
(`jtssm.sharding.layers.forms`): synchronous descent, the same numbers as on one device. The gradient
is taken inside shard_map; the optimizer sees whole arrays, which jax keeps sharded: clipping by the
global norm, lamb or muon give what they give on one device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtssm import checks, losses
from jtssm.arrays import Array
from jtssm.nn.cuts import cut
from jtssm.nn.network import Network, estimate_layers
from jtssm.protocol.declared import Run
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method
from jtssm.protocol.pieces import as_method
from jtssm.solvers.pieces import Pieces, Weights, precisely, training


class State(NamedTuple):
    """What the next step needs."""

    weights: Any  # one Weights, the whole network's
    key: Array | None  # of the next minibatch's dropout; None: no layer draws
    pace: Array  # [] what the optimizer's updates are multiplied by: 1, less after a divergence


def sgd(
    net: Network,
    *,
    optimizer: Any,
    batch_size: int,
    loss: str | losses.Loss = "cross_entropy",
    precision: Any = None,
    compute_dtype: Any = None,
) -> Method:
    """End-to-end training with any optax optimizer; on a mesh model, batch and domain parallel.

    Args:
      net: the network.
      optimizer: an optax optimizer; it sees the gradient of the minibatch's mean loss.
      batch_size: samples of the whole minibatch, all devices together.
      loss: "cross_entropy" (integer labels), "squared_error", or a `losses.Loss`.
      precision: of the products, a name `jax.default_matmul_precision` takes; None: jax's default.
      compute_dtype: "bfloat16": layers compute and send in it, while parameters, state, sums and losses
        keep the dtype of the samples (normalisation's statistics: float32); None: that dtype throughout.

    Raises:
      ValueError: bad arguments; from `init`, bad samples; from `step`, wrong shapes or dtypes.

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
    optimizers = checks.optimizers(optimizer, 1)
    starts, dtype = cut(net, 1, None), checks.compute_dtype(compute_dtype)
    pieces = Pieces(net, starts, optimizers, losses.find(loss), dtype)
    gradient, descend = precisely(precision, _gradient(pieces)), _descend(pieces)
    return as_method(
        pieces.parts(
            name="sgd",
            kinds={"weights": "weights"},
            init=lambda exchange, key, x, y, params: State(
                pieces.weights(exchange, key, x.dtype, params),
                key if net.random else None,
                jnp.ones((), x.dtype),
            ),
            estimate=_estimate(pieces),
            step=lambda exchange, state, x, y: _step(gradient, descend, exchange, state, x, y),
            gradient=gradient,
            descend=descend,
            drain=lambda exchange, state: state,
            moves=lambda samples: pieces.gradient_moves(1),
            work=lambda l, samples: (Run(samples, 1, 1, 1, first=False),),
            sums=2,
            precision=precision,
            batch_size=batch_size,
            resident=False,
        )
    )


def _step(gradient: Callable, descend: Callable, exchange, state: State, x: Array, y: Array):
    found, info = gradient(exchange, state, x, y)
    return descend(state, found), info


def _gradient(pieces: Pieces) -> Callable:
    def gradient(exchange, state, x, y):
        samples = x.shape[0] * exchange.num_splits
        draw = None if state.key is None else jax.random.split(state.key)[1]
        ids = exchange.own_samples(jnp.arange(samples))
        products = lambda i, here: training(exchange.products(i, here), draw, i, ids)

        def work(l, weights):
            sums, found = loss_gradient(pieces, exchange, l, weights, x, y, samples, products)
            return found, sums

        found, sums = exchange.each(work, state.weights, kinds=("weights", "sums"))
        loss, right = exchange.total(sums)
        return found, Info(loss, right / samples, jnp.full_like(loss, samples), {})

    return gradient


def _descend(pieces: Pieces) -> Callable:
    def descend(state, gradient):
        key = None if state.key is None else jax.random.split(state.key)[0]
        pairs = enumerate(zip(state.weights, gradient, strict=True))
        weights = (pieces.descend(l, w, g, pace=state.pace) for l, (w, g) in pairs)
        return State(tuple(weights), key, state.pace)

    return descend


def _estimate(pieces: Pieces) -> Callable:
    def estimate(exchange, state, x):
        def work(l, weights):
            products = lambda i: exchange.products(i, x.shape[0])._replace(training=True)
            found = estimate_layers(
                pieces.network.layers, weights.params, x, products, pieces.compute_dtype
            )
            return (weights._replace(params=found),)

        return state._replace(weights=exchange.each(work, state.weights, kinds=("weights",))[0])

    return estimate


def loss_gradient(pieces, exchange, l, weights: Weights, x, y, samples: int, products=None):
    """((mean loss, number right), gradient of the mean loss) of the samples at hand."""

    def mean_loss(params):
        outputs = pieces.forward(exchange, l, params, x, products)
        return pieces.loss.value(outputs, y).sum() / samples, pieces.loss.correct(outputs, y).sum()

    return jax.value_and_grad(mean_loss, has_aux=True)(weights.params)
