"""Running chunks of steps, and finding the step at which a number stopped being finite."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jtssm.arrays import Array, Tree
from jtssm.protocol.info import Info
from jtssm.sharding.placement.on_host import gathered

# a state after steps, their Info, how many numbers of the state are not finite
After = tuple[Tree, Info, Array]


class Divergence(NamedTuple):
    """Where training left the finite numbers."""

    step: int  # from 0
    variable: str  # "loss", or the path of the first array of the state that is not finite after it
    message: str


class Outcome(NamedTuple):
    """What became of a chunk of steps."""

    state: Tree  # after the chunk, or before the step that went wrong
    infos: Info | None  # on the host, one number a step; None after a divergence
    divergence: Divergence | None


class Guard:
    """Runs chunks of steps in one dispatch each and judges them.

    The state before a chunk is its snapshot: it is not donated, and a chunk that goes wrong is
    replayed from it step by step.
    """

    def __init__(
        self,
        step: Callable[..., tuple[Tree, Info]],
        state: Tree,
        done: int = 0,
        odd: int | None = None,
    ):
        self._step, self._chunk = _compiled(step)
        # numbers there from the start, e.g. an optimizer's best loss
        self.odd = int(not_finite(state)) if odd is None else odd
        self.done = done  # steps
        self.latest = state  # the last state known to be finite

    def back(self, state: Tree, done: int) -> None:
        """Go on from an earlier state, after so many steps."""
        self.latest, self.done = state, done

    def dispatch(self, state: Tree, xs: Tree, ys: Array, times: int = 1) -> After:
        """Start a chunk of steps on xs, ys [steps, ...], `times` over; nothing is waited for."""
        return self._chunk(state, xs, ys, times=times)

    def judge(self, before: Tree, after: After, xs: Tree, ys: Array) -> Outcome:
        """The state after the chunk, or, if it went wrong, the last finite one."""
        state, infos, count = after
        infos = jax.tree.map(np.asarray, infos)
        if _sound(infos).all() and int(count) <= self.odd:
            self.done += len(infos.loss)
            self.latest = state
            return Outcome(state, infos, None)
        for i in range(len(infos.loss)):
            state, info = self._step(before, xs, ys, i % len(ys))
            sound = bool(_sound(info))
            if not sound or int(not_finite(state)) > self.odd:
                name = first_not_finite(before, state) if sound else "loss"
                return Outcome(before, None, _divergence(self.done + i, name, float(info.loss)))
            self.latest = before = state
        return Outcome(before, None, _divergence(self.done + len(infos.loss), "loss", np.nan))


@lru_cache(maxsize=8)
def _compiled(step: Callable) -> tuple[Callable, Callable]:
    """One step of a stack of minibatches, and a chunk; a method that trains again compiles nothing."""
    one = lambda state, xs, ys, i: step(state, jax.tree.map(lambda a: a[i], xs), ys[i])
    return jax.jit(one), jax.jit(partial(_chunk, step), static_argnames="times")


def _chunk(step: Callable, state: Tree, xs: Tree, ys: Array, times: int) -> After:
    """(state, Info of every step, how many numbers of the state are not finite)."""
    once = lambda state: lax.scan(lambda s, b: step(s, *b), state, (xs, ys))
    if times == 1:
        state, infos = once(state)
    else:
        state, infos = lax.scan(lambda s, _: once(s), state, length=times)
        infos = jax.tree.map(jnp.ravel, infos)
    return state, infos, not_finite(state)


def _sound(info: Info) -> np.ndarray:
    """Whether a loss is finite, or was not measured yet, which is no divergence."""
    return np.isfinite(np.asarray(info.loss)) | (np.asarray(info.samples) == 0)


def _divergence(step: int, name: str, loss: float) -> Divergence:
    message = (
        f"step {step}: {name} is not finite (loss {loss:.4g}); training stopped, the result keeps "
        f"the state before this step. Try a smaller learning rate or eta."
    )
    return Divergence(step, name, message)


@jax.jit
def not_finite(state: Tree) -> Array:
    """How many numbers of a state are NaN or infinite."""
    floats = [a for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.floating)]
    return sum((jnp.sum(~jnp.isfinite(a)) for a in floats), jnp.zeros((), jnp.int32))


def first_not_finite(before: Tree, after: Tree) -> str:
    """Path of the first array of the state, in order, with numbers that were finite before."""
    leaves = [jax.tree_util.tree_leaves_with_path(gathered(state)) for state in (before, after)]
    for (path, old), (_, new) in zip(*leaves, strict=True):
        floating = np.issubdtype(np.asarray(new).dtype, np.floating)
        if floating and (np.isfinite(old) & ~np.isfinite(new)).any():
            return jax.tree_util.keystr(path).lstrip(".")
    return "state"
