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
from jtssm.protocol.exchange import not_before
from jtssm.solvers.pieces import Pieces, Weights
from jtssm.solvers.tssm.delayed import delays

Found = TypeVar("Found")
# (weights, gradient of a minibatch) -> the new ones, what was added to the parameters
Step: TypeAlias = Callable[[Weights, Tree], tuple[Weights, Tree]]


ENOUGH = 256  # multiply-adds a weight, of a pass forward, beside which a copy of it is nothing


class Version(NamedTuple):
    """Weights of a piece at which microbatches run forward, or ran."""

    # where h is never more than 1, W + c U; else W, and () of the newest, which the piece itself has
    params: Tree
    update: Tree  # where h is never more than 1, (); else U


class Ahead(NamedTuple):
    """What stands in the place of the optimizer's state of a piece whose weights are predicted."""

    opt_state: Tree
    # of the newest weights, and of the h before them, the newest first
    versions: tuple[Version, ...]


class Recipe(NamedTuple):
    """How often a minibatch is divided, and how far weights are predicted."""

    microbatches: int = 1  # M
    prediction: float = 0.0  # c
    # whether a turn runs forward once more; else what its gradients need waits, as `residuals` says
    recompute: bool = True

    def steps(self, pieces: Pieces, l: int) -> int:
        """The most that piece l (from 0) steps between its forward pass on a microbatch and its turn."""
        return delays(pieces.num, self.microbatches)[l] if self.prediction else 0

    def start(self, pieces: Pieces, l: int, params: list[Tree]) -> Weights:
        """Parameters of piece l with a fresh state."""
        own, steps = pieces.start(l, params), self.steps(pieces, l)
        if not steps:
            return own
        # copies: a step that is donated its state must not be given an array twice
        copied = lambda: jax.tree.map(lambda a: jnp.array(a, copy=True), params)
        if steps == 1:
            both = Version(copied(), ()), Version(copied(), ())
            return Weights(params, Ahead(own.opt_state, both))
        still = lambda: jax.tree.map(jnp.zeros_like, params)
        past = (Version(copied(), still()) for _ in range(steps))
        return Weights(params, Ahead(own.opt_state, (Version((), still()), *past)))

    def descend(
        self, pieces: Pieces, l: int, weights: Weights, gradient: Tree, step: Step, tick: Array
    ) -> Weights:
        """The step of piece l with the gradient of the minibatch's last microbatch.

        step: of the optimizer: (weights, gradient of the minibatch) -> its new weights, the update.
        tick: [] int32, from 0 on.
        """
        if not self.steps(pieces, l):
            return step(weights, gradient)[0]
        state: Ahead = weights.opt_state
        newest, *past = state.versions
        held = newest.params if len(past) == 1 else weights.params
        before, gradient = _copied(held, gradient, tick)
        new, update = step(weights._replace(opt_state=state.opt_state), gradient)
        update = jax.tree.map(lambda a, u: u.astype(a.dtype), weights.params, update)
        ahead = Version((), update)
        if len(past) == 1:
            ahead = Version(self.moved(new.params, update, 1), ())
        newest = newest._replace(params=before)
        return new._replace(opt_state=Ahead(new.opt_state, (ahead, newest, *past[:-1])))

    def fresh(
        self, weights: Weights, h: Array | None, fn: Callable[[Tree], Found], once: bool
    ) -> Found:
        """fn of the parameters at which a microbatch runs forward, h steps before its turn.

        h: None: of a piece that predicts nothing.  once: as of `chosen`.
        """
        if h is None:
            return fn(weights.params)
        newest, *past = weights.opt_state.versions
        if len(past) == 1:
            return chosen(h > 0, newest.params, weights.params, fn, once)
        there = lambda: fn(self.moved(weights.params, newest.update, h))
        return lax.cond(h > 0, there, lambda: fn(weights.params))

    def back(
        self, weights: Weights, h: Array | None, fn: Callable[[Tree], Found], once: bool
    ) -> Found:
        """fn of the parameters at which a microbatch ran forward, which has its turn h steps later."""
        if h is None:
            return fn(weights.params)
        past: tuple[Version, ...] = weights.opt_state.versions[1:]
        if len(past) == 1:
            return chosen(h > 0, past[0].params, weights.params, fn, once)
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


def chosen(first: Array, a: Tree, b: Tree, fn: Callable[[Tree], Found], once: bool) -> Found:
    """fn of a where `first` holds, else of b.

    once: by a copy of one of them, and a single program of fn; else by two programs, which take twice as
    long to compile, and copy nothing.
    """
    if once:
        return fn(jax.tree.map(lambda a, b: jnp.where(first, a, b), a, b))
    return lax.cond(first, lambda: fn(a), lambda: fn(b))


def copied_cheaply(pieces: Pieces, l: int, samples: int) -> bool:
    """Whether a copy of the weights of piece l costs little beside its work on so many samples."""
    layers = range(pieces.starts[l], pieces.starts[l + 1])
    shapes = pieces.network.parameter_shapes()
    numbers = sum(a.size for i in layers for a in jax.tree.leaves(shapes[i]))
    return samples * sum(map(pieces.network.cost, layers)) >= ENOUGH * numbers


def _copied(held: Tree, gradient: tuple[Tree, Tree], tick: Array) -> tuple[Tree, tuple[Tree, Tree]]:
    """(arrays of their own with the same numbers, the gradient known no earlier than these).

    XLA changes an array in place where all who read it are known to come before. Of an addition it takes
    apart what depends on it; what a conditional is given it makes first.
    """
    zero = lambda known, a: jnp.where(not_before(jnp.asarray(True), known), 0, 1).astype(a.dtype)
    own = jax.tree.map(lambda g, a: a + zero(g, a), gradient[0], held)
    firsts = lambda tree: jax.tree.map(lambda a: a.reshape(-1)[:1].sum(), tree)
    others = lambda tree: jax.tree.map(jnp.negative, firsts(tree))
    seen = lax.cond(tick >= 0, firsts, others, own)
    return own, (jax.tree.map(lambda a, g: g + zero(a, g), seen, gradient[0]), gradient[1])
