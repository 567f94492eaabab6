"""Unequal pieces in equal rows: the trees of n pieces as one array a dtype, sharded over the mesh.

A row of an array holds the leaves of one piece that have its dtype, flattened, one after the other,
padded with zeros to the longest; so every leaf keeps its dtype, and leaves of several dtypes may stand
in one tree. By kind, with size the length of that row, and a row for each slot (`jtssm.sharding.slots`):

    samples  [slots, samples, size] over ("subnet", "pc")
    line     [slots, ticks, samples, size] over ("subnet", None, "pc"); shorter lines are padded
    weights  [slots, pr, size] over ("subnet", "pr") for leaves split over pr,
             [slots, 1, size] over ("subnet",) for whole ones

Lines lie slot by slot (`slotted`), weights leaf by leaf (`leafwise`), but of methods that batch pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jtssm.arrays import AnyArray, Array, Tree
from jtssm.protocol.exchange import Kind
from jtssm.sharding.layers.stored import FLAT, WHOLE
from jtssm.sharding.slots import Slots


class Leaf(NamedTuple):
    """A leaf of one piece as one device holds it, its samples' dimension left out."""

    shape: tuple[int, ...]  # of a line: [ticks, ...]
    dtype: str
    split: int  # dimension split over pr, or as `jtssm.sharding.layers.stored` has it: WHOLE, FLAT
    whole: tuple[int, ...] = ()  # of a flat one, the shape of the array whose numbers are in a row

    @property
    def key(self) -> str:
        """Which of the arrays it lies in."""
        return self.dtype if self.split == WHOLE else f"{self.dtype}/pr"

    @property
    def size(self) -> int:
        """Its numbers, for one sample; of a line for all ticks."""
        return prod(self.shape)


class Layout(NamedTuple):
    """Where the leaves of all pieces lie in their rows."""

    kind: Kind
    treedefs: tuple[jax.tree_util.PyTreeDef, ...]  # one a piece
    leaves: tuple[tuple[Leaf, ...], ...]  # one tuple a piece
    slots: Slots  # in which the pieces lie

    @property
    def keys(self) -> list[str]:
        """The arrays there are."""
        return sorted({leaf.key for leaves in self.leaves for leaf in leaves})

    def width(self, piece: int, key: str) -> int:
        """Numbers of a piece in one of the arrays, for one sample and tick."""
        return sum(prod(self._tail(leaf)) for leaf in self.leaves[piece] if leaf.key == key)

    def size(self, key: str) -> int:
        """Length of the rows of one of the arrays."""
        return max(self.width(piece, key) for piece in range(len(self.leaves)))

    def ticks(self, piece: int) -> int:
        """Length of the line of a piece; 0 where it has none."""
        return max((leaf.shape[0] for leaf in self.leaves[piece]), default=0)

    def tail(self, key: str) -> tuple[int, ...]:
        """What a row of one of the arrays is of: numbers."""
        return (self.size(key),)

    @property
    def num_rows(self) -> int:
        """Of an array, those of empty slots included."""
        return self.slots.total

    def piece(self, key: str, row: int) -> int | None:
        """Which piece a row of one of the arrays is of; None: of an empty slot."""
        return self.slots.piece(row)

    def row(self, piece: int) -> int:
        """In which row of its arrays a piece lies."""
        return self.slots.row(piece)

    def keys_of(self, piece: int) -> list[str]:
        """The arrays in which a piece lies."""
        return self.keys

    def of_slots(self, rows: Mapping[str, Array], first: int, count: int) -> dict[str, Array]:
        """Of a device's rows those of some slots, [count, ...]."""
        return {key: a[first : first + count] for key, a in rows.items()}

    def pack(self, piece: int, tree: Tree, xp: ModuleType = jnp) -> dict[str, Array]:
        """The tree of one piece as rows [*leading, size], leading: (), (samples,) or (ticks, samples).

        Of the keys that the piece has leaves of; xp: numpy or jax.numpy.
        """
        leading = self.kind.leading
        pairs = list(zip(self.leaves[piece], jax.tree.leaves(tree), strict=True))
        rows = {}
        for key in self.keys:
            flat = [a.reshape(*a.shape[:leading], -1) for leaf, a in pairs if leaf.key == key]
            if flat:
                row = xp.concatenate(flat, axis=-1)
                rows[key] = xp.pad(row, [(0, 0)] * leading + [(0, self.size(key) - row.shape[-1])])
        return rows

    def unpack(self, piece: int, rows: Mapping[str, AnyArray]) -> Tree:
        """The tree of one piece from its rows; the inverse of `pack`."""
        taken = dict.fromkeys(self.keys, 0)
        leaves = []
        for leaf in self.leaves[piece]:
            row, tail, start = rows[leaf.key], self._tail(leaf), taken[leaf.key]
            taken[leaf.key] += prod(tail)
            row = row[: leaf.shape[0]] if self.kind is Kind.LINE else row
            flat = row[..., start : taken[leaf.key]]
            leaves.append(flat.reshape(flat.shape[:-1] + tail))
        return jax.tree.unflatten(self.treedefs[piece], leaves)

    def _tail(self, leaf: Leaf) -> tuple[int, ...]:
        """Shape of a leaf behind the leading dimensions of its row."""
        return leaf.shape[1:] if self.kind is Kind.LINE else leaf.shape

    def between(self, first: int, slots: Slots) -> Layout:
        """The layout of the entries from the first on alone, as many as pieces in those slots."""
        those = slice(first, first + slots.num)
        return Layout(self.kind, self.treedefs[those], self.leaves[those], slots)

    def moved(self, step: int) -> Layout:
        """The layout after every piece has handed its tree to the piece `step` (1 or -1) on."""
        empty = jax.tree.structure(())
        if step == 1:
            treedefs, leaves = (empty, *self.treedefs[:-1]), ((), *self.leaves[:-1])
        else:
            treedefs, leaves = (*self.treedefs[1:], empty), (*self.leaves[1:], ())
        return Layout(self.kind, treedefs, leaves, self.slots)

    def entry(self) -> Layout:
        """The layout of one tick of a line."""
        cut = tuple(tuple(a._replace(shape=a.shape[1:]) for a in leaves) for leaves in self.leaves)
        return Layout(Kind.SAMPLES, self.treedefs, cut, self.slots)


def layout_of(
    kind: str,
    trees: Sequence[Tree],
    local: Sequence[Tree] | None = None,
    pr: int = 1,
    slots: Slots | None = None,
) -> Layout:
    """The layout of trees that may differ in structure, shapes and dtypes.

    Args:
      kind: "weights", "samples" (leaves [samples, ...]) or "line" (leaves [ticks, samples, ...]).
      trees: one a piece, of arrays or their shapes.
      local: the same trees as one device holds them, where leaves are split over pr.
      pr: over how many devices.
      slots: in which the pieces lie; None: on one device.

    Raises:
      ValueError: a part that is no part of its leaf; a leaf that is no array of numbers (a typed PRNG
        key; the float0 that stands for the gradient of integers), or one without the dimensions that its
        kind has first.
    """
    kind = Kind(kind)
    for leaf in jax.tree.leaves(list(trees)):
        _check(kind, leaf)
    treedefs = tuple(jax.tree.structure(tree) for tree in trees)
    pairs = zip(trees, trees if local is None else local, strict=True)
    leaves = tuple(_leaves(kind, *pair, pr) for pair in pairs)
    return Layout(kind, treedefs, leaves, slots or Slots(len(leaves), 1))


def _check(kind: Kind, leaf: Array | jax.ShapeDtypeStruct) -> None:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError(
            "optimizer: expected a state of numbers on a mesh; got one with a typed PRNG key, as "
            "optax.add_noise has: use it on one device, or draw the noise outside"
        )
    if leaf.dtype == jax.dtypes.float0:
        raise ValueError(
            f"{kind}: expected leaves of numbers; got float0, which stands for the gradient of integers "
            "and booleans: hand on the gradient of the other leaves alone"
        )
    if len(leaf.shape) < kind.leading:
        first = {Kind.SAMPLES: "[samples, ...]", Kind.LINE: "[ticks, samples, ...]"}[kind]
        raise ValueError(f"{kind}: expected leaves {first}; got one of shape {leaf.shape}")


def _leaves(kind: Kind, whole: Tree, local: Tree, pr: int) -> tuple[Leaf, ...]:
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(local), strict=True)
    return tuple(_leaf(kind, a, b, pr) for a, b in pairs)


def _leaf(
    kind: Kind,
    whole: Array | jax.ShapeDtypeStruct,
    local: Array | jax.ShapeDtypeStruct,
    pr: int,
) -> Leaf:
    split = _split(whole.shape, local.shape, pr)
    shape = tuple(whole.shape) if split == FLAT else ()
    return Leaf(_kept(kind, local.shape), str(local.dtype), split, shape)


def _kept(kind: Kind, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A leaf's shape without its samples."""
    if kind.trained:
        return tuple(shape)
    return shape[1:] if kind is Kind.SAMPLES else (shape[0], *shape[2:])


def _split(whole: tuple[int, ...], local: tuple[int, ...], pr: int) -> int:
    """How a device's part of an array came of the whole."""
    if whole == local:
        return WHOLE
    for d, size in enumerate(local):
        if whole == (*local[:d], pr * size, *local[d + 1 :]):
            return d
    if local == (-(-prod(whole) // pr), *[1] * (len(whole) - 1)):
        return FLAT
    raise ValueError(
        f"optimizer: expected a state of arrays that are split over pr = {pr} as parameters are; got one "
        f"{list(whole)} that is {list(local)} on a device: use an elementwise optimizer, or pr=1"
    )
