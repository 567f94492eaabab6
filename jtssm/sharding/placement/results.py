"""What the work of pieces gives back, in the same arrays whichever branch of a switch it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jtssm.arrays import Array, Tree
from jtssm.nn.ops import varying
from jtssm.protocol.exchange import Kind
from jtssm.sharding.mesh import AxisNames
from jtssm.sharding.placement.packing import Layout, Rows, axes_of, layout_of, pack


class RowsResult(NamedTuple):
    """A result of kind "weights", "samples" or "line": rows as long as the longest piece's."""

    layout: Layout
    leading: tuple[int, ...]  # dimensions of a piece's row before its size

    def row(self, l: int, tree: Tree) -> dict[str, Array]:
        """The tree of piece l as its row [*leading, size] of every key."""
        packed = pack(self.layout, l, tree)
        return {key: self._padded(key, packed) for key in self.layout.keys}

    def _padded(self, key: str, rows: dict[str, Array]) -> Array:
        """Zeros where the piece has no leaf of that key, and after a shorter line."""
        shape = (*self.leading, self.layout.size(key))
        if key not in rows:
            return jnp.zeros(shape, key.removesuffix("/pr"))
        row = rows[key][None] if self.layout.kind is Kind.WEIGHTS else rows[key]
        return jnp.pad(row, [(0, n - have) for n, have in zip(shape, row.shape, strict=True)])

    def none(self) -> dict[str, Array]:
        """The rows of no piece at all, [0, *leading, size]."""
        sizes = {key: self.layout.size(key) for key in self.layout.keys}
        return {
            key: jnp.zeros((0, *self.leading, size), key.removesuffix("/pr"))
            for key, size in sizes.items()
        }

    def marked(self, names: AxisNames, rows: dict[str, Array]) -> dict[str, Array]:
        """The rows as differing along the axes that they are sharded over."""
        axes = {key: axes_of(self.layout.kind, names, key) for key in rows}
        return {key: varying(a, axes[key]) for key, a in rows.items()}

    def carried(self, rows: dict[str, Array]) -> Rows:
        """The rows [slots, *leading, size] as what an exchange carries."""
        return Rows(rows, self.layout)


class SumsResult(NamedTuple):
    """A result of kind "sums": of every piece the same tree."""

    like: Tree  # shapes of a piece's

    def row(self, l: int, tree: Tree) -> Tree:
        """The sums of piece l, as they are."""
        return tree

    def none(self) -> Tree:
        """The sums of no piece at all, [0, ...]."""
        return jax.tree.map(lambda a: jnp.zeros((0, *a.shape), a.dtype), self.like)

    def marked(self, names: AxisNames, sums: Tree) -> Tree:
        """The sums as differing from piece to piece and over the samples."""
        return varying(sums, axes_of(Kind.SUMS, names))

    def carried(self, sums: Tree) -> Tree:
        """The sums [slots, ...], as they are."""
        return sums


Result = RowsResult | SumsResult


def result_of(kind: Kind, shapes: Sequence[Tree], weights: Layout | None) -> Result:
    """What one result of the pieces' work looks like.

    Args:
      kind: of the result.
      shapes: what each piece gives, as shapes.
      weights: the layout of results of kind "weights".

    Raises:
      ValueError: weights whose layout nothing tells, sums that differ, or leaves `layout_of` refuses.
    """
    if kind is Kind.SUMS:
        return SumsResult(_same_sums(shapes))
    if kind is Kind.WEIGHTS:
        if weights is None:
            raise ValueError(f"carried: expected weights, as {kind} are given back; got none")
        return RowsResult(weights, (1,))
    layout, leaves = layout_of(kind, shapes), jax.tree.leaves(list(shapes))
    if kind is Kind.SAMPLES:
        return RowsResult(layout, tuple(leaves[0].shape[:1]) if leaves else ())
    ticks = max(layout.ticks(l) for l in range(len(shapes)))
    return RowsResult(layout, (ticks, *leaves[0].shape[1:2]) if leaves else ())


def _same_sums(shapes: Sequence[Tree]) -> Tree:
    """The shapes that all pieces give; a branch of a switch may give no other."""
    bare = [jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree) for tree in shapes]
    flat = [jax.tree.flatten(tree) for tree in bare]
    for l, tree in enumerate(bare):
        if flat[l] != flat[0]:
            raise ValueError(
                f"sums: expected {bare[0]} from every piece; got {tree} from piece {l}"
            )
    return bare[0]


def stacked(runs: Sequence[Tree], slots: int) -> Tree:
    """Results of runs of pieces, leaves [pieces of the run, ...] each, as leaves [slots, ...].

    Slots without a piece, the last ones, hold zeros.
    """

    def joined(*parts: Array) -> Array:
        whole = jnp.concatenate(parts) if len(parts) > 1 else parts[0]
        empty = slots - whole.shape[0]
        return jnp.pad(whole, [(0, empty)] + [(0, 0)] * (whole.ndim - 1)) if empty else whole

    return jax.tree.map(joined, *runs)
