"""Dropout as a layer."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.nn.layer import Layer, Shape
from jtssm.nn.ops import Products


def dropout_layer(rate: float) -> Layer:
    """While training, each number is 0 with probability `rate`, the others scaled by 1 / (1 - rate).

    Every sample draws from its own key, so that the numbers are the same on any mesh.

    Raises:
      ValueError: a rate outside [0, 1).
    """
    return Dropout(checks.share("dropout", rate, 0.5, whole=False))


@dataclass(frozen=True, eq=False, repr=False)
class Dropout(Layer):
    """Dropout with a probability; see `dropout_layer`."""

    rate: float

    @property
    def name(self) -> str:
        """With its rate."""
        return f"dropout {self.rate:g}"

    @property
    def random(self) -> bool:
        """It draws what is 0."""
        return True

    def init(self, key: Array, shape: Shape, dtype: DTypeLike) -> Tree:
        """No parameters."""
        return {}

    def apply(self, params: Tree, x: Array, products: Products) -> Array:
        """x [b, ...], while training with zeros in it."""
        training, keys = products.mode
        if not training or keys is None:
            return x
        kept = lambda key, shape: jax.random.bernoulli(key, 1 - self.rate, shape)
        return jnp.where(products.drawn(kept, keys(), x), x / (1 - self.rate), 0)

    def shape(self, shape: Shape) -> Shape:
        """That of the inputs."""
        return shape

    def cost(self, shape: Shape) -> int:
        """No multiply-adds."""
        return 0


def dropouts(rate: float) -> list[Layer]:
    """What follows every hidden layer: a layer of dropout, or none at rate 0.

    Raises:
      ValueError: as `dropout_layer`.
    """
    layer = dropout_layer(rate)
    return [] if rate == 0 else [layer]
