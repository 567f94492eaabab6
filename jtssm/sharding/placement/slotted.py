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


class Slotted(NamedTuple):
    """Where the leaves of all pieces lie, slot by slot; else as `Layout`."""

    slot_layouts: tuple[Layout | Leafwise, ...]  # entry d of each is of the piece on device d

    @property
    def kind(self) -> Kind:
        """What is laid out."""
        return self.slot_layouts[0].kind

    @property
    def local(self) -> int:
        """Slots a device."""
        return len(self.slot_layouts)

    @property
    def leaves(self) -> tuple[tuple[Leaf, ...], ...]:
        """One tuple a piece."""
        return tuple(of.leaves[d] for d, of in self._by_piece())

    @property
    def treedefs(self) -> tuple[jax.tree_util.PyTreeDef, ...]:
        """One a piece."""
        return tuple(of.treedefs[d] for d, of in self._by_piece())

    @property
    def keys(self) -> list[str]:
        """The arrays there are."""
        return [key for slot in range(self.local) for key in self.keys_of(slot)]

    def tail(self, key: str) -> tuple[int, ...]:
        """What stands behind the leading dimensions of one of the arrays."""
        slot, of = _parted(key)
        return self.slot_layouts[slot].tail(of)

    def ticks(self, piece: int) -> int:
        """Length of the line of a piece; 0 where it has none."""
        return self._of(piece).ticks(piece // self.local)

    def slot_ticks(self, key: str) -> int:
        """Length of one of the arrays, of lines: of the longest that has it."""
        layout = self.slot_layouts[_parted(key)[0]]
        return max(layout.ticks(d) for d in range(len(layout.leaves)))

    def num_rows(self, slots: int) -> int:
        """Of an array, for so many slots all together."""
        return slots // self.local

    def piece(self, key: str, row: int) -> int:
        """Which piece a row of one of the arrays is of; there may be none of that number."""
        return row * self.local + _parted(key)[0]

    def row(self, piece: int) -> int:
        """In which row of its arrays a piece lies."""
        return piece // self.local

    def keys_of(self, piece: int) -> list[str]:
        """The arrays in which pieces at its slot lie."""
        return [_joined(piece % self.local, key) for key in self._of(piece).keys]

    def slots(self, rows: Mapping[str, Array], first: int, count: int) -> dict[str, Array]:
        """Of a device's rows those of one slot, [1, ...]."""
        assert count == 1, "pieces whose slots are apart are not batched"
        return {key: rows[key] for key in self.keys_of(first)}

    def pack(
        self,
        piece: int,
        tree: Tree,
        xp: ModuleType = jnp,
        base: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """As `Layout.pack`; base: the piece's rows as they were, of weights."""
        of, slot = self._of(piece), piece % self.local
        if isinstance(of, Leafwise):
            held = None if base is None else {_parted(key)[1]: a for key, a in base.items()}
            rows = of.pack(piece // self.local, tree, xp, held)
        else:
            rows = of.pack(piece // self.local, tree, xp)
        return {_joined(slot, key): a for key, a in rows.items()}

    def joined(self, piece: int, tree: Tree) -> dict[str, Array]:
        """As `Leafwise.joined`, of weights."""
        of = self._of(piece)
        assert isinstance(of, Leafwise)
        rows = of.joined(piece // self.local, tree)
        return {_joined(piece % self.local, key): a for key, a in rows.items()}

    def filled(self, key: str, row: Array, base: Array | None = None) -> Array:
        """As `Leafwise.filled`, of weights."""
        slot, own = _parted(key)
        of = self.slot_layouts[slot]
        assert isinstance(of, Leafwise)
        return of.filled(own, row, base=base)

    def unpack(self, piece: int, rows: Mapping[str, AnyArray]) -> Tree:
        """As `Layout.unpack`."""
        own = {_parted(key)[1]: a for key, a in rows.items()}
        return self._of(piece).unpack(piece // self.local, own)

    def entry(self) -> Slotted:
        """The layout of one tick of a line."""
        lines = (of for of in self.slot_layouts if isinstance(of, Layout))
        return Slotted(tuple(of.entry() for of in lines))

    def _of(self, piece: int) -> Layout | Leafwise:
        return self.slot_layouts[piece % self.local]

    def _by_piece(self) -> list[tuple[int, Layout | Leafwise]]:
        num = sum(len(of.leaves) for of in self.slot_layouts)
        return [(l // self.local, self._of(l)) for l in range(num)]


def slotted(layout: Layout, local: int) -> Slotted:
    """The same pieces on devices with so many slots, weights leaf by leaf."""
    picked = (
        Layout(layout.kind, layout.treedefs[slot::local], layout.leaves[slot::local])
        for slot in range(local)
    )
    return Slotted(tuple(leafwise(of) if of.kind.trained else of for of in picked))


def _joined(slot: int, key: str) -> str:
    return f"{slot:02}/{key}"


def _parted(key: str) -> tuple[int, str]:
    """The slot, and the array's name there."""
    slot, _, of = key.partition("/")
    return int(slot), of
