"""Workers along "pc" that train a cut network: copies of its weights, turns of their own, a meeting.

To the exchange a worker is what a sample is to other methods: what every worker has of its own has leaves
[N, ...] of the kind "samples", split over pc; within a round, weights that train are "copies". The shared
weights stand once, with the state of the outer optimizer, as "weights".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.losses import Loss
from jtssm.protocol.declared import Move
from jtssm.protocol.exchange import Carried, Exchange, by_index
from jtssm.protocol.piece_optimizers import of_pieces, wants_loss
from jtssm.solvers.pieces import Pieces, Weights
from jtssm.solvers.tssm.ahead import Recipe
from jtssm.solvers.tssm.turn import Turn
from jtssm.solvers.workers.outer import ARGUMENT, OUTER, Outer, averaged, frozen, sent

Optimizer: TypeAlias = optax.GradientTransformation | optax.MultiSteps
# of arguments that gsadmm, gsam and sgd share
TEXTS = {
    "workers": (
        'N: copies of the network, along "pc", which train on minibatches of their own and sum no '
        "gradients; `batch_size` is then one worker's, a step a round of x [R, N, b, ...] and "
        "y [R, N, b, ...], and pr 1. None: all devices of pc share a minibatch."
    ),
    "local_steps": (
        "with workers: R, minibatches of each between two meetings. Optimizers' states, and what is in "
        "flight, stay with their worker."
    ),
    ARGUMENT: f"with workers: {OUTER}",
}


Given = TypeVar("Given")
Made = TypeVar("Made", bound=tuple)


class Crew(NamedTuple):
    """Workers, and how they meet."""

    num: int  # N
    local_steps: int  # R
    outer: tuple[Outer, ...] | None  # one a piece; None: the mean
    # of each piece's parameters, whether its optimizer never moves them
    frozen: tuple[list[Tree], ...]

    def start(self, pieces: Pieces, l: int, params: list[Tree]) -> Weights:
        """The shared weights of piece l, with the outer optimizer's state; () without."""
        return Weights(params, () if self.outer is None else self.outer[l].start(params))

    def opt_states(
        self, pieces: Pieces, recipe: Recipe, exchange: Exchange, weights: Carried
    ) -> Carried:
        """Fresh states of the workers' own optimizers, leaves [N, ...]."""

        def fresh(l: int, weights: Weights) -> tuple[Tree]:
            own = recipe.start(pieces, l, weights.params).opt_state
            return (self.copied(exchange, own),)

        return exchange.each(fresh, weights, kinds=("samples",))[0]

    def copies(self, exchange: Exchange, weights: Carried, opt_states: Carried) -> Carried:
        """The workers' `Weights`, leaves [N, ...], as they set out from the shared ones."""

        def copied(l: int, weights: Weights, opt_state: Tree) -> tuple[Weights]:
            return (Weights(self.copied(exchange, weights.params), opt_state),)

        return exchange.each(copied, weights, opt_states, kinds=("copies",))[0]

    def turn(self, turn: Turn, exchange: Exchange) -> CrewTurn:
        """The turns of the workers here.

        turn: with x and y of every worker, [N, b, ...], and of a loss with weights live [ticks, N].
        """
        own: dict[str, Tree] = {"x": turn.x, "y": turn.y}
        if turn.pieces.loss.weight is not None:
            own["live"] = turn.live.T
        if turn.key is not None:
            here = exchange.samples.own(jnp.arange(self.num))
            own["key"] = jax.vmap(jax.random.fold_in, (None, 0))(turn.key, here)
        return CrewTurn(turn._replace(exchange=by_index(turn.pieces.num)), own)

    def weights_of(self, loss: Loss, y: Array, dtype: DTypeLike) -> Array:
        """[N] sums of the weights of every worker's minibatch, y [N, b, ...], of a loss that has any."""
        assert loss.weight is not None
        return jax.vmap(loss.weight)(y).astype(dtype).reshape(len(y), -1).sum(axis=1)

    def met(
        self, exchange: Exchange, old: Carried, new: Carried, turns: Array
    ) -> tuple[Carried, Carried]:
        """(the shared weights after a meeting, the workers' optimizer states).

        Args:
          old: the shared weights, from which the workers set out.
          new: the workers'.
          turns: how many each piece took in the round: [n], or their samples' weights [n, N].
        """

        def mean(tree: Tree) -> Tree:
            sums = exchange.samples.sum(jax.tree.map(lambda a: a.sum(axis=0), tree))
            return jax.tree.map(lambda a: a / self.num, sums)

        def meet(l: int, old: Weights, new: Weights) -> tuple[Weights, Tree]:
            met = Weights(averaged(mean, old.params, new.params, self.frozen[l]), ())
            if self.outer is not None:
                took = turns[l] if turns.ndim == 1 else exchange.samples.sum(turns[l].sum())
                step = self.outer[l].step(old.params, met.params, old.opt_state, took > 0)
                met = Weights(*step)
            return met, new.opt_state

        found = exchange.each(meet, old, new, kinds=("weights", "samples"))
        return found[0], found[1]

    def moves(self, pieces: Pieces) -> tuple[Move, ...]:
        """Of each piece the mean of its weights; with an outer optimizer and weighted samples, whether
        any had weight."""
        shapes = pieces.by_piece(pieces.network.parameter_shapes())
        pairs = enumerate(zip(pieces.optimizers, shapes, strict=True))
        found = [_sum("mean of W", sent(optimizer, own), l) for l, (optimizer, own) in pairs]
        if self.outer is not None and pieces.loss.weight is not None:
            found += [_sum("weights of a round", 1, l) for l in range(pieces.num)]
        return tuple(found)

    def copied(self, exchange: Exchange, tree: Tree) -> Tree:
        """A tree [N, ...], the same for every worker here."""
        here = self.num // exchange.samples.num_splits
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (here, *a.shape)), tree)


class CrewTurn(NamedTuple):
    """What `Turn` is, of every worker here: trees with leaves [N, ...]."""

    alone: Turn  # of a worker, but for what is its own
    own: dict[str, Tree]  # x, y, and where workers differ in them live and key: leaves [N, ...]

    @property
    def sweeps(self) -> int:
        """See `Turn`."""
        return self.alone.sweeps

    def take(self, s: int, l: int, *trees: Tree) -> tuple:
        """As `Turn.take`, with sums over the workers; a gradient says whether its minibatch entered."""

        def of_worker(given: tuple[dict[str, Tree], tuple[Tree, ...]]) -> tuple:
            own, trees = given
            turn = self.alone._replace(**own)
            (g_W, loss), *rest = turn.take(s, l, *trees)
            return (g_W, (loss, turn.lives(s)[l] if "live" in own else ())), *rest

        *made, sums = _one_by_one(of_worker, (self.own, trees))
        return (*made, jax.tree.map(lambda a: a.sum(axis=0), sums))

    @property
    def recipe(self) -> Recipe:
        """See `Turn`."""
        return self.alone.recipe

    def closes(self, s: int) -> Array:
        """As `Turn.closes`."""
        return self.alone.closes(s)

    def descend(self, l: int, weights: Weights, *gradients: Tree) -> Weights:
        """The steps of piece l."""
        return self._of_each(self.alone.descend, l, weights, *gradients)

    def add(self, l: int, summed: Tree, gradient: Tree) -> Tree:
        """The gradients of microbatches of which more follow."""
        return self._of_each(self.alone.add, l, summed, gradient)

    def _of_each(self, fn: Callable[..., Made], l: int, old: Made, *gradients: Tree) -> Made:
        """fn(l, old, *gradients) of the workers whose minibatch entered, which the last one tells."""

        def of_worker(given: tuple[Made, tuple[Tree, ...]]) -> Made:
            old, (*before, (g_W, (loss, live))) = given
            renewed = lambda old: fn(l, old, *before, (g_W, loss))
            if "live" not in self.own:
                return renewed(old)
            return lax.cond(live, renewed, lambda old: old, old)

        return _one_by_one(of_worker, (old, gradients))

    def lives(self, s: int) -> Array:
        """[n] for which pieces a minibatch of any worker here that entered comes to its turn."""
        if "live" not in self.own:
            return self.alone.lives(s)
        each = jax.vmap(lambda live: self.alone._replace(live=live).lives(s))
        return each(self.own["live"]).any(axis=0)


def _one_by_one(fn: Callable[[Given], Made], given: Given) -> Made:
    """fn of each worker's part of leaves [N, ...]: under `vmap` a `cond` would be a select."""
    if len(jax.tree.leaves(given)[0]) > 1:
        return lax.map(fn, given)
    found = fn(jax.tree.map(lambda a: a[0], given))
    return jax.tree.map(lambda a: a[None], found)


def _sum(what: str, size: int, l: int) -> Move:
    """A sum over the workers of piece l, once a round."""
    return Move(what, (size,), "pc", l, l, 1, collective="all_reduce")


def crew_of(
    pieces: Pieces,
    workers: int | None,
    local_steps: int | None,
    outer_optimizer: Optimizer | Sequence[Optimizer] | None,
) -> Crew | None:
    """The workers that the arguments ask for, checked; None: none.

    Raises:
      ValueError: local steps or an outer optimizer without workers, workers without local steps, an outer
        optimizer that wants the loss, or that cannot train the pieces.
    """
    if workers is None:
        for name, given in (("local_steps", local_steps), (ARGUMENT, outer_optimizer)):
            if given is not None:
                raise ValueError(
                    f"workers: expected how many train apart, a multiple of the mesh's 'pc', e.g. 2, "
                    f"with {name}; got None"
                )
        return None
    if local_steps is None:
        raise ValueError(
            f"local_steps: expected how many steps workers={checks.shown(workers)} take between two "
            f"meetings, e.g. 20; got None"
        )
    workers, local_steps = checks.count(workers=workers, local_steps=local_steps)
    shapes = pieces.by_piece(pieces.network.parameter_shapes())
    still = tuple(frozen(*pair) for pair in zip(pieces.optimizers, shapes, strict=True))
    return Crew(workers, local_steps, _outers(pieces, outer_optimizer, still), still)


def _outers(
    pieces: Pieces, optimizer: Optimizer | Sequence[Optimizer] | None, still: Sequence[list[Tree]]
) -> tuple[Outer, ...] | None:
    if optimizer is None:
        return None
    each = of_pieces(optimizer, pieces.network, pieces.starts, ARGUMENT)
    if any(map(wants_loss, each)):
        raise ValueError(
            f"{ARGUMENT}: expected one that a gradient and the parameters are enough for; got one that "
            f"wants value=, the loss, which every piece has another of: use it with local_sgd"
        )
    owned = [pieces.layers(l) for l in range(pieces.num)]
    return tuple(map(Outer, each, owned, still))
