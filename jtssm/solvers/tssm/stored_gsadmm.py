r"""gsADMM as the paper writes it: p, q, u of every sample are stored, all samples stay in place.

One sweep, all l in parallel (the problem stands in `jtssm.solvers.tssm`):

    W_l     <- `weight_steps` optimizer steps, each on a minibatch of (p_l, q_l)
    p_l     <- p_l - eta dL/dp_l                               (l >= 2)
    q_l     <- (alpha f_l(W_l, p_l) + rho p_{l+1} + u_l) / (alpha + rho)      (l < n)
    u_l     <- u_l + rho (p_{l+1} - q_l)

p and q start from a forward pass, u from 0. u_l is kept by subnetwork l + 1 alone: it sends
p_{l+1} + u_l / rho backward, which is all that the q-step needs, and gets q_l in return. How
minibatches are drawn: `jtssm.solvers.tssm.stored`.

Departs from the paper: see `jtssm.solvers.tssm` (sums over samples), and more than one W-step a
sweep by default (an epoch; the paper's 1 is `weight_steps=1`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jtssm.arrays import Array, Scalar, Tree
from jtssm.protocol.exchange import Carried
from jtssm.solvers.pieces import Weights
from jtssm.solvers.tssm.stored import Seen, StoredRule, Sweep, Swept, to_renew_and_to_send
from jtssm.solvers.tssm.updates import Penalties, squared, update_p, update_q, update_u


class Held(NamedTuple):
    """What subnetwork l stores of every sample: leaves [M, ...], () where it has none."""

    p: Tree  # p_l, its input; () in the first: the data
    u: Tree  # u_{l-1}
    q_before: Tree  # q_{l-1}
    q: Tree  # q_l, () in the last


def hold(l: int, p: Array, f: Array, last: bool) -> Held:
    """The variables at the start: p = q = f, u = 0."""
    q = () if last else f
    return Held((), (), (), q) if l == 0 else Held(p, jnp.zeros_like(p), p, q)


def sweep(at: Sweep, weights: Carried, held: Carried, penalties: Penalties) -> Swept:
    """One iteration of gsADMM."""
    rho, alpha, eta = penalties
    assert rho is not None
    eta = 1 / (alpha + rho) if eta is None else eta
    turn = Turn(at, rho, alpha, at.pace * eta)
    weights, held, message, seen = at.exchange.each(
        turn.train_weights_and_p, weights, held, kinds=("weights", "samples", "samples", "sums")
    )
    held, message, moved, missed = at.exchange.each(
        turn.renew_q,
        weights,
        held,
        at.exchange.to_previous(message),
        kinds=("samples", "samples", "sums", "sums"),
    )
    held, gap = at.exchange.each(
        turn.renew_u, held, at.exchange.to_next(message), kinds=("samples", "sums")
    )
    return weights, held, at.info(seen, primal_residual=gap, dual_residual=moved, coupling=missed)


class Turn(NamedTuple):
    """What all pieces share within one sweep; the methods are the work of one of them."""

    at: Sweep
    rho: Scalar
    alpha: Scalar
    eta: Scalar

    def train_weights_and_p(
        self, l: int, weights: Weights, held: Held
    ) -> tuple[Weights, Held, Tree, Seen]:
        """W-steps on minibatches, then the p-step on every sample; sends p + u / rho backward."""
        p = self.at.x if l == 0 else held.p
        weights = self.at.train(l, weights, p, held.q)
        follows = self.at.follows(l, weights, held.q)
        if l == 0:
            return weights, held, (), follows(p)[1][1]
        g, (_, seen) = jax.grad(follows, has_aux=True)(p)
        p = update_p(p, g, held.u, held.q_before, rho=self.rho, eta=self.eta)
        return weights, held._replace(p=p), p + held.u / self.rho, seen

    def renew_q(
        self, l: int, weights: Weights, held: Held, from_next: Tree
    ) -> tuple[Held, Tree, Array, Array]:
        """The q-step; sends q forward. Sums: |rho (q - q before)|^2, |q - f|^2."""
        pieces, exchange, x, *_ = self.at
        zero = jnp.zeros((), self.at.dtype)
        if l == pieces.num - 1:
            return held, (), zero, zero
        f = pieces.forward(exchange, l, weights.params, x if l == 0 else held.p)
        q = update_q(f, from_next, 0.0, rho=self.rho, alpha=self.alpha)
        return held._replace(q=q), q, squared(self.rho * (q - held.q)), squared(q - f)

    def renew_u(self, l: int, held: Held, q_before: Tree) -> tuple[Held, Array]:
        """The dual step at the piece's input. Sum: |p - q|^2."""
        if l == 0:
            return held, jnp.zeros((), self.at.dtype)
        u = update_u(held.u, held.p, q_before, rho=self.rho)
        return held._replace(u=u, q_before=q_before), squared(held.p - q_before)


GSADMM = StoredRule(
    "gsadmm",
    hold,
    sweep,
    forward="q",
    backward="p + u / rho",
    passes=to_renew_and_to_send,
    shows=("primal_residual", "dual_residual", "coupling"),
)
