"""Training methods as pure functions: arrays in, arrays out."""

from collections.abc import Callable

from jtssm.protocol.method import Method
from jtssm.protocol.optimizers import optimizer
from jtssm.protocol.settings import Settings
from jtssm.solvers.descent import sgd
from jtssm.solvers.layerwise import pdadmm
from jtssm.solvers.tssm import Variables, gsadmm, gsam, lagrangian, variables
from jtssm.solvers.tssm.schedules import Stored, Streaming
from jtssm.solvers.tssm.streaming import delays
from jtssm.solvers.workers.averaging import ensemble, local_sgd
from jtssm.solvers.workers.ist import ist

METHODS: dict[str, Callable[..., Method]] = {
    "ensemble": ensemble,
    "gsadmm": gsadmm,
    "gsam": gsam,
    "ist": ist,
    "local_sgd": local_sgd,
    "pdadmm": pdadmm,
    "sgd": sgd,
}

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
    "sgd",
    "variables",
]
