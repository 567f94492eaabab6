"""The loss at the last layer: its value for each sample and the accuracy that goes with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from jtssm.protocol import Array


class Loss(NamedTuple):
    """A loss of outputs [samples, k] against y."""

    name: str
    value: Callable[[Array, Array], Array]  # (outputs, y) -> [samples]
    correct: Callable[[Array, Array], Array]  # (outputs, y) -> [samples], 1 where right
    labels: bool  # y are labels 0 .. k - 1 [samples]; else targets like outputs


def _label_correct(outputs: Array, y: Array) -> Array:
    return (jnp.argmax(outputs, axis=-1) == y).astype(outputs.dtype)


cross_entropy = Loss(
    "cross_entropy",
    optax.losses.softmax_cross_entropy_with_integer_labels,
    _label_correct,
    labels=True,
)

squared_error = Loss(
    "squared_error",
    lambda outputs, y: optax.losses.squared_error(outputs, y).sum(axis=-1) / 2,
    lambda outputs, y: jnp.zeros(outputs.shape[0], outputs.dtype),
    labels=False,
)

LOSSES = {loss.name: loss for loss in (cross_entropy, squared_error)}


def find(loss: str | Loss) -> Loss:
    """A loss by its name, or the loss itself.

    Raises:
      ValueError: an unknown name.
    """
    if isinstance(loss, Loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"loss: expected one of {sorted(LOSSES)} or a losses.Loss; got {loss!r}")
    return LOSSES[loss]
