"""The loss of a minibatch inside a step: sums of the samples at hand whose mean is the minibatch's.

Samples (or positions) have weights; a step minimises sum(value * weight) / sum(weight) over all
samples of its minibatch, those of other devices too. So that every term of a Lagrangian stays a sum
over samples, weights are scaled to a mean of one a sample:

    R = sum(value * weight) * samples / sum(weight)

A minibatch in which nothing has weight is skipped: nothing that is trained moves, no optimizer counts it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from jtssm.arrays import Array
from jtssm.losses import Loss, Sums, summed


class Weighing(NamedTuple):
    """A loss on the minibatch that some samples are of."""

    loss: Loss
    y: Array  # [samples here, ...]
    scale: Array | float  # samples of the minibatch / sum of their weights; 0 where none has any
    counts: Array | bool = True  # whether something in the minibatch has weight; True: all has

    def sums(self, outputs: Array) -> Sums:
        """Of the samples here, not scaled."""
        return summed(self.loss, outputs, self.y)

    def scaled(self, outputs: Array) -> tuple[Array, Sums]:
        """(R of the samples here, sums): R / samples of the minibatch is what a step minimises."""
        sums = self.sums(outputs)
        return sums.loss if self.loss.weight is None else sums.loss * self.scale, sums

    def sample_weights(self, like: Array) -> Array | None:
        """[samples here] scaled weight of each sample, of a loss of one number a sample; None: 1 each."""
        return (
            None
            if self.loss.weight is None
            else self.loss.weight(self.y).astype(like.dtype) * self.scale
        )


def kept(loss: Loss, sums: Sums) -> tuple[Array, ...]:
    """What of the sums devices must add up: without weights the number of samples is known."""
    return sums[:2] if loss.weight is None else tuple(sums)


def means(totals: tuple[Array, ...], samples: int) -> tuple[Array, Array, Array]:
    """(mean loss, share that is right, what was counted) of what `kept` came to.

    samples: of the minibatch, all devices together.
    """
    loss, right, *weight = totals
    count = weight[0] if weight else jnp.full_like(loss, samples)
    over = weight[0] if weight else samples
    return loss / over, right / over, count


def weigh(
    loss: Loss,
    y: Array,
    samples: int,
    over_devices: Callable[[Array], Array],
    dtype: DTypeLike,
) -> Weighing:
    """The loss on y [samples here, ...].

    Args:
      samples: of the minibatch, all devices together.
      over_devices: the sum of an array over the devices that split the minibatch.
      dtype: of outputs.
    """
    return weighed(loss, y, samples, total_weight(loss, y, over_devices, dtype))


def total_weight(
    loss: Loss, y: Array, over_devices: Callable[[Array], Array], dtype: DTypeLike
) -> Array | None:
    """Sum of a minibatch's weights over all devices; None: of a loss without."""
    return None if loss.weight is None else over_devices(loss.weight(y).astype(dtype).sum())


def weighed(loss: Loss, y: Array, samples: int, total: Array | None) -> Weighing:
    """The loss on y [samples here, ...] of a minibatch whose weights come to `total`."""
    if total is None:
        return Weighing(loss, y, 1.0)
    some = total > 0
    return Weighing(loss, y, jnp.where(some, samples / jnp.where(some, total, 1), 0), some)
