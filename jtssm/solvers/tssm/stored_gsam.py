r"""gsAM as the paper writes it: p of every sample is stored, q and u are eliminated by q_l = p_{l+1}.

One sweep (the problem stands in `jtssm.solvers.tssm`), W for all l in parallel, then p:

    W_l  <- `weight_steps` optimizer steps, each on a minibatch of (p_l, p_{l+1})
    p_l  <- p_l - eta [ g_l + alpha (p_l - f_{l-1}(W_{l-1}, p_{l-1})) ]           (l >= 2)

with g_l the gradient of Omega_l(W_l, p_l, p_{l+1}) (l < n) or of R (l = n) at the old p_l, p_{l+1}.

order="sequential" is the sweep as printed, l = 2, ..., n with p_{l-1} already new. g_l contains no
other new variable, so the gradients of all l are still taken in parallel, and only a forward pass
goes from subnetwork to subnetwork. order="parallel" (ours: a Jacobi sweep) takes the old p_{l-1}
too: nothing waits, and f_{l-1} is at hand from the gradient, which saves that pass.

p starts from a forward pass. Across a boundary go f_{l-1} forward and p_l backward: a subnetwork
keeps its neighbour's p_{l+1} as its target. How minibatches are drawn: `jtssm.solvers.tssm.stored`.

Departs from the paper: see `jtssm.solvers.tssm` (sums over samples), and more than one W-step a
sweep by default (an epoch; the paper's 1 is `weight_steps=1`).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jtssm.arrays import Array, Scalar, Tree
from jtssm.protocol.exchange import Carried
from jtssm.solvers.pieces import Weights
from jtssm.solvers.tssm.stored import Seen, StoredRule, Sweep, Swept, to_renew_and_to_send
from jtssm.solvers.tssm.updates import Penalties, squared, update_p


class Held(NamedTuple):
    """What subnetwork l stores of every sample: leaves [M, ...], () where it has none."""

    p: Tree  # p_l, its input; () in the first: the data
    target: Tree  # p_{l+1}, () in the last


def hold(l: int, p: Array, f: Array, last: bool) -> Held:
    """The variables at the start: p_{l+1} = f_l."""
    return Held(p if l else (), () if last else f)


def sweep(order: str, at: Sweep, weights: Carried, held: Carried, penalties: Penalties) -> Swept:
    """One iteration of gsAM."""
    _, alpha, eta = penalties
    turn = Turn(at, alpha, at.pace * (1 / (2 * alpha) if eta is None else eta))
    weights, pull, f, seen = at.exchange.each(
        turn.train_weights, weights, held, kinds=("weights", "samples", "samples", "sums")
    )
    if order == "parallel":
        arrived = at.exchange.to_next(f)
    else:
        _, arrived, _ = at.exchange.chain(turn.pass_on, weights, held, pull, x=at.x, keep=True)
    held, message, missed = at.exchange.each(
        turn.renew_p, held, pull, arrived, kinds=("samples", "samples", "sums")
    )
    aim = lambda l, held, p: (held._replace(target=p),)
    (held,) = at.exchange.each(aim, held, at.exchange.to_previous(message), kinds=("samples",))
    return weights, held, at.info(seen, coupling=missed)


class Turn(NamedTuple):
    """What all pieces share within one sweep; the methods are the work of one of them."""

    at: Sweep
    alpha: Scalar
    eta: Scalar

    def train_weights(
        self, l: int, weights: Weights, held: Held
    ) -> tuple[Weights, Tree, Tree, Seen]:
        """W-steps on minibatches; then g_l and f_l at the old p_l, on every sample."""
        p = self.at.x if l == 0 else held.p
        weights = self.at.train(l, weights, p, held.target)
        follows = self.at.follows(l, weights, held.target)
        if l == 0:
            f, seen = follows(p)[1]
            return weights, (), f, seen
        g, (f, seen) = jax.grad(follows, has_aux=True)(p)
        return weights, g, f if l < self.at.pieces.num - 1 else (), seen

    def pass_on(self, l: int, weights: Weights, held: Held, g: Tree, f_before: Array) -> Array:
        """f_l at the new p_l, for the next subnetwork of a sequential sweep."""
        p = self._step(l, held, g, f_before)
        return self.at.pieces.forward(self.at.exchange, l, weights.params, p)

    def renew_p(self, l: int, held: Held, g: Tree, f_before: Tree) -> tuple[Held, Tree, Array]:
        """The p-step; sends p backward. Sum: |p_l - f_{l-1}|^2, with the f that the step saw."""
        if l == 0:
            return held, (), jnp.zeros((), self.at.dtype)
        p = self._step(l, held, g, f_before)
        return held._replace(p=p), p, squared(p - f_before)

    def _step(self, l: int, held: Held, g: Tree, f_before: Array) -> Array:
        """The new p_l: in the first subnetwork the data, which arrive as f_before."""
        if l == 0:
            return f_before
        return update_p(held.p, g, 0.0, f_before, rho=self.alpha, eta=self.eta)


ORDERS = {
    order: StoredRule(
        "gsam",
        hold,
        partial(sweep, order),
        forward="f",
        backward="p",
        passes=passes,
        shows=("coupling",),
    )
    for order, passes in (("sequential", to_renew_and_to_send), ("parallel", lambda l, n: 1))
}
