"""The front door of `fit`: what it is asked for fits together, before work begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.protocol.method import Method
from jtssm.sharding.placement.rows import is_rows
from jtssm.train.checkpoint import ANYWAY, local
from jtssm.train.divergence import not_finite
from jtssm.train.feed import Feed
from jtssm.train.position import Position
from jtssm.train.stored import need_orbax
from jtssm.train.stream import Stream

DIVERGED = ("stop", "halve")


def check_ways(
    checkpoint: str | Path | None,
    every: int | None,
    keep: int,
    resume: int | str | None,
    on_divergence: str,
    halvings: int,
) -> None:
    """The arguments that say how a run is kept fit together."""
    checks.one_of("on_divergence", on_divergence, DIVERGED)
    if checkpoint is not None:
        need_orbax()
        local(checkpoint)
    checks.count(keep=keep, halvings=halvings)
    if every is not None:
        checks.count(every=every)
    if resume is not None and resume != ANYWAY and not checks.is_integer(resume):
        raise ValueError(
            f"resume: expected None, a checkpoint's number or {ANYWAY!r}; got {checks.shown(resume)}"
        )
    for name, value in (("every", every), ("resume", resume)):
        if checkpoint is None and value is not None:
            raise ValueError(f"{name}: expected None without a checkpoint; got {value!r}")


def check_start(method: Method, params: Sequence[Tree] | None, state: Tree, feed: Feed) -> None:
    """A run starts from weights or from a state of the samples that this process knows all of."""
    if state is not None and params is not None:
        raise ValueError("params: expected None with a state, which has its own; got both")
    if state is not None and not (isinstance(feed, Stream) or feed.shared):
        _check_state(method, state, feed.x, feed.y)
    if state is not None:
        _check_numbers(method, state)


def _check_state(method: Method, state: Tree, x: Tree, y: Array | np.ndarray) -> None:
    """The state is one of this method, of these samples where it keeps them."""
    like = jax.eval_shape(method.program.on_one_device().init, jax.random.key(0), x, y)
    if type(state) is not type(like):
        raise ValueError(
            f"state: expected one of {method.name}, as its init or fit return it; got "
            f"{checks.shown(state)}"
        )
    rows = any(is_rows(getattr(state, name)) for name in state._fields)
    wanted, got = (jax.tree.map(np.shape, a) for a in (like, state)) if not rows else ((), ())
    if wanted != got:
        raise ValueError(
            f"state: expected arrays of shapes {checks.shown(wanted)}, of this network, optimizer and "
            f"samples; got {checks.shown(got)}"
        )


def _check_numbers(method: Method, state: Tree) -> None:
    """A given state is of finite numbers, but for what an optimizer keeps, e.g. a best loss."""
    packed = any(is_rows(getattr(state, name)) for name in state._fields)
    whole = method.params(state) if packed else state
    named = jax.tree_util.tree_leaves_with_path(whole)
    bad = int(not_finite([a for path, a in named if "opt_state" not in jax.tree_util.keystr(path)]))
    if bad:
        raise ValueError(f"state: expected finite numbers; got {bad} that are NaN or infinite")


def check_epochs(epochs: int, at: Position) -> None:
    """As many epochs are asked for as the checkpoint has begun."""
    least = at.start if at.infos is None else at.end
    if epochs < least:
        raise ValueError(
            f"epochs: expected at least {least}, which the checkpoint has begun; got {epochs}"
        )
