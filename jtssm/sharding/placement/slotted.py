"""Pieces that share a device apart from each other: at each slot arrays of their own.

Rows of several slots in one array would have to be cut out of it and put together again in every step.
So what is large, weights and lines, has a layout for each slot, of the pieces that the devices along
"subnet" have there: one row a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jtssm.arrays import AnyArray, Array, Tree
from jtssm.protocol.exchange import Kind
from jtssm.sharding.placement.leafwise import Leafwise, leafwise
from jtssm.sharding.placement.packing import Layout, Leaf
from jtssm.sharding.slots import Slots


class Slotted(NamedTuple):
    """Where the leaves of all pieces lie, slot by slot; else as `Layout`."""

    slot_layouts: tuple[Layout | Leafwise, ...]  # of each slot the pieces that devices have there
    slots: Slots  # in which the pieces lie

    @property
    def kind(self) -> Kind:
        """What is laid out."""
        return self.slot_layouts[0].kind

    @property
    def leaves(self) -> tuple[tuple[Leaf, ...], ...]:
        """One tuple a piece."""
        return tuple(of.leaves[entry] for of, entry in self._by_piece())

    @property
    def treedefs(self) -> tuple[jax.tree_util.PyTreeDef, ...]:
        """One a piece."""
        return tuple(of.treedefs[entry] for of, entry in self._by_piece())

    @property
    def keys(self) -> list[str]:
        """The arrays there are."""
        return [key for slot in range(self.slots.local) for key in self.keys_at(slot)]

    def tail(self, key: str) -> tuple[int, ...]:
        """What stands behind the leading dimensions of one of the arrays."""
        slot, of = _parted(key)
        return self.slot_layouts[slot].tail(of)

    def ticks(self, piece: int) -> int:
        """Length of the line of a piece; 0 where it has none."""
        of, entry = self._of(piece)
        return of.ticks(entry)

    def slot_ticks(self, key: str) -> int:
        """Length of one of the arrays, of lines: of the longest that has it."""
        layout = self.slot_layouts[self.slot_of(key)]
        return max(layout.ticks(entry) for entry in range(len(layout.leaves)))

    @property
    def num_rows(self) -> int:
        """Of an array: one a device."""
        return self.slots.devices

    def piece(self, key: str, row: int) -> int | None:
        """Which piece a row of one of the arrays is of; None: of an empty slot."""
        return self.slots.piece(self.slots.number(row, self.slot_of(key)))

    def row(self, piece: int) -> int:
        """In which row of its arrays a piece lies."""
        return self.slots.device(piece)

    def slot_of(self, key: str) -> int:
        """At which slot one of the arrays lies."""
        return _parted(key)[0]

    def keys_at(self, slot: int) -> list[str]:
        """The arrays at a slot."""
        return [_joined(slot, key) for key in self.slot_layouts[slot].keys]

    def keys_of(self, piece: int) -> list[str]:
        """The arrays in which pieces at its slot lie."""
        return self.keys_at(self.slots.slot(piece))

    def of_slots(self, rows: Mapping[str, Array], first: int, count: int) -> dict[str, Array]:
        """Of a device's rows those of one slot, [1, ...]."""
        assert count == 1, "pieces whose slots are apart are not batched"
        return {key: rows[key] for key in self.keys_at(first)}

    def pack(
        self,
        piece: int,
        tree: Tree,
        xp: ModuleType = jnp,
        base: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """As `Layout.pack`; base: the piece's rows as they were, of weights."""
        (of, entry), slot = self._of(piece), self.slots.slot(piece)
        if isinstance(of, Leafwise):
            held = None if base is None else {_parted(key)[1]: a for key, a in base.items()}
            rows = of.pack(entry, tree, xp, held)
        else:
            rows = of.pack(entry, tree, xp)
        return {_joined(slot, key): a for key, a in rows.items()}

    def joined(self, piece: int, tree: Tree) -> dict[str, Array]:
        """As `Leafwise.joined`, of weights."""
        (of, entry), slot = self._of(piece), self.slots.slot(piece)
        assert isinstance(of, Leafwise)
        return {_joined(slot, key): a for key, a in of.joined(entry, tree).items()}

    def filled(self, key: str, row: Array, base: Array | None = None) -> Array:
        """As `Leafwise.filled`, of weights."""
        slot, own = _parted(key)
        of = self.slot_layouts[slot]
        assert isinstance(of, Leafwise)
        return of.filled(own, row, base=base)

    def unpack(self, piece: int, rows: Mapping[str, AnyArray]) -> Tree:
        """As `Layout.unpack`."""
        own = {_parted(key)[1]: a for key, a in rows.items()}
        of, entry = self._of(piece)
        return of.unpack(entry, own)

    def entry(self) -> Slotted:
        """The layout of one tick of a line."""
        lines = (of for of in self.slot_layouts if isinstance(of, Layout))
        return Slotted(tuple(of.entry() for of in lines), self.slots)

    def _of(self, piece: int) -> tuple[Layout | Leafwise, int]:
        """The layout of the slot of a piece, and which of its pieces that is."""
        slot = self.slots.slot(piece)
        return self.slot_layouts[slot], self.slots.at_slot(slot).index(piece)

    def _by_piece(self) -> list[tuple[Layout | Leafwise, int]]:
        return [self._of(l) for l in range(self.slots.num)]


def slotted(layout: Layout) -> Slotted:
    """The same pieces in the same slots, each of which has arrays of its own; weights leaf by leaf."""
    slots = layout.slots

    def picked(slot: int) -> Layout:
        treedefs, leaves = zip(
            *((layout.treedefs[l], layout.leaves[l]) for l in slots.at_slot(slot)), strict=True
        )
        return Layout(layout.kind, treedefs, leaves, Slots(len(leaves), slots.devices))

    each = map(picked, range(slots.local))
    return Slotted(tuple(leafwise(of) if of.kind.trained else of for of in each), slots)


def _joined(slot: int, key: str) -> str:
    return f"{slot:02}/{key}"


def _parted(key: str) -> tuple[int, str]:
    """The slot, and the array's name there."""
    slot, _, of = key.partition("/")
    return int(slot), of
