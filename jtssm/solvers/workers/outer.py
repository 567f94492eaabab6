"""What a meeting of workers makes of their weights: the mean, or an outer optimizer's step towards it.

    gradient <- W - mean of the workers' weights;  W <- outer optimizer(W, gradient)

W are the weights that all workers set out from (Douillard et al., "DiLoCo: Distributed Low-Communication
Training of Language Models", arXiv 2311.08105, algorithm 1). The outer optimizer's state is the same for
all workers: each computes it from the same mean, and nothing more is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jtssm.arrays import Array, Tree
from jtssm.nn.layer import Layer
from jtssm.nn.network import keep_estimated
from jtssm.protocol.piece_optimizers import PieceOptimizer, check_state, wants_loss

ARGUMENT = "outer_optimizer"
OUTER = (
    "an optax optimizer that takes, at every meeting, (shared weights - mean of the workers') as the "
    "gradient of the shared weights, e.g. optax.sgd(0.7, momentum=0.9, nesterov=True) (DiLoCo). Its "
    "state is the same for all workers. None: the mean."
)


class Outer(NamedTuple):
    """The outer optimizer of some layers, and what of them it leaves alone."""

    optimizer: PieceOptimizer
    layers: Sequence[Layer]
    frozen: list[Tree]  # as `averaged` takes it

    def start(self, params: list[Tree]) -> Tree:
        """A fresh state.

        Raises:
          ValueError: an optimizer that cannot train parameters of these dtypes.
        """
        check_state(self.optimizer, params, ARGUMENT)
        return self.optimizer.init(params)

    def step(
        self,
        params: list[Tree],
        mean: list[Tree],
        state: Tree,
        counts: bool | Array,
        loss: Array | None = None,
    ) -> tuple[list[Tree], Tree]:
        """(weights, state) after a meeting of workers that set out from `params`.

        What the workers' optimizer never moves, and estimated statistics, stay as they are.

        Args:
          mean: of the workers' weights.
          counts: whether any worker took a step; otherwise nothing changes, no momentum carries on.
          loss: [] mean of the round, the `value` of an optimizer that wants it.
        """
        gradient = jax.tree.map(jnp.subtract, params, mean)
        told = {"value": loss} if wants_loss(self.optimizer) else {}
        updates, after = self.optimizer.update(gradient, state, params, **told)
        moved = keep_estimated(self.layers, optax.apply_updates(params, updates), params)
        new = jax.tree.map(lambda still, old, a: old if still else a, self.frozen, params, moved)
        if counts is True:
            return new, after
        pick = lambda a, old: jnp.where(counts, a, old)
        return jax.tree.map(pick, (new, after), (params, state))


def averaged(mean: Callable[[Tree], Tree], old: Tree, new: Tree, frozen: Tree) -> Tree:
    """The mean of all workers' arrays [n, ...]; a frozen one stays as it was before the round.

    The mean of three equal numbers need not be that number: frozen weights would wander.

    Args:
      mean: a tree of arrays [n, ...] -> its mean over all workers.
      old: before the round.  new: of the workers here, [n, ...].
      frozen: of each array, whether the optimizer never moves it.
    """
    moving = jax.tree.map(lambda still, a: None if still else a, frozen, new)
    pick = lambda still, was, a: was if still else a
    return jax.tree.map(pick, frozen, old, mean(moving))


def frozen(optimizer: PieceOptimizer, shapes: list[Tree]) -> list[Tree]:
    """Of each parameter of a piece, one tree a layer, whether the optimizer never moves it."""
    return jax.tree.unflatten(jax.tree.structure(shapes), optimizer.frozen)


def sent(optimizer: PieceOptimizer, shapes: list[Tree]) -> int:
    """How many numbers of a piece's parameters a meeting takes the mean of: those that move."""
    pairs = zip(jax.tree.leaves(shapes), optimizer.frozen, strict=True)
    return sum(a.size for a, still in pairs if not still)
