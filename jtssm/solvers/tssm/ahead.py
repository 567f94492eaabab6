r"""Gradients that are one optimizer step old at most, taken at weights that were predicted for it.

A minibatch of `batch_size` samples runs through the n subnetworks as M microbatches (microbatch m: its
samples m, m + M, ...), whose gradients are summed before an optimizer steps once. Between the forward
pass of subnetwork l (from 1) on a microbatch and its turn on it lie 2(n - l) ticks, so that the optimizer
steps h times in between, at most ceil(2(n - l) / M): `jtssm.solvers.tssm.delayed.delays`. With W the weights
at the forward pass, U the optimizer's last update of them and the prediction c,

    forward pass, and the gradients of the turn, at   W + c h U
    the optimizer steps from                          the newest weights.

c = 1 is linear weight prediction; it takes any optax optimizer, and sends nothing. c = 0: the forward pass at
W, the turn at the newest weights. With M >= 2(n - 1), h is 0 or 1.

Sources: gradients accumulated over microbatches, one step of delay: Narayanan et al., "Memory-Efficient
Pipeline-Parallel DNN Training" (PipeDream-2BW), arXiv 2006.09503. Prediction: Kosson et al., "Pipelined
Backpropagation at Scale", arXiv 2003.11666. The prediction by the optimizer's own last step, and the turn at
the predicted weights, as jtssm's measurements led to (docs/methods/tssm.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import float_dtype
from jtssm.solvers.pieces import Pieces, Weights
from jtssm.solvers.tssm.delayed import delays

Found = TypeVar("Found")


class Version(NamedTuple):
    """Earlier weights of a piece, for minibatches that ran forward then."""

    params: Tree  # W; () where h is never more than 1
    guess: Tree  # W + c U


class Ahead(NamedTuple):
    """What stands in the place of the optimizer's state of a piece, of which parts may be ()."""

    opt_state: Tree
    summed: Tree  # (gradient, loss) of the microbatches of a minibatch so far, as `turn.Gradient`
    guess: Tree  # W + c U of the newest weights
    past: tuple[Version, ...]  # the h versions before, the newest first


class Recipe(NamedTuple):
    """How often a minibatch is divided, and how far weights are predicted."""

    microbatches: int = 1  # M
    prediction: float = 0.0  # c

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
        steps, summed = self.steps(pieces, l), ()
        if self.microbatches > 1:
            loss = jnp.zeros((), float_dtype(params)) if pieces.wants_loss(l) else ()
            summed = (jax.tree.map(jnp.zeros_like, params), loss)
        past = tuple(Version(copied() if steps > 1 else (), copied()) for _ in range(steps))
        return Weights(params, Ahead(own.opt_state, summed, copied() if steps else (), past))

    def summed(self, weights: Weights, gradient: Tree) -> Weights:
        """The gradient added to those of the minibatch's microbatches before."""
        state = weights.opt_state
        total = jax.tree.map(jnp.add, state.summed, gradient)
        return weights._replace(opt_state=state._replace(summed=total))

    def descend(
        self,
        pieces: Pieces,
        l: int,
        weights: Weights,
        gradient: Tree,
        step: Callable[[Weights, Tree], Weights],
    ) -> Weights:
        """The step of piece l with the gradient of the minibatch's last microbatch.

        step: of the optimizer: (weights, gradient of the minibatch) -> its new weights and state.
        """
        if self.plain(pieces, l):
            return step(weights, gradient)
        old: Ahead = weights.opt_state
        if old.summed != ():
            gradient = jax.tree.map(jnp.add, old.summed, gradient)
        new = step(weights._replace(opt_state=old.opt_state), gradient)
        summed = jax.tree.map(jnp.zeros_like, old.summed)
        state = Ahead(new.opt_state, summed, old.guess, old.past)
        if old.past:
            before = Version(weights.params if len(old.past) > 1 else (), old.guess)
            guess = jax.tree.map(self._guess, new.params, weights.params)
            state = state._replace(guess=guess, past=(before, *old.past[:-1]))
        return new._replace(opt_state=state)

    def _guess(self, new: Array, old: Array) -> Array:
        moved = self.prediction * (new - old) if jnp.issubdtype(new.dtype, jnp.floating) else 0
        return new + jnp.asarray(moved, new.dtype)

    def fresh(self, weights: Weights, h: Array | None, fn: Callable[[Tree], Found]) -> Found:
        """fn of the parameters at which a minibatch runs forward, h steps before its turn.

        h: None: of a piece that predicts nothing.
        """
        if h is None:
            return fn(weights.params)
        state: Ahead = weights.opt_state
        if len(state.past) == 1:  # two branches: choosing between two sets of weights would copy one
            return lax.cond(h > 0, lambda: fn(state.guess), lambda: fn(weights.params))
        return fn(_moved(Version(weights.params, state.guess), h))

    def back(self, weights: Weights, h: Array | None, fn: Callable[[Tree], Found]) -> Found:
        """fn of the parameters at which a minibatch ran forward, which has its turn h steps later."""
        if h is None:
            return fn(weights.params)
        past: tuple[Version, ...] = weights.opt_state.past
        if len(past) == 1:
            return lax.cond(h > 0, lambda: fn(past[0].guess), lambda: fn(weights.params))
        params = weights.params
        for k, version in enumerate(past, 1):
            there = _moved(version, jnp.full_like(h, k))
            params = jax.tree.map(lambda a, b, k=k: jnp.where(h == k, b, a), params, there)
        return fn(params)

    def met(self, opt_state: Tree, own: list[Tree], met: list[Tree]) -> Tree:
        """The state of a worker whose parameters a meeting has changed: what it predicts goes with them.

        own: what they came to, leaves [N, ...].  met: what they are now.
        """
        if not (isinstance(opt_state, Ahead) and opt_state.past):
            return opt_state
        guess = jax.tree.map(lambda a, was, now: a + (now - was), opt_state.guess, own, met)
        return opt_state._replace(guess=guess)


def _moved(version: Version, h: Array) -> Tree:
    """W + c h U."""

    def moved(a: Array, guess: Array) -> Array:
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return a
        return jnp.where(h > 0, a + h.astype(a.dtype) * (guess - a), a)

    return jax.tree.map(moved, version.params, version.guess)


def divided(tree: Tree, microbatches: int, axis: int = 0) -> Tree:
    """Leaves [..., samples, ...] as [M, ..., samples / M, ...]: microbatch m has the samples m, m + M, ...

    So that each has the same samples however "pc" splits the minibatch.

    axis: of the samples.
    """

    def apart(a: Array) -> Array:
        shape = a.shape[:axis] + (-1, microbatches) + a.shape[axis + 1 :]
        return jnp.moveaxis(a.reshape(shape), axis + 1, 0)

    return jax.tree.map(apart, tree)
