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
from jtssm.sharding.placement.packing import Layout, Leaf, layout_of
from jtssm.sharding.placement.rows import AnyLayout, Rows, axes_of, dtype_of
from jtssm.sharding.placement.slotted import Slotted, slotted
from jtssm.sharding.slots import Slots

# of a slot or a device, the arrays in whose place results come
Base = dict[str, Array] | None


class RowsResult(NamedTuple):
    """A result of kind "weights" or "samples": rows as long as the longest piece's."""

    layout: Layout
    leading: tuple[int, ...]  # dimensions of a piece's row before its size

    def row(self, l: int, tree: Tree, base: Base = None) -> dict[str, Array]:
        """The tree of piece l as its row [*leading, size] of every key."""
        packed = self.layout.pack(l, tree)
        return {key: self._padded(key, packed) for key in self.layout.keys}

    def _padded(self, key: str, rows: dict[str, Array]) -> Array:
        """Zeros where the piece has no leaf of that key, and after a shorter line."""
        shape = (*self.leading, self.layout.size(key))
        if key not in rows:
            return jnp.zeros(shape, dtype_of(key))
        return _padded(shape, rows[key][None] if self.layout.kind is Kind.WEIGHTS else rows[key])

    def joined(
        self, parts: Sequence[dict[str, Array]], local: int, base: Base = None
    ) -> dict[str, Array]:
        """Rows of runs of pieces, [pieces of the run, ...] each, as [slots, ...]; zeros where none is."""
        none = {
            key: jnp.zeros((0, *self.leading, self.layout.size(key)), dtype_of(key))
            for key in self.layout.keys
        }
        return _stacked(parts or [none], local)

    def marked(self, names: AxisNames, rows: dict[str, Array]) -> dict[str, Array]:
        """The rows as differing along the axes that they are sharded over."""
        return _marked(self.layout.kind, names, rows)

    def carried(self, rows: dict[str, Array]) -> Rows:
        """The rows [slots, *leading, size] as what an exchange carries."""
        return Rows(rows, self.layout)


class SlottedResult(NamedTuple):
    """Weights or lines, at each slot in arrays of their own: of a piece those of its slot."""

    layout: Slotted
    samples: tuple[int, ...]  # of a line: how many

    def row(self, l: int, tree: Tree, base: Base = None) -> dict[str, Array]:
        """The tree of piece l in the arrays that it uses; base: what weights held, the same arrays."""
        held = None if base is None else {key: a[0] for key, a in base.items()}
        packed = self.layout.pack(l, tree, base=held)
        if self.layout.kind.trained:
            return {key: a[None] for key, a in packed.items()}
        return {key: _padded(self._shape(key), a) for key, a in packed.items()}

    def joined(
        self, parts: Sequence[dict[str, Array]], local: int, base: Base = None
    ) -> dict[str, Array]:
        """All arrays of a device, [1, ...]; what no piece uses stays as it was, at first zeros."""
        blank = lambda key: jnp.zeros((1, *self._shape(key)), dtype_of(key))
        start = {key: blank(key) for key in self.layout.keys} if base is None else base
        return start | {key: a for part in parts for key, a in part.items()}

    def marked(self, names: AxisNames, rows: dict[str, Array]) -> dict[str, Array]:
        """The arrays as differing along the axes that they are sharded over."""
        return _marked(self.layout.kind, names, rows)

    def carried(self, rows: dict[str, Array]) -> Rows:
        """The arrays as what an exchange carries."""
        return Rows(rows, self.layout)

    def _shape(self, key: str) -> tuple[int, ...]:
        """Of one of the arrays at a slot."""
        lead = (1,) if self.layout.kind.trained else (self.layout.slot_ticks(key), *self.samples)
        return (*lead, *self.layout.tail(key))


class SumsResult(NamedTuple):
    """A result of kind "sums": of every piece the same tree."""

    like: Tree  # shapes of a piece's

    def row(self, l: int, tree: Tree, base: Base = None) -> Tree:
        """The sums of piece l, as they are."""
        return tree

    def joined(self, parts: Sequence[Tree], local: int, base: Base = None) -> Tree:
        """Sums of runs of pieces as [slots, ...]; zeros where no piece is."""
        none = jax.tree.map(lambda a: jnp.zeros((0, *a.shape), a.dtype), self.like)
        return _stacked(parts or [none], local)

    def marked(self, names: AxisNames, sums: Tree) -> Tree:
        """The sums as differing from piece to piece and over the samples."""
        return varying(sums, axes_of(Kind.SUMS, names))

    def carried(self, sums: Tree) -> Tree:
        """The sums [slots, ...], as they are."""
        return sums


def _padded(shape: Sequence[int], row: Array) -> Array:
    """Zeros behind a row, up to the shape."""
    return jnp.pad(row, [(0, n - have) for n, have in zip(shape, row.shape, strict=True)])


def _marked(kind: Kind, names: AxisNames, rows: dict[str, Array]) -> dict[str, Array]:
    return {key: varying(a, axes_of(kind, names, key)) for key, a in rows.items()}


Result = RowsResult | SlottedResult | SumsResult


def result_of(kind: Kind, shapes: Sequence[Tree], kept: AnyLayout | None, slots: Slots) -> Result:
    """What one result of the pieces' work looks like.

    Args:
      kind: of the result.
      shapes: what each piece gives, as shapes.
      kept: the layout of results of kind "weights", or "copies" (None: a new one); what tells how
        "gradients" are split.
      slots: in which the pieces lie.

    Raises:
      ValueError: weights whose layout nothing tells, sums that differ, or leaves `layout_of` refuses.
    """
    if kind is Kind.SUMS:
        return SumsResult(_same_sums(shapes))
    gradients = kind in (Kind.GRADIENTS, Kind.PARTIAL_GRADIENTS)
    if kept is None and (gradients or kind is Kind.WEIGHTS):
        raise ValueError(f"carried: expected weights, as {kind} are given back; got none")
    if kept is not None and gradients:
        like = Kind.WEIGHTS if kind is Kind.GRADIENTS else kind
        return SlottedResult(gradients_of(kept, shapes, slots, like), ())
    if kind.trained:
        kept = kept or slotted(layout_of(kind, shapes, slots=slots))
        return SlottedResult(kept, ()) if isinstance(kept, Slotted) else RowsResult(kept, (1,))
    layout, leaves = layout_of(kind, shapes, slots=slots), jax.tree.leaves(list(shapes))
    if kind is Kind.SAMPLES:
        return RowsResult(layout, tuple(leaves[0].shape[:1]) if leaves else ())
    return SlottedResult(slotted(layout), tuple(leaves[0].shape[1:2]) if leaves else ())


def gradients_of(
    weights: AnyLayout, shapes: Sequence[Tree], slots: Slots, kind: Kind = Kind.WEIGHTS
) -> Slotted:
    """The layout of gradients, split as the first leaves of the weights are: the parameters.

    shapes: one tree a piece, (gradient, scalars).  kind: along which axes they differ.
    """

    def split(l: int, tree: Tree) -> tuple[Leaf, ...]:
        own, rest = (layout_of(Kind.WEIGHTS, [part]).leaves[0] for part in tree)
        pairs = zip(own, weights.leaves[l], strict=False)
        return (*(of._replace(dtype=leaf.dtype) for leaf, of in pairs), *rest)

    treedefs = tuple(jax.tree.structure(tree) for tree in shapes)
    leaves = tuple(split(l, tree) for l, tree in enumerate(shapes))
    return slotted(Layout(kind, treedefs, leaves, slots))


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


def _stacked(runs: Sequence[Tree], local: int) -> Tree:
    """Leaves [pieces of the run, ...] of several runs as leaves [slots, ...], zeros in the empty ones."""

    def joined(*parts: Array) -> Array:
        whole = jnp.concatenate(parts) if len(parts) > 1 else parts[0]
        empty = local - whole.shape[0]  # on a device, too, the first
        return jnp.pad(whole, [(empty, 0)] + [(0, 0)] * (whole.ndim - 1)) if empty else whole

    return jax.tree.map(joined, *runs)
