"""Training methods as pure functions: arrays in, arrays out."""

from jtssm.solvers.descent import sgd
from jtssm.solvers.tssm import Variables, gsadmm, lagrangian, variables

METHODS = {"gsadmm": gsadmm, "sgd": sgd}

__all__ = ["METHODS", "Variables", "gsadmm", "lagrangian", "sgd", "variables"]
