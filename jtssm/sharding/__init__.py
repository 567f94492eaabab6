"""Where things live and what moves: meshes, placement, layers on a grid."""

from jtssm.sharding.mesh import AxisNames, make_mesh
from jtssm.sharding.packing import Rows, gathered
from jtssm.sharding.placing import batch_sharding, num_splits, place

__all__ = ["AxisNames", "Rows", "batch_sharding", "gathered", "make_mesh", "num_splits", "place"]
