"""Where things live, what moves and what it costs: meshes, placement, forms, bytes, the cost model."""

from jtssm.sharding import cost, count
from jtssm.sharding.cost import (
    MACHINES,
    Machine,
    calibrate,
    find_machine,
    fitted,
    present_machine,
    published,
    step_bytes,
    step_seconds,
)
from jtssm.sharding.count import Route, count_bytes, ring_bytes
from jtssm.sharding.distributed import ProcessBatches, ProcessSamples
from jtssm.sharding.layers import FORMS, Slabs, misfit, whole_grid
from jtssm.sharding.meeting import connect
from jtssm.sharding.mesh import AXES, AxisNames, make_mesh, put
from jtssm.sharding.placement import batch_sharding, num_splits, place
from jtssm.sharding.placement.on_host import gathered
from jtssm.sharding.placement.rows import Rows
from jtssm.sharding.placement.whole import CallSamples

__all__ = [
    "AXES",
    "FORMS",
    "MACHINES",
    "AxisNames",
    "CallSamples",
    "Machine",
    "ProcessBatches",
    "ProcessSamples",
    "Route",
    "Rows",
    "Slabs",
    "batch_sharding",
    "calibrate",
    "connect",
    "cost",
    "count",
    "count_bytes",
    "find_machine",
    "fitted",
    "gathered",
    "make_mesh",
    "misfit",
    "num_splits",
    "place",
    "present_machine",
    "published",
    "put",
    "ring_bytes",
    "step_bytes",
    "step_seconds",
    "whole_grid",
]
