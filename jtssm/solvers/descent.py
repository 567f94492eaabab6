"""Minibatch gradient descent on the whole network: the baseline.

    g <- grad of the mean loss of the minibatch;  W <- optimizer(W, g)

On a mesh the samples are split over "pc" and the gradient is summed over it: synchronous data
parallelism, the same numbers as on one device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtssm import checks, losses
from jtssm.network import Network
from jtssm.protocol import Info, Method, Move, Parts, as_method
from jtssm.solvers.pieces import Pieces, Weights, precisely


class State(NamedTuple):
    """What the next step needs."""

    weights: Any  # one Weights, the whole network's


def sgd(
    net: Network,
    *,
    optimizer: Any,
    batch_size: int,
    loss: str | losses.Loss = "cross_entropy",
    precision: Any = None,
) -> Method:
    """End-to-end training with any optax optimizer.

    Args:
      net: the network.
      optimizer: an optax optimizer; it sees the gradient of the minibatch's mean loss.
      batch_size: samples of the whole minibatch, all devices together.
      loss: "cross_entropy" (integer labels), "squared_error", or a `losses.Loss`.
      precision: of the products, a name `jax.default_matmul_precision` takes; None: jax's default.

    Raises:
      ValueError: bad arguments; from `init`, bad samples; from `step`, wrong shapes or dtypes.
    """
    checks.count(batch_size=batch_size)
    checks.precision(precision)
    pieces = Pieces(
        net, (0, len(net.layers)), checks.optimizers(optimizer, 1), losses.find(loss)
    )  # fmt: skip

    def check(x, y, stage):
        checks.samples(net, pieces.loss, x, y, values=stage != "step")
        if stage == "step":
            checks.batch(batch_size, x)

    return as_method(
        Parts(
            name="sgd",
            network=net,
            starts=pieces.starts,
            kinds={"weights": "weights"},
            init=lambda exchange, key, x, y, params: State(
                pieces.weights(exchange, key, x.dtype, params)
            ),
            step=precisely(precision, _step(pieces)),
            drain=lambda exchange, state: state,
            forward=precisely(
                precision, lambda exchange, l, w, p: pieces.forward(exchange, l, w.params, p)
            ),
            start=pieces.start,
            optimizers=pieces.optimizers,
            batch_size=batch_size,
            batch_shape=(batch_size,),
            batch_axes=("pc",),
            resident=False,
            loss=pieces.loss,
            check=check,
            moves=lambda samples: gradient_moves(pieces, 1),
        )
    )


def _step(pieces: Pieces) -> Callable:
    def step(exchange, state, x, y):
        samples = x.shape[0] * exchange.num_splits

        def work(l, weights):
            (loss, right), gradient = loss_gradient(pieces, exchange, l, weights, x, y, samples)
            return pieces.descend(l, weights, gradient), (loss, right)

        weights, sums = exchange.each(work, state.weights, kinds=("weights", "sums"))
        loss, right = exchange.total(sums)
        zero = jnp.zeros_like(loss)
        count = jnp.full_like(loss, samples)
        return State(weights), Info(loss, right / samples, count, zero, zero, zero)

    return step


def loss_gradient(pieces, exchange, l, weights: Weights, x, y, samples: int):
    """((mean loss, number right), gradient of the mean loss) of the samples at hand."""

    def mean_loss(params):
        outputs = pieces.forward(exchange, l, params, x)
        return pieces.loss.value(outputs, y).sum() / samples, pieces.loss.correct(outputs, y).sum()

    return jax.value_and_grad(mean_loss, has_aux=True)(weights.params)


def gradient_moves(pieces: Pieces, times: int) -> tuple[Move, ...]:
    """The all-reduce of every piece's gradient over the batch split."""
    sizes = [
        sum(a.size for a in jax.tree.leaves(jax.eval_shape(pieces.network.init, jax.random.key(0))[s:t]))
        for s, t in zip(pieces.starts, pieces.starts[1:], strict=False)
    ]  # fmt: skip
    return tuple(Move("gradient of W", (size,), "pc", l, l, times) for l, size in enumerate(sizes))
