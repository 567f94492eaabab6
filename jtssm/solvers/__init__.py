"""Training methods as pure functions: arrays in, arrays out."""

from collections.abc import Callable

from jtssm.protocol import Method
from jtssm.solvers import layerwise
from jtssm.solvers.descent import sgd
from jtssm.solvers.layerwise import pdadmm
from jtssm.solvers.streaming import delays
from jtssm.solvers.tssm import Variables, gsadmm, gsam, lagrangian, variables

METHODS: dict[str, Callable[..., Method]] = {
    "gsadmm": gsadmm,
    "gsam": gsam,
    "pdadmm": pdadmm,
    "sgd": sgd,
}

__all__ = [
    "METHODS",
    "Variables",
    "delays",
    "gsadmm",
    "gsam",
    "lagrangian",
    "layerwise",
    "pdadmm",
    "sgd",
    "variables",
]
