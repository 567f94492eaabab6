"""Training methods as pure functions: arrays in, arrays out."""

from jtssm.protocol.optimizers import optimizer
from jtssm.protocol.settings import Settings
from jtssm.solvers.descent import sgd
from jtssm.solvers.layerwise import pdadmm
from jtssm.solvers.methods import METHODS, register
from jtssm.solvers.pipelines import pipeline
from jtssm.solvers.tssm import gsadmm, gsam
from jtssm.solvers.tssm.delayed import delays
from jtssm.solvers.tssm.lagrangian import Variables, lagrangian, variables
from jtssm.solvers.tssm.schedules import Stored, Streaming
from jtssm.solvers.workers.averaging import ensemble, local_sgd
from jtssm.solvers.workers.ist import ist

__all__ = [
    "METHODS",
    "Settings",
    "Stored",
    "Streaming",
    "Variables",
    "delays",
    "ensemble",
    "gsadmm",
    "gsam",
    "ist",
    "lagrangian",
    "layerwise",
    "local_sgd",
    "optimizer",
    "pdadmm",
    "pipeline",
    "register",
    "sgd",
    "variables",
    "workers",
]
