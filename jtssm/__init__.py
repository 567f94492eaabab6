"""jtssm: training deep networks by splitting them, on one device or on a mesh."""

from jtssm import data, losses, sharding, solvers
from jtssm.loop import Result, fit
from jtssm.network import mlp, sequence
from jtssm.protocol import Info, Method

__all__ = [
    "Info", "Method", "Result", "data", "fit", "losses", "mlp", "sequence", "sharding", "solvers",
]  # fmt: skip
__version__ = "0.1.0"
