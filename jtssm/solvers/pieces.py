"""What every method that cuts a network shares: the pieces, their weights and a descent step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import DTypeLike

from jtssm.arrays import Array, Scalar, Tree
from jtssm.nn.boundary import (
    SampleTree,
    by_dtype,
    cast,
    described,
    float_dtype,
    floating,
    num_samples,
)
from jtssm.nn.network import estimate_layers, keep_estimated, run_layers
from jtssm.nn.ops import Products
from jtssm.protocol import sample_checks
from jtssm.protocol.declared import LOSS, Declared, Move
from jtssm.protocol.exchange import Carried, Exchange
from jtssm.protocol.info import Info
from jtssm.protocol.piece_optimizers import check_state, frozen, wants_loss
from jtssm.protocol.program import Batch, Stages
from jtssm.protocol.stages import StageProgram
from jtssm.solvers.quantise import UNROUNDED, Crossing, RoundingGrid

Found = TypeVar("Found")


class Weights(NamedTuple):
    """What a piece trains."""

    params: list[Tree]  # W_l: one tree a layer of the piece
    opt_state: Tree


Starting = Callable[[int, list[Tree]], Weights]  # (l, parameters of piece l) -> its weights


class Pieces(Stages):
    """The pieces of a network, and what every method does with them."""

    __slots__ = ()

    def draw(self, exchange: Exchange, l: int, key: Array, dtype: DTypeLike) -> list[Tree]:
        """Random parameters of piece l, as much of them as this device stores."""
        layers = range(self.starts[l], self.starts[l + 1])
        return exchange.layers.own(l, self.network.init_layers(layers, key, dtype))

    def start(self, l: int, params: list[Tree]) -> Weights:
        """Parameters of piece l with a fresh optimizer state.

        Raises:
          ValueError: an optimizer that cannot train parameters of these dtypes.
        """
        check_state(self.optimizers[l], params)
        return Weights(params, self.optimizers[l].init(params))

    def weights(
        self,
        exchange: Exchange,
        key: Array,
        dtype: DTypeLike,
        params: Carried | None,
        start: Starting | None = None,
    ) -> Carried:
        """Weights of all pieces: drawn from the key, or started from given parameters.

        start: what is made of the parameters of piece l; None: `self.start`.
        """
        start = start or self.start
        fresh = lambda l: (start(l, self.draw(exchange, l, key, dtype)),)
        if params is None:
            return exchange.each(fresh, kinds=("weights",))[0]
        return exchange.each(lambda l, p: (start(l, p),), params, kinds=("weights",))[0]

    def forward(
        self,
        exchange: Exchange,
        l: int,
        params: list[Tree],
        p: Tree,
        products: Callable[[int, int], Products] | None = None,
    ) -> Tree:
        """f_l(W_l, p_l) for p_l [samples, ...]; floats of a tree are as wide as p_l's and W_l's.

        products: (index of a layer, samples here) -> its Products; the exchange's unless given.
        """
        products, first = products or exchange.layers.products, self.starts[l]
        here = lambda i: products(first + i, num_samples(p))
        f = run_layers(self.layers(l), params, p, here, self.compute_dtype)
        crosses = l + 1 < self.num and isinstance(self.inputs(l + 1), SampleTree)
        return cast(f, float_dtype((params, p))) if crosses else f

    def joined(self, exchange: Exchange, l: int, params: list[Tree]) -> list[Tree]:
        """The parameters of piece l as a gradient is to be taken of them; see `LayerSplit.joined`."""
        return exchange.layers.joined(l, params, frozen(self.optimizers[l]))

    def descend(
        self,
        l: int,
        weights: Weights,
        gradient: list[Tree],
        live: bool | Array = True,
        pace: Scalar = 1.0,
        loss: Array | None = None,
    ) -> Weights:
        """One optimizer step of piece l, its updates times `pace`; nothing changes if `live` is False.

        loss: what the piece minimises, the mean over the whole minibatch: the `value` of an optimizer
        that wants it (`wants_loss`).

        A `cond`, not a select: on a CPU the select cost 6 to 15 % of a step (n = 2, 512 wide).
        """
        step = lambda weights: self.step(l, weights, gradient, pace, loss)[0]
        return step(weights) if live is True else lax.cond(live, step, lambda w: w, weights)

    def step(
        self, l: int, weights: Weights, gradient: list[Tree], pace: Scalar, loss: Array | None
    ) -> tuple[Weights, list[Tree]]:
        """(the weights of piece l after an optimizer step, what was added to its parameters)."""
        params, opt_state = weights
        told = {"value": loss} if self.wants_loss(l) else {}
        updates, opt_state = self.optimizers[l].update(gradient, opt_state, params, **told)
        updates = paced(updates, pace)
        new = keep_estimated(self.layers(l), optax.apply_updates(params, updates), params)
        return Weights(new, opt_state), updates

    def wants_loss(self, l: int) -> bool:
        """Whether the optimizer of piece l must be told what the piece minimises."""
        return wants_loss(self.optimizers[l])

    def estimate(self, exchange: Exchange, state: Tree, x: Tree) -> Tree:
        """The state with the statistics of x [samples, ...] in the layers that keep any."""
        seen = lambda i, here: exchange.layers.products(i, here).to_train()
        run = lambda l, weights, p: self.forward(exchange, l, weights.params, p, seen)
        _, inputs, _ = exchange.chain(run, state.weights, x=x, keep=True)

        def renewed(l: int, weights: Weights, p: Tree) -> tuple[Weights]:
            first = self.starts[l]
            products = lambda i: seen(first + i, num_samples(p))
            found = estimate_layers(self.layers(l), weights.params, p, products, self.compute_dtype)
            return (weights._replace(params=found),)

        (weights,) = exchange.each(renewed, state.weights, inputs, kinds=("weights",))
        return state._replace(weights=weights)

    def boundary_moves(
        self,
        samples: int,
        times: int,
        *,
        forward: str,
        backward: str,
        crossing: Crossing = UNROUNDED,
    ) -> tuple[Move, ...]:
        """The two matrices [samples, ...] that cross every boundary, `times` a step.

        Of trees of arrays: forward a matrix for each dtype, backward one for the floats. crossing: what
        floats are rounded to, whose codes cross in their place.
        """
        moves: list[Move] = []
        for l in range(self.num - 1):
            floats = self._floats(l + 1)
            for shape, dtype in self._crossing(l + 1):
                whole = (samples, *shape)
                if dtype is None:
                    ahead = Move(forward, whole, "subnet", l, l + 1, times)
                    behind = Move(backward, whole, "subnet", l + 1, l, times)
                    moves += _on_grid(crossing.forward, ahead, floats)
                    moves += _on_grid(crossing.backward, behind, floats)
                else:
                    what, size = f"{forward} of {dtype}", dtype.itemsize
                    moves.append(Move(what, whole, "subnet", l, l + 1, times, size))
        return tuple(moves)

    def _floats(self, l: int) -> int:
        """How many arrays of floats piece l gets."""
        return sum(map(floating, jax.tree.leaves(described(self.inputs(l)))))

    def _crossing(self, l: int) -> list[tuple[tuple[int, ...], np.dtype | None]]:
        """The matrices that piece l gets of a sample: shapes, and dtypes but for floats."""
        sample = self.inputs(l)
        if not isinstance(sample, SampleTree):
            return [(sample, None)]
        found = by_dtype(sample.tree).items()
        return [((n,), None if jnp.issubdtype(t, jnp.floating) else t) for t, n in found]

    def gradient_moves(self, times: int) -> tuple[Move, ...]:
        """The all-reduce of every piece's gradient over the batch split, `times` a step."""
        params = self.by_piece(self.network.parameter_shapes())
        sizes = [sum(a.size for a in jax.tree.leaves(piece)) for piece in params]
        return tuple(
            Move("gradient of W", (size,), "pc", l, l, times, collective="all_reduce")
            for l, size in enumerate(sizes)
        )

    def loss_moves(self, times: int) -> tuple[Move, ...]:
        """The all-reduce of what pieces minimise, where an optimizer must be told, `times` a step."""
        one = lambda l: Move(LOSS, (1,), "pc", l, l, times, collective="all_reduce")
        return tuple(one(l) for l in range(self.num) if self.wants_loss(l))

    def program(
        self,
        name: str,
        kinds: Mapping[str, str | tuple[str | None, ...]],
        declared: Declared,
        batch: Batch,
        precision: str | None,
        *,
        init: Callable[..., Tree],
        step: Callable[..., tuple[Tree, Info]],
        drain: Callable[[Exchange, Tree], Tree] = lambda exchange, state: state,
        estimate: Callable[[Exchange, Tree, Tree], Tree] | None = None,
        start: Starting | None = None,
        weight_fields: tuple[str, ...] = StageProgram.weight_fields,
    ) -> StageProgram:
        """A method of pieces, with the given precision of its products.

        start: as of `weights`; else as in `StageProgram`.

        Raises:
          ValueError: layers that draw or are estimated, for a method that does not provide for them.
        """
        if estimate is None:
            sample_checks.steady(self.network, name)

        def run(exchange: Exchange, l: int, weights: Weights, p: Tree) -> Tree:
            return self.forward(exchange, l, weights.params, p)

        return StageProgram(
            name=name,
            stages=self,
            batch=batch,
            declared=declared,
            kinds=kinds,
            init=precisely(precision, init),
            step=precisely(precision, step),
            drain=precisely(precision, drain),
            forward=precisely(precision, run),
            start=start or self.start,
            estimate=estimate,
            weight_fields=weight_fields,
        )


def _on_grid(grid: RoundingGrid | None, floats: Move, arrays: int) -> tuple[Move, ...]:
    return (floats,) if grid is None else grid.moves(floats, arrays)


def paced(updates: Tree, pace: Scalar) -> Tree:
    """An optimizer's updates times a scalar; the step of every method is made smaller here."""
    return jax.tree.map(lambda a: (pace * a).astype(a.dtype), updates)


def precisely(precision: str | None, fn: Callable[..., Found]) -> Callable[..., Found]:
    """fn with the given precision of its products, also of those that autodiff adds."""

    @functools.wraps(fn)
    def traced(*args: Tree) -> Found:
        with jax.default_matmul_precision(precision):
            return fn(*args)

    return traced


def training(products: Products, key: Array | None, layer: int, ids: Array) -> Products:
    """The products of a layer while it trains; its sample i draws from the key and ids[i]."""
    if key is None:
        return products.to_train()
    each = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, layer), i))
    return products.to_train(lambda: each(ids))
