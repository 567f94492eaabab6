"""How each parameter is stored over "pr", and how a layer's whole parameters come of what is stored.

A form that splits products says which dimension of a parameter goes with them. The form "gathered" splits
no product, so any dimension will do: the last one that pr divides, else all numbers in a row with zeros
behind, so that pr divides them. Fewer numbers than devices stay whole, and so do statistics, which are
estimated and have neither gradient nor optimizer's state.

    split       W[.., I_pr, ..]
    flat        W[I * J] in a row, in pr parts of ceil(I J / pr) numbers: shape [that, 1, ..], of as many
                dimensions as W, by which masks of optimizers tell kernels from biases
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jtssm.arrays import Array, Tree
from jtssm.nn.layer import Layer
from jtssm.sharding.layers.questions import splits

Numbers = TypeVar("Numbers", Array, np.ndarray)
WHOLE, FLAT = -1, -2  # in place of a dimension that is split
SPLITS = {
    "gathered": "gathered",
    "model": "model",
    "scattered": "model",
    "row": "row",
    "paired": "paired",
}


def split_dimensions(layer: Layer, form: str, params: Tree, pr: int) -> Tree:
    """For each parameter of a layer the dimension that is split over pr, else `WHOLE` or `FLAT`.

    params: the whole ones, or their shapes.
    """
    if pr == 1 or form not in SPLITS:
        return jax.tree.map(lambda _: WHOLE, params)
    if form != "gathered":
        return splits(layer)[SPLITS[form]]
    found = jax.tree.map(lambda a: dimension_of(a.shape, pr), params)
    if not layer.estimated:
        return found
    kept = {name: jax.tree.map(lambda _: WHOLE, params[name]) for name in layer.estimated}
    return found | kept


def dimension_of(shape: tuple[int, ...], pr: int) -> int:
    """The last dimension that pr divides, else `FLAT`, or `WHOLE` of fewer numbers than pr."""
    if prod(shape) < pr:
        return WHOLE
    return next((d for d in reversed(range(len(shape))) if shape[d] % pr == 0), FLAT)


def part_size(size: int, dimension: int, pr: int) -> int:
    """Numbers that a device stores of an array of so many."""
    return size if dimension == WHOLE else -(-size // pr)


def in_a_row(a: Numbers, pr: int) -> Numbers:
    """An array as it is stored `FLAT`: [pr * ceil(size / pr), 1, ..], zeros behind its numbers."""
    pad = np.pad if isinstance(a, np.ndarray) else jnp.pad
    row = pad(a.reshape(-1), (0, -a.size % pr))
    return row.reshape(-1, *(1,) * (a.ndim - 1))


def out_of_a_row(row: Numbers, shape: tuple[int, ...]) -> Numbers:
    """The array of that shape which was put `in_a_row`."""
    return row.reshape(-1)[: prod(shape)].reshape(shape)


def made_whole(
    params: Tree, like: Tree, dimensions: Tree, gather: Callable[[Array, int], Array]
) -> Tree:
    """A layer's parameters from what each device stores of them.

    Args:
      params: what this device stores.
      like: the whole ones, or their shapes.
      dimensions: as `split_dimensions` says.
      gather: (array, dimension) -> the devices' parts joined along it.
    """

    def whole(a: Array, like: Array, dimension: int) -> Array:
        if dimension == WHOLE:
            return a
        if dimension == FLAT:
            return out_of_a_row(gather(a, 0), like.shape)
        return gather(a, dimension)

    return jax.tree.map(whole, params, like, dimensions)
