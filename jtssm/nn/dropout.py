"""Dropout as a layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jtssm import checks
from jtssm.nn.layer import Layer
from jtssm.nn.ops import Window


def dropout_layer(rate: float) -> Layer:
    """While training, each number is 0 with probability `rate`, the others scaled by 1 / (1 - rate).

    Every sample draws from its own key, so that the numbers are the same on any mesh.

    Raises:
      ValueError: a rate outside [0, 1).
    """
    rate = checks.share("dropout", rate, 0.5, whole=False)

    def apply(_, x, products):
        if not products.training or products.keys is None:
            return x
        kept = lambda key, shape: jax.random.bernoulli(key, 1 - rate, shape)
        return jnp.where(products.drawn(kept, products.keys(), x), x / (1 - rate), 0)

    return Layer(
        name=f"dropout {rate:g}",
        init=lambda key, shape, dtype: {},
        apply=apply,
        shape=lambda shape: shape,
        cost=lambda shape: 0,
        splits={"model": {}},
        neurons={},
        random=True,
        window=Window(1),
        mixes=False,
    )


def dropouts(rate: float) -> list[Layer]:
    """What follows every hidden layer: a layer of dropout, or none at rate 0.

    Raises:
      ValueError: as `dropout_layer`.
    """
    layer = dropout_layer(rate)
    return [] if rate == 0 else [layer]
