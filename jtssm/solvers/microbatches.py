"""Which samples of a minibatch a microbatch has: of M, microbatch m the samples m, m + M, m + 2 M, ...

The same ones however "pc" splits the minibatch, of which each device has M-th parts of its own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.arrays import Array, Tree


def microbatch(tree: Tree, num: int, m: Array) -> Tree:
    """Of leaves [samples, ...] those of the m-th of `num` microbatches, [samples / num, ...]."""

    def part(a: Array) -> Array:
        rows = a.reshape(-1, num, *a.shape[1:])
        return lax.dynamic_index_in_dim(rows, m, axis=1, keepdims=False)

    return jax.tree.map(part, tree)


def microbatches(tree: Tree, num: int, axis: int = 0) -> Tree:
    """Leaves [..., samples, ...] as [num, ..., samples / num, ...], one microbatch after the other.

    axis: of the samples.
    """

    def apart(a: Array) -> Array:
        shape = (*a.shape[:axis], -1, num, *a.shape[axis + 1 :])
        return jnp.moveaxis(a.reshape(shape), axis + 1, 0)

    return jax.tree.map(apart, tree)
