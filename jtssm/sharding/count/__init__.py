"""Bytes counted: in a traced step (`jaxpr`), and in a compiled program (`hlo`)."""

from jtssm.sharding.count.hlo import (
    Collective,
    Permute,
    collectives,
    moved,
    permuted_bytes,
    permutes,
)
from jtssm.sharding.count.jaxpr import count_bytes
from jtssm.sharding.count.routes import Route, ring_bytes

__all__ = [
    "Collective",
    "Permute",
    "Route",
    "collectives",
    "count_bytes",
    "moved",
    "permuted_bytes",
    "permutes",
    "ring_bytes",
]
