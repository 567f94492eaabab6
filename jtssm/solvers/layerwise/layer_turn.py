"""What each layer does within an iteration of pdADMM; the order stands in `iteration`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

from jtssm.arrays import Array, Tree
from jtssm.protocol.exchange import Exchange
from jtssm.protocol.info import Info
from jtssm.solvers.layerwise import updates
from jtssm.solvers.layerwise.variables import Inbox, Numbers
from jtssm.solvers.pieces import Weights
from jtssm.solvers.weighing import weigh

if TYPE_CHECKING:
    from jtssm.solvers.layerwise.iteration import Layered

SHOWS = ("primal_residual", "dual_residual", "coupling", "objective", "decrease")


class LayerTurn(NamedTuple):
    """What all layers share within an iteration; the methods are the work of one of them."""

    layers: Layered
    exchange: Exchange
    x: Array
    y: Array
    numbers: Numbers
    pace: Array

    def pull(self, l: int, q: Tree, u: Tree) -> tuple[Tree]:
        """u_l - rho q_l, for layer l + 1."""
        return ((),) if l == self.layers.pieces.num - 1 else (u - self.numbers.rho * q,)

    def renew_layer(
        self, l: int, weights: Weights, p: Tree, z: Array, r: Array, q: Tree, before: Tree
    ) -> tuple[Weights, Tree, Array, Array, Tree, tuple[Array, ...]]:
        """The p-, W-, b- and z-step; sends p backward. Sums: L, its guaranteed fall, R(m), right."""
        p_new, message, fallen = self.x, (), jnp.zeros((), z.dtype)
        if l > 0:
            p_new, r, message, fallen = self._renew_p(p, r, weights.params[0]["W"], before)
        params, r, fallen_too = self._renew_weights(weights.params[0], r, p_new)
        m = z + r
        z, fallen_at_last, (cost, loss, right) = self._renew_z(l, z, m, q)
        r = m - z
        _, nu, weight_decay, *_ = self.numbers
        decay = weight_decay / 2 * updates.squared(params["W"]) / self.exchange.samples.num_splits
        objective = cost + nu / 2 * updates.squared(r) + decay
        sums = objective, fallen + fallen_too + fallen_at_last, loss, right
        renewed = Weights([params], weights.opt_state)
        return renewed, p_new if l else (), z, r, message, sums

    def _renew_p(
        self, p: Array, r: Array, W: Array, before: Tree
    ) -> tuple[Array, Array, Tree, Array]:
        """(p, r, what goes backward, fall of L); one product more where p is rounded to a grid."""
        rho, nu, _, _, t0 = self.numbers
        grid = self.layers.grid
        rounded = isinstance(before, Inbox)
        pull = (before.q, before.u) if rounded else (jnp.zeros((), p.dtype), before)
        if self.layers.steps == "exact":
            moved, r_moved, tau = updates.minimise_p(p, r, W, *pull, rho=rho, nu=nu, pace=self.pace)
        else:
            moved, r_moved, tau = updates.update_p(
                p,
                r,
                W,
                *pull,
                rho=rho,
                nu=nu,
                t0=t0,
                pace=self.pace,
                total=self.exchange.samples.sum,
            )
        message: Tree = moved
        if grid is not None:
            message = grid.encode(moved)
            moved = grid.decode(message, p.dtype)
            r_moved = r + (moved - p) @ W
        return moved, r_moved, message, tau / 2 * updates.squared(moved - p)

    def _renew_weights(
        self, params: dict[str, Array], r: Array, p: Array
    ) -> tuple[dict[str, Array], Array, Array]:
        """(W and b, r, fall of L): the W-step, then the b-step."""
        _, nu, weight_decay, damping, t0 = self.numbers
        total, count = self.exchange.samples.sum, self._count
        shared = {"nu": nu, "weight_decay": weight_decay, "pace": self.pace}
        if self.layers.steps == "gradient":
            W, r_moved, theta = updates.update_W(params["W"], r, p, t0=t0, total=total, **shared)
        else:
            W, r_moved, theta = updates.minimise_W(
                params["W"], r, p, damping=damping, total=total, samples=count, **shared
            )
        b, r_moved = updates.update_b(params["b"], r_moved, total=total, samples=count)
        fallen = theta / 2 * updates.squared(W - params["W"]) / self.exchange.samples.num_splits
        if self.layers.steps == "gradient":
            moved = updates.squared(b - params["b"]) * count / self.exchange.samples.num_splits
        else:  # W and b were minimised together
            moved = updates.squared(r_moved - r)
        return {"W": W, "b": b}, r_moved, fallen + nu / 2 * moved

    def _renew_z(
        self, l: int, z: Array, m: Array, q: Tree
    ) -> tuple[Array, Array, tuple[Array, Array, Array]]:
        """(z, fall of L, (R(z), loss of m, number right in m))."""
        rho, nu, zero = self.numbers.rho, self.numbers.nu, jnp.zeros((), z.dtype)
        if l < self.layers.pieces.num - 1:
            activation = self.layers.activations[l]
            z_new = updates.update_z(z, m, q, nu=nu, activation=activation)
            constant = jnp.maximum(nu / 2 - 2 * (nu * activation.lipschitz) ** 2 / rho, 0)
            return z_new, constant * updates.squared(z_new - z), (zero, zero, zero)
        loss, split = self.layers.pieces.loss, self.exchange.samples
        weighing = weigh(loss, self.y, z.shape[0] * split.num_splits, split.sum, z.dtype)
        weight = weighing.sample_weights(z)
        z_new = updates.update_z_last(z, m, self.y, nu=nu, loss=loss, weight=weight)
        (now, _), (passed, sums) = weighing.scaled(z_new), weighing.scaled(m)
        seen = now, passed, sums.right * weighing.scale
        return z_new, nu / 2 * updates.squared(z_new - z), seen

    def renew_boundary(
        self, l: int, z: Array, q: Tree, u: Tree, from_next: Tree
    ) -> tuple[Tree, Tree, Tree, tuple[Array, ...]]:
        """The q- and the u-step; sends codes of q forward where q is rounded."""
        zero = jnp.zeros((), z.dtype)
        if l == self.layers.pieces.num - 1:
            return (), (), (), (zero,) * 5
        rho, nu, *_ = self.numbers
        activation, grid = self.layers.activations[l], self.layers.grid
        message: Tree = ()
        p = from_next if grid is None else grid.decode(from_next, z.dtype)
        q_new = updates.update_q(p, u, z, rho=rho, nu=nu, activation=activation)
        if grid is not None and self.layers.rounds_q:
            message = grid.encode(q_new)
            q_new = grid.decode(message, z.dtype)
        u = updates.update_u(u, p, q_new, rho=rho)
        gap, miss = updates.squared(p - q_new), updates.squared(q_new - activation.f(z))
        objective = nu / 2 * miss + jnp.sum(u * (p - q_new)) + rho / 2 * gap
        moved = updates.squared(q_new - q)
        constant = jnp.maximum(rho / 2 - 2 * nu**2 / rho - nu / 2, 0)
        return q_new, u, message, (objective, constant * moved, gap, rho**2 * moved, miss)

    def renew_inbox(self, l: int, p: Tree, inbox: Tree, message: Tree) -> tuple[Tree]:
        """The u-step at the other end of the boundary: the same numbers on both sides."""
        if l == 0:
            return ((),)
        assert self.layers.grid is not None
        q = self.layers.grid.decode(message, p.dtype)
        return (Inbox(q, updates.update_u(inbox.u, p, q, rho=self.numbers.rho)),)

    @property
    def _count(self) -> int:
        """Samples on all devices."""
        return self.x.shape[0] * self.exchange.samples.num_splits

    def info(self, sums: tuple[Array, ...], gaps: tuple[Array, ...]) -> Info:
        """Means over all samples."""
        objective, fallen, loss, right = (a / self._count for a in sums)
        at_boundaries, moved, *squares = (a / self._count for a in gaps)
        count = jnp.full_like(loss, self._count)
        numbers = (*map(jnp.sqrt, squares), objective + at_boundaries, fallen + moved)
        return Info(loss, right, count, dict(zip(SHOWS, numbers, strict=True)))
