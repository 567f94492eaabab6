"""Which device along "subnet" holds which pieces: blocks of equally many slots, the empty ones first.

A device has m = ceil(pieces / devices) slots. Where the axis does not divide the number of pieces, the
first slots of all stay empty and the last devices hold more, since first pieces often cost most: their
inputs are wide, and of gsADMM all but the last run forward once more. Whole devices that stay empty are
the first, too. On a device the empty slots come before its pieces, so that what crosses a boundary goes
from the last slot of a device to the first one of the next.
"""

from __future__ import annotations

from typing import NamedTuple, overload

from jtssm.arrays import Array


class Slots(NamedTuple):
    """Who holds what: nothing else reckons where a piece lies."""

    num: int  # of pieces
    devices: int  # no more than pieces

    @property
    def local(self) -> int:
        """Slots a device."""
        return -(-self.num // self.devices)

    @property
    def total(self) -> int:
        """Slots of all devices."""
        return self.local * self.devices

    @property
    def empty(self) -> int:
        """Slots without a piece: those before the first one's."""
        return self.total - self.num

    @overload
    def number(self, device: int, slot: int) -> int: ...
    @overload
    def number(self, device: Array | int, slot: int) -> Array | int: ...
    def number(self, device: Array | int, slot: int) -> Array | int:
        """Of a device's slot among all, one device after the other; device: an integer, traced or not."""
        return device * self.local + slot

    def row(self, piece: int) -> int:
        """The number of its slot among all."""
        return self.empty + piece

    def device(self, piece: int) -> int:
        """Where along "subnet" a piece lies."""
        return self.row(piece) // self.local

    def slot(self, piece: int) -> int:
        """In which of its device's slots a piece lies."""
        return self.row(piece) % self.local

    def piece(self, row: int) -> int | None:
        """Which piece the slot of that number holds; None: it is empty."""
        return row - self.empty if row >= self.empty else None

    def pieces(self, device: int) -> range:
        """The pieces of a device."""
        first, after = (d * self.local - self.empty for d in (device, device + 1))
        return range(max(0, first), max(0, after))

    def at_slot(self, slot: int) -> range:
        """The pieces that devices have at a slot, one each; only the first devices may have none."""
        return range((slot - self.empty) % self.local, self.num, self.local)

    @property
    def used(self) -> range:
        """The devices that have pieces."""
        return range(self.device(0), self.devices)

    def boundary(self, device: int) -> int | None:
        """The piece before the boundary between a device and the next; None where none is cut."""
        pieces = self.pieces(device)
        return pieces[-1] if pieces and pieces.stop < self.num else None
