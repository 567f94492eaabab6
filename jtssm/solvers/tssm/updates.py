"""The block updates of gsADMM and gsAM, array in, array out; the problem stands in `jtssm.solvers.tssm`.

Only differences to q_l enter, so the same functions serve absolute variables ("stored") and
variables counted from f_l ("streaming": f = 0).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from jtssm.arrays import Array


class Penalties(NamedTuple):
    """The numbers of L, scalars; traced, so that a schedule costs no compilation."""

    rho: Any  # penalty of p = q; None in gsAM
    alpha: Any  # weight of |q - f|^2
    eta: Any  # step length of p; None: chosen by the schedule from rho and alpha

    def as_arrays(self, dtype: Any) -> Penalties:
        """The same as scalars of the given dtype."""
        return Penalties(*(None if a is None else jnp.asarray(a, dtype) for a in self))


def update_p(p: Array, g: Array, u: Any, q: Any, *, rho: Any, eta: Any) -> Array:
    """p <- p - eta dL/dp for p = p_{l+1}, u = u_l, q = q_l, all [samples, ...].

    g is the gradient of what follows p: of R for the last subnetwork, else of its Omega. gsAM's step
    is this one towards f_l in the place of q_l, with alpha in the place of rho and u = 0.
    """
    return p - eta * (g + u + rho * (p - q))


def update_q(f: Any, p: Array, u: Any, *, rho: Any, alpha: Any) -> Array:
    """q <- argmin_q L = (alpha f + rho p + u) / (alpha + rho), p = p_{l+1}; all [samples, ...]."""
    return (alpha * f + rho * p + u) / (alpha + rho)


def update_u(u: Array, p: Array, q: Array, *, rho: Any) -> Array:
    """u <- u + rho (p - q) with p = p_{l+1}; all [samples, ...]. Then u = alpha (q - f)."""
    return u + rho * (p - q)


def squared(a: Array) -> Array:
    """|a|^2 summed over samples: a scalar."""
    return jnp.sum(a * a)
