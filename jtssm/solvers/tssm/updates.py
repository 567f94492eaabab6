"""The block updates of gsADMM and gsAM, array in, array out; the problem stands in `jtssm.solvers.tssm`.

Only differences to q_l enter, so the same functions serve absolute variables ("stored") and
variables counted from f_l ("streaming": f = 0).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jtssm.arrays import Array, Scalar


class Penalties(NamedTuple):
    """The numbers of L, scalars; traced, so that a schedule costs no compilation."""

    rho: Scalar | None  # penalty of p = q; None in gsAM
    alpha: Scalar  # weight of |q - f|^2
    eta: Scalar | None  # step length of p; None: chosen by the schedule from rho and alpha

    def as_arrays(self, dtype: DTypeLike) -> Penalties:
        """The same as scalars of the given dtype."""
        return jax.tree.map(lambda a: jnp.asarray(a, dtype), self)


def update_p(
    p: Array, g: Array, u: Array | float, q: Array | float, *, rho: Scalar, eta: Scalar
) -> Array:
    """p <- p - eta dL/dp for p = p_{l+1}, u = u_l, q = q_l, all [samples, ...].

    g is the gradient of what follows p: of R for the last subnetwork, else of its Omega. gsAM's step
    is this one towards f_l in the place of q_l, with alpha in the place of rho and u = 0.
    """
    return p - eta * (g + u + rho * (p - q))


def update_q(f: Array | float, p: Array, u: Array | float, *, rho: Scalar, alpha: Scalar) -> Array:
    """q <- argmin_q L = (alpha f + rho p + u) / (alpha + rho), p = p_{l+1}; all [samples, ...]."""
    return (alpha * f + rho * p + u) / (alpha + rho)


def update_u(u: Array, p: Array, q: Array, *, rho: Scalar) -> Array:
    """u <- u + rho (p - q) with p = p_{l+1}; all [samples, ...]. Then u = alpha (q - f)."""
    return u + rho * (p - q)


def squared(a: Array) -> Array:
    """|a|^2 summed over samples: a scalar."""
    return jnp.sum(a * a)
