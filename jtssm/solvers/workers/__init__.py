"""Methods of equal workers: independent subnets, local SGD, ensembles, and what one's own are made of."""

from jtssm.solvers.workers.local_steps import Local, local

__all__ = ["Local", "local"]
