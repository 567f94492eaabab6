"""What a step shows a person: `Info`."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jtssm.arrays import Array


class Info(NamedTuple):
    """What a person wants to see of one step; scalars, the same names at every step of a method.

    Where `samples` is 0 nothing was measured (a pipeline that still fills): all else is nan, never 0.
    What a method shows beside loss and accuracy stands in `shown`, e.g. info.shown["coupling"]:

        gsADMM  primal_residual, dual_residual, coupling
        gsAM    coupling
        pdADMM  objective, decrease, primal_residual, dual_residual, coupling
        others  nothing

        primal_residual  sqrt of the mean over samples of sum_l |p_{l+1} - q_l|^2
        dual_residual    the same of rho (q_l - q_l before the step)
        coupling         the same of q_l - f_l: what Theorem 1 of TSSM bounds the error by
        objective        the augmented Lagrangian, mean over samples
        decrease         by how much theory says that it fell at least, likewise, if rho > 4 nu and
                         nothing is rounded; otherwise the same weighted squares of the steps, without
                         a promise
    """

    loss: Array  # mean loss of the samples that reached the last piece
    accuracy: Array  # share of them it classified rightly; 0 for a loss without labels
    samples: Array  # how many they were
    shown: dict[str, Array]  # what else this method has to show


def measured(info: Info) -> Info:
    """The same, with nan for what no sample was there to be measured on."""
    known = lambda a: jnp.where(info.samples > 0, a, jnp.nan)
    return jax.tree.map(known, info)._replace(samples=info.samples)
