"""Layers of a user's own: `init`, `apply`, `shape` and `cost`, as they would write them."""

import jax
import jax.numpy as jnp

from jtssm import nn


class Double(nn.Layer):
    """2 x; no parameters."""

    def init(self, key, shape, dtype):
        return {}

    def apply(self, params, x, products):
        return 2 * x

    def shape(self, shape):
        return shape

    def cost(self, shape):
        return 0


class Grow(nn.Layer):
    """tanh(s x W), reshaped: a layer that jtssm knows nothing of."""

    def __init__(self, *out):
        self.out, self.width = out, 1
        for n in out:
            self.width *= n

    @property
    def name(self):
        return f"grow {' '.join(map(str, self.out))}"

    def init(self, key, shape, dtype):
        W = jax.random.normal(key, (shape[0], self.width), dtype)
        return {"s": jnp.ones((), dtype), "W": W / shape[0]}

    def apply(self, params, x, products):
        return jnp.tanh(params["s"] * (x @ params["W"])).reshape(-1, *self.out)

    def shape(self, shape):
        return self.out

    def cost(self, shape):
        return shape[0] * self.width
