"""The block updates of gsADMM and gsAM, arrays or trees of them in and out.

The problem stands in `jtssm.solvers.tssm`.

Only differences to q_l enter, so the same functions serve absolute variables ("stored") and
variables counted from f_l ("streaming": f = 0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jtssm.arrays import Array, Scalar, Tree


class Penalties(NamedTuple):
    """The numbers of L, scalars; traced, so that a schedule costs no compilation."""

    rho: Scalar | None  # penalty of p = q; None in gsAM
    alpha: Scalar  # weight of |q - f|^2
    eta: Scalar | None  # step length of p; None: chosen by the schedule from rho and alpha

    def as_arrays(self, dtype: DTypeLike) -> Penalties:
        """The same as scalars of the given dtype."""
        return jax.tree.map(lambda a: jnp.asarray(a, dtype), self)


def update_p(p: Tree, g: Tree, u: Tree, q: Tree, *, rho: Scalar, eta: Scalar) -> Tree:
    """p <- p - eta dL/dp for p = p_{l+1}, u = u_l, q = q_l, all [samples, ...].

    g is the gradient of what follows p: of R for the last subnetwork, else of its Omega. gsAM's step
    is this one towards f_l in the place of q_l, with alpha in the place of rho and u = 0.
    """
    step = lambda p, g, u, q: p - eta * (g + u + rho * (p - q))
    return _each(step, p, g, u, q)


def update_q(f: Tree, p: Tree, u: Tree, *, rho: Scalar, alpha: Scalar) -> Tree:
    """q <- argmin_q L = (alpha f + rho p + u) / (alpha + rho), p = p_{l+1}; all [samples, ...]."""
    return _each(lambda p, f, u: (alpha * f + rho * p + u) / (alpha + rho), p, f, u)


def update_u(u: Tree, p: Tree, q: Tree, *, rho: Scalar) -> Tree:
    """u <- u + rho (p - q) with p = p_{l+1}; all [samples, ...]. Then u = alpha (q - f)."""
    return jax.tree.map(lambda u, p, q: u + rho * (p - q), u, p, q)


def squared(a: Tree) -> Array:
    """|a|^2 summed over samples: a scalar."""
    return sum_of(jnp.sum(each * each) for each in jax.tree.leaves(a))


def difference(a: Tree, b: Tree) -> Tree:
    """a - b, array by array."""
    return jax.tree.map(jnp.subtract, a, b)


def scaled(a: Tree, by: Scalar) -> Tree:
    """a times a number."""
    return jax.tree.map(lambda each: by * each, a)


def sum_of(numbers: Iterable[Array]) -> Array:
    """Their sum, of one number that itself."""
    return reduce(jnp.add, numbers)


def _each(step: Callable[..., Array], p: Tree, *given: Tree) -> Tree:
    """The step of every array of p with those of what is given; a number is the same for all of them."""
    whole = [jax.tree.map(lambda _, a=a: a, p) if isinstance(a, (int, float)) else a for a in given]
    return jax.tree.map(step, p, *whole)
