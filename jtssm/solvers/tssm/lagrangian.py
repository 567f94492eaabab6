"""L of TSSM as `jtssm.solvers.tssm` writes it, and its variables in a state of the stored schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from jtssm.arrays import Array, Scalar, Tree
from jtssm.protocol.exchange import by_index
from jtssm.protocol.method import Method
from jtssm.protocol.stages import StageProgram
from jtssm.solvers.pieces import Weights
from jtssm.solvers.tssm import stored


class Variables(NamedTuple):
    """The variables of L, one entry a subnetwork or boundary (l = 1 .. n - 1)."""

    W: Sequence[list[Tree]]  # n
    p: Sequence[Array]  # n: p[0] is the data
    q: Sequence[Array]  # n - 1
    u: Sequence[Array]  # n - 1


def variables(state: stored.State, x: Array) -> Variables:
    """The variables of L in an unplaced state of the stored schedule, for samples x [M, ...].

    Of gsAM: q_l = p_{l+1} and u = 0, with which L is its objective, whatever rho.
    """
    held = state.held
    p = [x, *(h.p for h in held[1:])]
    has_dual = state.penalties.rho is not None
    return Variables(
        W=[weights.params for weights in state.weights],
        p=p,
        q=[h.q for h in held[:-1]] if has_dual else p[1:],
        u=[h.u for h in held[1:]] if has_dual else [jnp.zeros_like(a) for a in p[1:]],
    )


def lagrangian(method: Method, v: Variables, y: Array, *, rho: Scalar, alpha: Scalar) -> Array:
    """L as `jtssm.solvers.tssm` writes it, a scalar; for tests and monitoring.

    Args:
      method: from `gsadmm` or `gsam`, unplaced.
      v: its variables; y: labels or targets [M, ...].  rho, alpha: the numbers of L.
    """
    program, n = method.program, len(v.W)
    if not isinstance(program, StageProgram):
        raise ValueError(f"method: expected one from gsadmm or gsam; got {method.name}")
    run = lambda l: program.forward(by_index(n), l, Weights(v.W[l], ()), v.p[l])
    total = method.loss.value(run(n - 1), y).sum()
    for l in range(n - 1):
        gap, miss = v.p[l + 1] - v.q[l], v.q[l] - run(l)
        total += alpha / 2 * jnp.sum(miss**2) + jnp.sum(v.u[l] * gap) + rho / 2 * jnp.sum(gap**2)
    return total
