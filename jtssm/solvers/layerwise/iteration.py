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

from jtssm.arrays import Array, Tree
from jtssm.protocol.declared import Declared, MatrixProduct, Move
from jtssm.protocol.exchange import Carried, Exchange
from jtssm.protocol.info import Info
from jtssm.protocol.program import Batch
from jtssm.protocol.stages import StageProgram
from jtssm.solvers.layerwise.activations import Activation
from jtssm.solvers.layerwise.layer_turn import SHOWS, LayerTurn
from jtssm.solvers.layerwise.variables import Inbox, Numbers, State, flat
from jtssm.solvers.pieces import Pieces, Weights
from jtssm.solvers.quantise import RoundingGrid

STEPS = ("damped", "gradient", "exact")


class Layered(NamedTuple):
    """A multilayer perceptron as pdADMM sees it."""

    pieces: Pieces
    activations: tuple[Activation, ...]  # of the hidden layers
    steps: str  # one of STEPS
    numbers: Numbers
    grid: RoundingGrid | None  # what p, and q unless `float_q`, are rounded to
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
        turn = LayerTurn(self, exchange, flat(x), y, state.numbers, state.pace)
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
        moves: list[Move] = []
        for l in range(self.pieces.num - 1):
            width = self.pieces.inputs(l + 1)[0]
            send = partial(Move, shape=(samples, width), axis="subnet", times=1)
            backward = send("p", source=l + 1, target=l)
            forward = send("q" if self.rounds_q else "u - rho q", source=l, target=l + 1)
            moves += [backward] if self.grid is None else self.grid.moves(backward)
            moves += self.grid.moves(forward) if self.grid and self.rounds_q else [forward]
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
