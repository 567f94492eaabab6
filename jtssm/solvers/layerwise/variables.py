"""The variables of pdADMM, and its numbers: what stands in a state."""

from __future__ import annotations

from typing import NamedTuple

from jtssm.arrays import Array, Scalar
from jtssm.protocol.exchange import Carried


class Numbers(NamedTuple):
    """The numbers of L and of its steps, scalars; traced, so that a schedule costs no compilation."""

    rho: Scalar  # penalty of p = q
    nu: Scalar  # weight of |z - p W - b|^2 and |q - f(z)|^2
    weight_decay: Scalar  # weight of |W|^2 / 2
    damping: Scalar  # of the W-step with steps="damped"
    t0: Scalar | None  # first step length tried with steps="gradient"; None: exact line search


class Inbox(NamedTuple):
    """A layer's own copy of what stands before it, where q crosses the boundary as codes."""

    q: Array  # q_{l-1} [M, inputs]
    u: Array  # u_{l-1} [M, inputs]


class State(NamedTuple):
    """What the next iteration needs; carried: one a layer."""

    weights: Carried  # Weights: W, b
    p: Carried  # p_l [M, inputs], () in the first
    z: Carried  # z_l [M, width]
    r: Carried  # r_l = p_l W_l + b_l - z_l [M, width]
    q: Carried  # q_l [M, width], () in the last
    u: Carried  # u_l [M, width], () in the last
    inbox: Carried  # Inbox, () in the first; everywhere () unless q is rounded
    numbers: Numbers
    # [] what the steps of p and W are multiplied by: 1, less after a divergence; L then still falls by
    # what the decrease in `Info.shown` says
    pace: Array


def flat(x: Array) -> Array:
    """Samples as rows [M, inputs], also where they are images."""
    return x.reshape(x.shape[0], -1)
