"""Training methods as pure functions: arrays in, arrays out."""

from jtssm.solvers.descent import sgd
from jtssm.solvers.streaming import delays
from jtssm.solvers.tssm import Variables, gsadmm, gsam, lagrangian, variables

METHODS = {"gsadmm": gsadmm, "gsam": gsam, "sgd": sgd}

__all__ = ["METHODS", "Variables", "delays", "gsadmm", "gsam", "lagrangian", "sgd", "variables"]
