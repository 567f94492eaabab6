"""jtssm: training deep networks by splitting them, on one device or on a mesh."""

from jtssm import data, losses, nn, plot, sharding, solvers
from jtssm.nn import mlp, sequence
from jtssm.planning import plan
from jtssm.planning.sweeps import sweep
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method
from jtssm.train import callbacks
from jtssm.train.evaluation import evaluate
from jtssm.train.loading import load_params
from jtssm.train.loop import fit
from jtssm.train.result import Result

__all__ = [
    "Info",
    "Method",
    "Result",
    "callbacks",
    "data",
    "evaluate",
    "fit",
    "load_params",
    "losses",
    "mlp",
    "nn",
    "plan",
    "plot",
    "sequence",
    "sharding",
    "solvers",
    "sweep",
]
__version__ = "0.1.0"
