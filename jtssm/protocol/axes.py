"""The mesh's three axes, named once.

"subnet": which subnetworks live where.  "pr": the split of a layer.  "pc": the split of the samples.
"""

from __future__ import annotations

from typing import NamedTuple

from jax.sharding import PartitionSpec

AXES = ("subnet", "pr", "pc")


class AxisNames(NamedTuple):
    """What the three axes are called in a user's mesh; None: it has no such axis (size 1)."""

    subnet: str | None
    pr: str | None
    pc: str | tuple[str, ...] | None  # several: the samples are split over all of them

    def present(self, *axes: str) -> tuple[str, ...]:
        """The mesh's names of those of the given axes that it has."""
        names = (getattr(self, axis) for axis in axes)
        return tuple(
            n for name in names if name for n in ((name,) if isinstance(name, str) else name)
        )

    def spec(self, *axes: str | None) -> PartitionSpec:
        """A PartitionSpec from our axis names, one a dimension."""
        return PartitionSpec(*(axis and getattr(self, axis) for axis in axes))
