"""Where things live and what moves: meshes, placement, layers on a grid, bytes counted."""

from jtssm.sharding.count.jaxpr import count_bytes
from jtssm.sharding.count.routes import Route, ring_bytes
from jtssm.sharding.distributed import ProcessBatches, ProcessSamples, connect
from jtssm.sharding.mesh import AxisNames, make_mesh
from jtssm.sharding.placement import batch_sharding, num_splits, place
from jtssm.sharding.placement.packing import Rows, gathered

__all__ = [
    "AxisNames",
    "ProcessBatches",
    "ProcessSamples",
    "Route",
    "Rows",
    "batch_sharding",
    "connect",
    "count_bytes",
    "gathered",
    "make_mesh",
    "num_splits",
    "place",
    "ring_bytes",
]
