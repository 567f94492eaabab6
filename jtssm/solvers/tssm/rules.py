"""What tells gsADMM from gsAM at a boundary: how p, q and u are renewed, and what is seen of them.

The updates stand in `jtssm.solvers.tssm.streaming`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from jtssm.arrays import Array, Scalar, Tree
from jtssm.solvers.tssm.updates import (
    Penalties,
    difference,
    scaled,
    squared,
    update_p,
    update_q,
    update_u,
)


class Kept(NamedTuple):
    """What a subnetwork keeps of a minibatch between two sweeps: leaves [samples, ...]."""

    x: Tree  # the data, in the first subnetwork; else ()
    e: Tree  # p - f of the floats that cross, () in the first subnetwork
    u: Tree  # dual of p = q, of the same; () in the first subnetwork and in gsAM
    y: Tree  # labels, in the last subnetwork; else ()


# (e, u, v, squares of what is shown) at the input of a piece; () is none
Renewed = tuple[Tree, Tree, Tree, tuple[Array, ...]]


class Rule(NamedTuple):
    """How a piece renews the variables at its input: what tells gsADMM and gsAM apart."""

    name: str
    # (was: Kept, g_p, penalties) -> (e, u, v, squares of what it shows)
    boundary: Callable[[Kept, Tree, Penalties], Renewed]
    # (penalties, sweeps) -> step length of p where none was given
    default_eta: Callable[[Penalties, int], Scalar]
    sends: str  # what goes backward
    dual: bool  # whether there is a u
    shows: tuple[str, ...]  # names of the residuals, in the order of their squares


def _gsadmm_boundary(was: Kept, g_p: Tree, penalties: Penalties) -> Renewed:
    """p-, q- and dual step; squares of p - q, rho (q - q before), q - f."""
    rho, alpha, eta = penalties
    assert rho is not None
    assert eta is not None
    v_was = jax.tree.map(lambda u: u / alpha, was.u)
    e = update_p(was.e, g_p, was.u, v_was, rho=rho, eta=eta)
    v = update_q(0.0, e, was.u, rho=rho, alpha=alpha)
    u = update_u(was.u, e, v, rho=rho)
    moved = scaled(difference(v, v_was), rho)
    return e, u, v, (squared(difference(e, v)), squared(moved), squared(v))


def _gsam_boundary(was: Kept, g_p: Tree, penalties: Penalties) -> Renewed:
    """The p-step towards f; q = p, so that only the coupling p - f remains."""
    assert penalties.eta is not None
    e = update_p(was.e, g_p, 0.0, 0.0, rho=penalties.alpha, eta=penalties.eta)
    return e, (), e, (squared(e),)


def _gsadmm_eta(penalties: Penalties, sweeps: int) -> Scalar:
    rho, alpha, _ = penalties
    assert rho is not None
    return 1 / alpha + 1 / rho if sweeps == 1 else 1 / (alpha + rho)


def _gsam_eta(penalties: Penalties, sweeps: int) -> Scalar:
    return 1 / penalties.alpha if sweeps == 1 else 1 / (2 * penalties.alpha)


RESIDUALS = ("primal_residual", "dual_residual", "coupling")
GSADMM = Rule("gsadmm", _gsadmm_boundary, _gsadmm_eta, "q - f", dual=True, shows=RESIDUALS)
GSAM = Rule("gsam", _gsam_boundary, _gsam_eta, "p - f", dual=False, shows=("coupling",))
# of a single piece, which has no boundary
SGD = Rule("sgd", _gsam_boundary, _gsam_eta, "", dual=False, shows=())
