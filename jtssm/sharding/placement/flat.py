"""Arrays that no dimension of which "pr" divides, in a state of a network that is trained as one piece.

A method of pieces packs its weights in rows, where they need no place of their own
(`jtssm.sharding.placement.packing`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax

from jtssm.arrays import Shaped, Tree
from jtssm.sharding.layers.stored import FLAT, in_a_row, out_of_a_row


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flat:
    """An array as its numbers in a row, zeros behind them, split over pr; see `stored.in_a_row`."""

    row: Any  # an array; or what stands for it: a shape, a PartitionSpec
    shape: tuple[int, ...] = field(metadata={"static": True})  # of the array


def is_flat(x: object) -> bool:
    """Whether x is Flat; for tree maps that stop there."""
    return isinstance(x, Flat)


def flattened(tree: Tree, dimensions: Tree, pr: int) -> Tree:
    """A tree of arrays, or of their shapes, with those to be stored flat as `Flat`; the others stay."""

    def stored(a: Tree, dimension: int) -> Tree:
        if dimension != FLAT or isinstance(a, Flat):
            return a
        if isinstance(a, jax.ShapeDtypeStruct):
            return Flat(jax.eval_shape(lambda a: in_a_row(a, pr), a), a.shape)
        return Flat(in_a_row(a, pr), a.shape)

    return jax.tree.map(stored, tree, dimensions, is_leaf=is_flat)


def rows(tree: Tree) -> Tree:
    """A tree with the rows of what is `Flat` in its place: as a layer on a device gets them."""
    return jax.tree.map(lambda a: a.row if is_flat(a) else a, tree, is_leaf=is_flat)


def like(tree: Tree, found: Tree) -> Tree:
    """Found arrays, `rows` among them, as `Flat` where those of a tree are."""
    return jax.tree.map(
        lambda a, b: Flat(b, a.shape) if is_flat(a) else b, tree, found, is_leaf=is_flat
    )


def unflattened(tree: Tree) -> Tree:
    """A tree with all its arrays in their own shapes."""
    return jax.tree.map(_own_shape, tree, is_leaf=is_flat)


def _own_shape(a: Shaped | Flat) -> Shaped:
    if not isinstance(a, Flat):
        return a
    if isinstance(a.row, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(a.shape, a.row.dtype)
    return out_of_a_row(a.row, a.shape)
