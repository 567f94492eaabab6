r"""Gradients that are one optimizer step old at most, taken at weights that were predicted for it.

A minibatch of `batch_size` samples runs through the n subnetworks as M microbatches (microbatch m: its
samples m, m + M, ...), whose gradients are summed before an optimizer steps once. Between the forward
pass of subnetwork l (from 1) on a microbatch and its turn on it lie 2(n - l) ticks, in which it steps
h times, at most ceil(2(n - l) / M): `jtssm.solvers.tssm.delayed.delays`. With W the weights at the
forward pass, U the last update of them and the prediction c,

    forward pass, and the gradients of the turn, at   W + c h U
    the optimizer steps from                          the newest weights.

c = 1 is linear weight prediction; it takes any optax optimizer, and sends nothing. c = 0: the forward
pass at W, the turn at the newest weights. With M >= 2(n - 1), h is 0 or 1.

Sources: gradients summed over microbatches, one step of delay: Narayanan et al., "Memory-Efficient
Pipeline-Parallel DNN Training" (PipeDream-2BW), arXiv 2006.09503. Prediction: Kosson et al., "Pipelined
Backpropagation at Scale", arXiv 2003.11666. By the optimizer's own last update, and the turn at the
predicted weights: what did best here (docs/methods/tssm.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import float_dtype
from jtssm.protocol.exchange import not_before
from jtssm.solvers.pieces import Pieces, Weights
from jtssm.solvers.tssm.delayed import delays

Found = TypeVar("Found")
# (weights, gradient of a minibatch) -> the new ones, what was added to the parameters
Step: TypeAlias = Callable[[Weights, Tree], tuple[Weights, Tree]]


class Version(NamedTuple):
    """Earlier weights of a piece, for microbatches that ran forward then."""

    params: Tree  # W
    update: Tree  # U; where h is never more than 1 it is () and `params` are W + c U


class Ahead(NamedTuple):
    """What stands in the place of the optimizer's state of a piece, of which parts may be ()."""

    opt_state: Tree
    summed: Tree  # (gradient, loss) of the microbatches of a minibatch so far, as `turn.Gradient`
    update: Tree  # U of the newest weights
    past: tuple[Version, ...]  # the h versions before, the newest first


class Recipe(NamedTuple):
    """How often a minibatch is divided, and how far weights are predicted."""

    microbatches: int = 1  # M
    prediction: float = 0.0  # c
    # whether a turn runs forward once more; else what its gradients need waits, as `residuals` says
    recompute: bool = True

    def steps(self, pieces: Pieces, l: int) -> int:
        """The most that piece l (from 0) steps between its forward pass on a microbatch and its turn."""
        return delays(pieces.num, self.microbatches)[l] if self.prediction else 0

    def plain(self, pieces: Pieces, l: int) -> bool:
        """Whether piece l keeps nothing but parameters and the optimizer's state."""
        return self.microbatches == 1 and not self.steps(pieces, l)

    def start(self, pieces: Pieces, l: int, params: list[Tree]) -> Weights:
        """Parameters of piece l with a fresh state."""
        own = pieces.start(l, params)
        if self.plain(pieces, l):
            return own
        # copies: a step that is donated its state must not be given an array twice
        copied = lambda: jax.tree.map(lambda a: jnp.array(a, copy=True), params)
        steps = self.steps(pieces, l)
        summed: Tree = ()
        if self.microbatches > 1:
            loss = jnp.zeros((), float_dtype(params)) if pieces.wants_loss(l) else ()
            summed = (jax.tree.map(jnp.zeros_like, params), loss)
        still = lambda: jax.tree.map(jnp.zeros_like, params)
        past = tuple(Version(copied(), still() if steps > 1 else ()) for _ in range(steps))
        return Weights(params, Ahead(own.opt_state, summed, still() if steps else (), past))

    def summed(self, weights: Weights, gradient: Tree, first: Array) -> Weights:
        """The gradient added to those of the minibatch's microbatches before it; first: it has none."""
        state = weights.opt_state
        total = jax.tree.map(lambda a, g: jnp.where(first, g, a + g), state.summed, gradient)
        return weights._replace(opt_state=state._replace(summed=total))

    def descend(
        self, pieces: Pieces, l: int, weights: Weights, gradient: Tree, step: Step
    ) -> Weights:
        """The step of piece l with the gradient of the minibatch's last microbatch.

        step: of the optimizer: (weights, gradient of the minibatch) -> its new weights, the update.
        """
        if self.plain(pieces, l):
            return step(weights, gradient)[0]
        state: Ahead = weights.opt_state
        if state.summed != ():
            gradient = jax.tree.map(jnp.add, state.summed, gradient)
        past = self._past(weights.params, state)
        if past:
            gradient = _after(past[0].params, *gradient)
        new, update = step(weights._replace(opt_state=state.opt_state), gradient)
        if past:
            update = jax.tree.map(lambda a, u: u.astype(a.dtype), weights.params, update)
        state = Ahead(new.opt_state, state.summed, update if past else (), past)
        return new._replace(opt_state=state)

    def _past(self, params: list[Tree], state: Ahead) -> tuple[Version, ...]:
        """The weights before a step among those of the past."""
        if len(state.past) == 1:
            return (Version(self.moved(params, state.update, 1), ()),)
        return (Version(params, state.update), *state.past[:-1]) if state.past else ()

    def fresh(self, weights: Weights, h: Array | None, fn: Callable[[Tree], Found]) -> Found:
        """fn of the parameters at which a microbatch runs forward, h steps before its turn.

        h: None: of a piece that predicts nothing.
        """
        if h is None:
            return fn(weights.params)
        state: Ahead = weights.opt_state
        there = lambda: fn(self.moved(weights.params, state.update, h))
        return lax.cond(h > 0, there, lambda: fn(weights.params))

    def back(self, weights: Weights, h: Array | None, fn: Callable[[Tree], Found]) -> Found:
        """fn of the parameters at which a microbatch ran forward, which has its turn h steps later."""
        if h is None:
            return fn(weights.params)
        past: tuple[Version, ...] = weights.opt_state.past
        if len(past) == 1:  # two branches: choosing between two sets of weights would copy one
            return lax.cond(h > 0, lambda: fn(past[0].params), lambda: fn(weights.params))
        params = weights.params
        for k, version in enumerate(past, 1):
            there = self.moved(version.params, version.update, k)
            params = jax.tree.map(lambda a, b, k=k: jnp.where(h == k, b, a), params, there)
        return fn(params)

    def moved(self, params: Tree, update: Tree, h: Array | int) -> Tree:
        """W + c h U."""
        scale = lambda a: jnp.asarray(self.prediction * h, a.dtype)
        floats = lambda a: jnp.issubdtype(a.dtype, jnp.floating)
        return jax.tree.map(lambda a, u: a + scale(a) * u if floats(a) else a, params, update)


def _after(made: Tree, gradient: list[Tree], loss: Tree) -> tuple[list[Tree], Tree]:
    """The same gradient, known no earlier than what is made of the weights that it changes.

    Else XLA would copy these first.
    """
    known = lambda a, g: jnp.where(not_before(jnp.asarray(True), a), g, 0)
    return jax.tree.map(known, made, gradient), loss
