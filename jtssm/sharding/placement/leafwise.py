"""Weights of unequal pieces leaf by leaf: an array for each, so that a step puts nothing together.

An array has one row a device along "subnet", of the piece that the device has at a slot. So a leaf shares
its array with leaves of the other devices' pieces: with leaves of its own shape, as far as there are any.
Of the rest the largest goes with the largest, in an array of the shape of the largest of all, while no
device holds more for it than if all of the rest stood in one row; what is then left does.

    [subnet, pr, *shape] over ("subnet", "pr") for leaves split over pr
    [subnet, 1, *shape]  over ("subnet",) for whole ones
    [subnet, pr or 1, size]  for what stands in a row with others
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jtssm.arrays import AnyArray, Array, Tree
from jtssm.protocol.exchange import Kind
from jtssm.sharding.placement.packing import Layout, Leaf


class Shelf(NamedTuple):
    """One array, as a device has it."""

    key: str  # a dtype, with /pr where it is split over pr
    shape: tuple[int, ...]


class Spot(NamedTuple):
    """Where a leaf lies."""

    shelf: int
    start: int | None  # in the row of the array's numbers; None: it is all of the array


class Leafwise(NamedTuple):
    """Where the leaves of weights lie, each in an array of its own; else as `Layout`."""

    treedefs: tuple[jax.tree_util.PyTreeDef, ...]  # one a piece
    leaves: tuple[tuple[Leaf, ...], ...]  # one tuple a piece
    shelves: tuple[Shelf, ...]
    spots: tuple[tuple[Spot, ...], ...]  # of the leaves
    kind: Kind  # of weights: nothing else lies so

    @property
    def keys(self) -> list[str]:
        """The arrays there are."""
        return [self._key(i) for i in range(len(self.shelves))]

    def tail(self, key: str) -> tuple[int, ...]:
        """What one device along pr has of one of the arrays."""
        return self.shelves[int(key.partition(":")[0])].shape

    def ticks(self, piece: int) -> int:
        """Weights are not of ticks."""
        return 0

    def pack(
        self,
        piece: int,
        tree: Tree,
        xp: ModuleType = jnp,
        base: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """As `Layout.pack`; base: rows to write in where an array is longer than what the piece has."""
        rows = self.joined(piece, tree, xp)
        return {
            key: self.filled(key, row, xp, None if base is None else base[key])
            for key, row in rows.items()
        }

    def joined(self, piece: int, tree: Tree, xp: ModuleType = jnp) -> dict[str, Array]:
        """What the tree of one piece has in each array: all of it, or the first numbers of its row."""
        parts: dict[int, list[Array]] = {}
        pairs = zip(self.spots[piece], jax.tree.leaves(tree), strict=True)
        for spot, a in sorted(pairs, key=lambda pair: pair[0].start or 0):
            parts.setdefault(spot.shelf, []).append(a if spot.start is None else a.reshape(-1))
        joined = lambda found: found[0] if len(found) == 1 else xp.concatenate(found)
        return {self._key(i): joined(found) for i, found in parts.items()}

    def filled(
        self, key: str, row: Array, xp: ModuleType = jnp, base: Array | None = None
    ) -> Array:
        """An array that begins with what a piece has in it, and goes on as `base`, or with zeros."""
        shape = self.tail(key)
        if row.shape == shape:
            return row
        if row.size == prod(shape):
            return row.reshape(shape)
        if base is None:
            return xp.pad(row, (0, prod(shape) - row.size)).reshape(shape)
        # along its first dimension: XLA would copy the base to flatten it
        lines = -(-row.size // prod(shape[1:]))
        row = xp.pad(row, (0, lines * prod(shape[1:]) - row.size))
        return base.at[:lines].set(row.reshape(lines, *shape[1:]))

    def unpack(self, piece: int, rows: Mapping[str, AnyArray]) -> Tree:
        """As `Layout.unpack`."""

        def leaf(leaf: Leaf, spot: Spot) -> AnyArray:
            row = rows[self._key(spot.shelf)]
            if spot.start is None:
                return row
            return row.reshape(-1)[spot.start : spot.start + leaf.size].reshape(leaf.shape)

        pairs = zip(self.leaves[piece], self.spots[piece], strict=True)
        return jax.tree.unflatten(self.treedefs[piece], [leaf(*pair) for pair in pairs])

    def _key(self, shelf: int) -> str:
        return f"{shelf:04}:{self.shelves[shelf].key}"


def leafwise(layout: Layout) -> Leafwise:
    """The weights of pieces that lie on one device each, leaf by leaf."""
    shelves: list[Shelf] = []
    spots: list[dict[int, Spot]] = [{} for _ in layout.leaves]
    for key in layout.keys:
        for shape, parts in _shelves([_held(leaves, key) for leaves in layout.leaves]):
            for found, leaves, part in zip(spots, layout.leaves, parts, strict=True):
                alone = [leaves[k].shape for k in part] == [shape]
                starts = [None] if alone else _starts(leaves, part)
                found |= {
                    k: Spot(len(shelves), start) for k, start in zip(part, starts, strict=True)
                }
            shelves.append(Shelf(key, shape))
    placed = tuple(tuple(spots[l][k] for k in range(len(a))) for l, a in enumerate(layout.leaves))
    return Leafwise(layout.treedefs, layout.leaves, tuple(shelves), placed, layout.kind)


Held = list[tuple[int, tuple[int, ...]]]  # leaves of a piece: which, and their shapes


def _held(leaves: Sequence[Leaf], key: str) -> Held:
    return [(k, leaf.shape) for k, leaf in enumerate(leaves) if leaf.key == key]


def _shelves(held: Sequence[Held]) -> Iterator[tuple[tuple[int, ...], list[list[int]]]]:
    """Arrays for the leaves of some pieces: (shape, of each piece the leaves that it has there)."""
    counts = [Counter(shape for _, shape in of) for of in held]
    for shape in dict.fromkeys(shape for _, shape in held[0]):
        of_shape = [[k for k, its in of if its == shape] for of in held]
        for i in range(min(count[shape] for count in counts)):
            yield shape, [[of[i]] for of in of_shape]
    rest = [_rest(of, counts) for of in held]
    alone = _number_alone([[prod(shape) for _, shape in of] for of in rest])
    for i in range(alone):
        shapes = [of[i][1] for of in rest if i < len(of)]
        yield max(shapes, key=prod), [[of[i][0]] if i < len(of) else [] for of in rest]
    last = [of[alone:] for of in rest]
    if any(last):
        size = max(sum(prod(shape) for _, shape in of) for of in last)
        yield (size,), [[k for k, _ in of] for of in last]


def _rest(held: Held, counts: Sequence[Counter]) -> Held:
    """What all pieces have in no common shape, the largest first."""
    seen: Counter = Counter()
    found = []
    for k, shape in held:
        if seen[shape] >= min(count[shape] for count in counts):
            found.append((k, shape))
        seen[shape] += 1
    return sorted(found, key=lambda one: -prod(one[1]))


def _number_alone(sizes: Sequence[Sequence[int]]) -> int:
    """How many of the largest have arrays of their own: these take no more than one row for all would."""
    most = max(map(len, sizes))
    longest = [max((of[i] for of in sizes if i < len(of)), default=0) for i in range(most)]
    left = lambda i: max(sum(of[i:]) for of in sizes)
    return max(i for i in range(most + 1) if sum(longest[:i]) + left(i) <= left(0))


def _starts(leaves: Sequence[Leaf], part: Sequence[int]) -> list[int]:
    """Where each leaf begins in a row of them."""
    return [sum(leaves[k].size for k in part[:i]) for i in range(len(part))]
