"""One iteration of pdADMM: what each layer does, and what it tells its neighbours.

Layer l is a piece and keeps p_l (the first: the data), z_l, r_l, q_l and u_l. Across a boundary go
u_l - rho q_l forward, which is all that the p-step needs, and p_{l+1} backward. Where q is rounded
to a grid, its codes go forward instead, and layer l + 1 keeps its own q_l and u_l (`Inbox`).
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jtssm.arrays import Array, Scalar, Tree
from jtssm.protocol.declared import Declared, MatrixProduct, Move
from jtssm.protocol.exchange import Carried, Exchange
from jtssm.protocol.info import Info
from jtssm.protocol.program import Batch
from jtssm.protocol.stages import StageProgram
from jtssm.solvers.layerwise import updates
from jtssm.solvers.layerwise.activations import Activation
from jtssm.solvers.layerwise.quantise import Grid
from jtssm.solvers.pieces import Pieces, Weights

SHOWS = ("primal_residual", "dual_residual", "coupling", "objective", "decrease")
STEPS = ("damped", "gradient", "exact")


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


class Layered(NamedTuple):
    """A multilayer perceptron as pdADMM sees it."""

    pieces: Pieces
    activations: tuple[Activation, ...]  # of the hidden layers
    steps: str  # one of STEPS
    numbers: Numbers
    grid: Grid | None  # what p, and q unless `float_q`, are rounded to
    float_q: bool

    @property
    def rounds_q(self) -> bool:
        """Whether q crosses a boundary as codes."""
        return self.grid is not None and not self.float_q

    def init(
        self, exchange: Exchange, key: Array, x: Array, y: Array, params: Carried | None
    ) -> State:
        """A forward pass: p = q = f(z), r = 0, u = 0."""
        weights = self.pieces.weights(exchange, key, x.dtype, params)
        run = lambda l, weights, p: self.pieces.forward(exchange, l, weights.params, p)
        _, inputs, outputs = exchange.chain(run, weights, x=x, keep=True)
        p, z, r, q, u, inbox = exchange.each(
            self._hold, weights, inputs, outputs, kinds=("samples",) * 6
        )
        numbers = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), self.numbers)
        return State(weights, p, z, r, q, u, inbox, numbers, jnp.ones((), x.dtype))

    def _hold(self, l: int, weights: Weights, p: Array, f: Array) -> tuple[Tree, ...]:
        z = flat(p) @ weights.params[0]["W"] + weights.params[0]["b"][None, :]
        last, zero = l == self.pieces.num - 1, jnp.zeros_like(z)
        inbox = Inbox(p, jnp.zeros_like(p)) if l and self.rounds_q else ()
        return (p if l else (), z, zero, *(((), ()) if last else (f, zero)), inbox)

    def step(self, exchange: Exchange, state: State, x: Array, y: Array) -> tuple[State, Info]:
        """p, W, b, z of all layers in parallel, then q, u of all boundaries."""
        turn = Turn(self, exchange, flat(x), y, state.numbers, state.pace)
        weights, p, z, r, q, u, inbox, *_ = state
        before = inbox
        if not self.rounds_q:
            before = exchange.to_next(
                exchange.each(turn.pull, q, u, kinds=("samples",), batched=True)[0]
            )
        weights, p, z, r, message, sums = exchange.each(
            turn.renew_layer,
            weights,
            p,
            z,
            r,
            q,
            before,
            kinds=("weights", *("samples",) * 4, "sums"),
            batched=True,
        )
        q, u, message, gaps = exchange.each(
            turn.renew_boundary,
            z,
            q,
            u,
            exchange.to_previous(message),
            kinds=(*("samples",) * 3, "sums"),
            batched=True,
        )
        if self.rounds_q:
            (inbox,) = exchange.each(
                turn.renew_inbox,
                p,
                inbox,
                exchange.to_next(message),
                kinds=("samples",),
                batched=True,
            )
        info = turn.info(exchange.samples.total(sums), exchange.samples.total(gaps))
        return State(weights, p, z, r, q, u, inbox, state.numbers, state.pace), info

    def moves(self, samples: int) -> tuple[Move, ...]:
        """What crosses the mesh in an iteration."""
        return (*self._boundary_moves(samples), *self.pieces.gradient_moves(1), *self._sum_moves())

    def _boundary_moves(self, samples: int) -> list[Move]:
        moves = []
        for l in range(self.pieces.num - 1):
            width = self.pieces.inputs(l + 1)[0]
            ends = (
                ("p", l + 1, l, self.grid),
                ("q", l, l + 1, self.grid if self.rounds_q else None),
            )
            for what, source, target, grid in ends:
                if grid is None:
                    name = "u - rho q" if what == "q" else what
                    moves.append(Move(name, (samples, width), "subnet", source, target, 1))
                    continue
                codes = Move(f"codes of {what}", (samples, width), "subnet", source, target, 1)
                moves.append(codes._replace(itemsize=grid.bits // 8))
                if grid.values is None:
                    ends_of = f"ends of {what}'s grids"
                    moves.append(Move(ends_of, (samples, 2), "subnet", source, target, 1))
        return moves

    def _sum_moves(self) -> list[Move]:
        found = []
        for l in range(self.pieces.num):
            i, o = prod(self.pieces.inputs(l)), self.pieces.network.shapes[l + 1][0]
            send = partial(Move, axis="pc", source=l, target=l, times=1, collective="all_reduce")
            squares = 2 if l and self.steps != "exact" else 0  # of p's exact line search
            if self.steps == "gradient":
                found.append(send("squares", (squares + 1,)))
            else:
                found += [send("p^T p", (i * i,)), send("sums of p and r", (i + o + squares,))]
        return found

    def work(self, l: int, samples: int) -> tuple[MatrixProduct, ...]:
        """The products of layer l in an iteration: of its p-step, but in the first, and its W-step."""
        i, o = prod(self.pieces.inputs(l)), self.pieces.network.shapes[l + 1][0]
        found, rounded = [MatrixProduct(samples, i, o, 2)], l > 0 and self.grid is not None
        if self.steps != "gradient":
            found += [MatrixProduct(i, samples, i), *_solve(i, o, split=False)]
        if l > 0:
            found.append(MatrixProduct(samples, i, o, 2 + rounded))
        if l > 0 and self.steps == "exact":
            found += [MatrixProduct(i, o, i, split=False), *_solve(i, samples, split=True)]
        return tuple(found)

    def program(self, precision: str | None) -> StageProgram:
        """The method, written once."""
        samples = dict.fromkeys(("p", "z", "r", "q", "u", "inbox"), "samples")
        declared = Declared(
            self.moves,
            self.work,
            sums=9,
            alike=self._alike(),
            splits_layers=False,
            shows=SHOWS,
        )
        return self.pieces.program(
            "pdadmm",
            {"weights": "weights", **samples},
            declared,
            Batch(None, None, resident=True),
            precision,
            init=self.init,
            step=self.step,
        )

    def _alike(self) -> tuple[int, ...]:
        """For each layer the first one that does the same on the same shapes."""
        num, shapes = self.pieces.num, self.pieces.network.shapes
        kind = lambda l: (shapes[l], shapes[l + 1], self.activations[l].name, l == 0)
        kinds = [kind(l) for l in range(num - 1)]
        return (*(kinds.index(k) for k in kinds), num - 1)


def _solve(size: int, columns: int, *, split: bool) -> tuple[MatrixProduct, ...]:
    """A Cholesky factor, a sixth of size^3 multiply-adds, and two triangular solves with it."""
    return (
        MatrixProduct(size, size, -(-size // 6), split=False, solve=True),
        MatrixProduct(size, size, columns, split=split, solve=True),
    )


def flat(x: Array) -> Array:
    """Samples as rows [M, inputs], also where they are images."""
    return x.reshape(x.shape[0], -1)


class Turn(NamedTuple):
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
        loss = self.layers.pieces.loss
        z_new = updates.update_z_last(z, m, self.y, nu=nu, loss=loss)
        value = lambda a: loss.value(a, self.y).sum()
        seen = value(z_new), value(m), loss.correct(m, self.y).sum()
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
