"""Two networks whose layers hand each other trees of arrays, and their samples.

An encoder of flax linen modules takes {"ids": integers, "mask": booleans} and hands on what it made of
the ids with the mask. A U-Net of flax nnx modules hands on a skip connection, which its last but one
module takes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from jtssm import nn

TOKENS, WORDS = 4, 7


class Embed(linen.Module):
    """What the ids stand for, and the mask."""

    @linen.compact
    def __call__(self, x):
        return {"h": linen.Embed(WORDS, 4)(x["ids"]), "mask": x["mask"]}


class Mixed(linen.Module):
    """Each token sees the mean of those that count."""

    @linen.compact
    def __call__(self, x):
        h, seen = x["h"], x["mask"][..., None]
        mean = (h * seen).sum(axis=1, keepdims=True) / seen.sum(axis=1, keepdims=True)
        return {"h": h + jnp.tanh(linen.Dense(4)(h - mean)), "mask": x["mask"]}


class Pooled(linen.Module):
    """Three classes of the mean of the tokens that count."""

    @linen.compact
    def __call__(self, x):
        seen = x["mask"][..., None]
        return linen.Dense(3)((x["h"] * seen).sum(axis=1) / seen.sum(axis=1))


ENCODER = [Embed(), Mixed(), Pooled()]


def encoder():
    """The network of the encoder."""
    sample = {"ids": jnp.zeros((1, TOKENS), jnp.int32), "mask": jnp.ones((1, TOKENS), bool)}
    return nn.from_linen(ENCODER, sample)


def sentences(num, seed=0):
    """Samples of the encoder and their labels."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, WORDS, (num, TOKENS)).astype(np.int32)
    mask = np.arange(TOKENS)[None] < rng.integers(1, TOKENS + 1, (num, 1))
    return {"ids": ids, "mask": mask}, rng.integers(0, 3, num).astype(np.int32)


class Down(nnx.Module):
    """A smaller image, and the skip connection."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 3, (3, 3), rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.conv(x))
        return nnx.avg_pool(h, (2, 2), (2, 2)), h


class Middle(nnx.Module):
    """Work on the small image, past the skip connection."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 3, (3, 3), rngs=rngs)

    def __call__(self, x):
        h, skip = x
        return jnp.tanh(self.conv(h)), skip


class Up(nnx.Module):
    """The image in its size again, beside the skip connection; two classes for each pixel."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(6, 2, (1, 1), rngs=rngs)

    def __call__(self, x):
        h, skip = x
        h = h.repeat(2, axis=1).repeat(2, axis=2)
        return self.conv(jnp.concatenate([h, skip], axis=-1))


def unet_modules():
    """Those of the U-Net."""
    rngs = nnx.Rngs(0)
    return [Down(rngs), Middle(rngs), Up(rngs)]


def unet():
    """The network of the U-Net."""
    return nn.from_nnx(unet_modules(), jnp.zeros((1, 4, 4, 1)))


def images(num, seed=0, dtype=np.float64):
    """Samples of the U-Net, and a label for each pixel."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, 4, 4, 1)).astype(dtype)
    return x, rng.integers(0, 2, (num, 4, 4)).astype(np.int32)


def double(params):
    """Parameters in float64."""
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
