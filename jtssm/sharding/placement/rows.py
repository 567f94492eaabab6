"""What an exchange by collectives carries: the trees of all pieces as arrays sharded over the mesh."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jtssm.protocol.exchange import Kind
from jtssm.sharding.mesh import AxisNames
from jtssm.sharding.placement.packing import Layout
from jtssm.sharding.placement.slotted import Slotted

AnyLayout = Layout | Slotted


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """The trees of all pieces as rows, one array a key; and where each leaf lies in them."""

    rows: dict[str, Any]  # arrays; or what stands for them: shapes, PartitionSpecs
    layout: AnyLayout = field(metadata={"static": True})


def _axes(kind: Kind, key: str) -> tuple[str | None, ...]:
    """Our names of the axes along the first dimensions of rows [slots, ...]."""
    if kind is Kind.WEIGHTS:
        return ("subnet", "pr") if key.endswith("/pr") else ("subnet",)
    if kind is Kind.PARTIAL_GRADIENTS:
        return ("subnet", "pr", "pc") if key.endswith("/pr") else ("subnet", "pc")
    if kind is Kind.COPIES:
        return ("subnet", "pc")
    return ("subnet", None, "pc") if kind is Kind.LINE else ("subnet", "pc")


def axes_of(kind: Kind, names: AxisNames, key: str = "") -> tuple[str, ...]:
    """The mesh's names of the axes along which rows, or sums, of a kind differ."""
    return names.present(*(axis for axis in _axes(kind, key) if axis))


def specs(layout: AnyLayout, names: AxisNames) -> Rows:
    """How the rows of a layout lie on the mesh."""
    return Rows({key: _spec(layout.kind, names, key) for key in layout.keys}, layout)


def _spec(kind: Kind, names: AxisNames, key: str) -> PartitionSpec:
    if kind is Kind.PARTIAL_GRADIENTS:  # behind subnet one dimension for pr and pc
        apart = names.present(*(("pr", "pc") if key.endswith("/pr") else ("pc",)))
        return PartitionSpec(names.subnet, apart or None)
    return names.spec(*_axes(kind, key))


def dtype_of(key: str) -> str:
    """Of the numbers in one of the arrays: "float32", "float32/pr", "02/0003:float32/pr"."""
    return re.findall(r"[a-z]\w*", key)[0]


def is_rows(x: object) -> bool:
    """Whether x is Rows; for tree maps that stop there."""
    return isinstance(x, Rows)
