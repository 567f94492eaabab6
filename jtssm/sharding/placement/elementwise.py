"""Which optimizers do the same with parts of arrays as with the whole ones: found out by trying.

Moments, weight decay and the like work number by number; a norm over all of a layer, moments of rows or
an orthogonal step do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import PyTreeDef

from jtssm.arrays import Tree
from jtssm.sharding.layers.stored import FLAT, WHOLE
from jtssm.sharding.placement import flat
from jtssm.sharding.placement.exchange import own_part
from jtssm.sharding.placement.switch import Place


def check_elementwise(
    at: Place, l: int, optimizer: optax.GradientTransformation, shapes: list[Tree]
) -> None:
    """Run the optimizer on a toy of piece l, whole and as two halves: the numbers must agree.

    And of its state as it will be, arrays must be split as parameters are: moments of rows are not, which
    some keep of large ones alone.
    """
    half = at._replace(sizes=(at.sizes[0], 2, at.sizes[2]))
    layers = shapes[at.starts[l] : at.starts[l + 1]]
    toy = jax.tree.map(lambda a: _toy(4, len(a.shape)), layers)
    takes = optax.with_extra_args_support(optimizer)
    trial = _trial(toy, lambda toy: own_part(half, l, toy, rank=1))
    same = _agree(takes.init, takes.update, trial)
    local = jax.eval_shape(lambda p: own_part(at, l, p, rank=0), layers)
    if not (same and _states_alike(takes, layers, local)):
        raise ValueError(
            f"optimizer: expected an elementwise one (sgd, adam, adamw, ...) for subnetwork {l}, "
            f"which is split over pr={at.sizes[1]}: clipping by the global norm, lamb or muon would "
            f"see a part of the weights only; got {optimizer!r}; use pr=1"
        )


def works_on_rows(optimizer: optax.GradientTransformation, params: Tree) -> bool:
    """Whether an optimizer does the same with rows of what is `Flat` as with the arrays themselves.

    params: shapes, as they are stored. Where nothing is flat there is nothing to be asked: False.
    """
    if not any(map(flat.is_flat, jax.tree.leaves(params, is_leaf=flat.is_flat))):
        return False
    odd = lambda a: _toy(3, len(a.shape)) if flat.is_flat(a) else _toy(4, len(a.shape))
    toy = jax.tree.map(odd, params, is_leaf=flat.is_flat)
    in_rows = jax.tree.map(
        lambda a: FLAT if flat.is_flat(a) else WHOLE, params, is_leaf=flat.is_flat
    )
    takes = optax.with_extra_args_support(optimizer)
    trial = _trial(toy, lambda toy: flat.rows(flat.flattened(toy, in_rows, 2)))
    same = _agree(takes.init, takes.update, trial)
    return same and _states_alike(takes, flat.unflattened(params), flat.rows(params))


def _toy(size: int, ndim: int) -> np.ndarray:
    return np.linspace(0.5, 1.5, size**ndim).reshape((size,) * ndim)


@dataclass(frozen=True)
class _Trial:
    """Toy parameters and what a part of them is; two are equal whose arrays, and whose parts', are."""

    structure: PyTreeDef
    told: tuple[tuple[int, ...], ...]  # shapes of the whole arrays and of the parts
    params: Tree = field(compare=False)
    part: Callable[[Tree], Tree] = field(compare=False)


def _trial(params: Tree, part: Callable[[Tree], Tree]) -> _Trial:
    leaves, structure = jax.tree.flatten(params)
    parts = jax.tree.leaves(jax.eval_shape(part, params))
    return _Trial(structure, tuple(a.shape for a in (*leaves, *parts)), params, part)


@lru_cache(maxsize=64)
def _agree(init: Callable, update: Callable, trial: _Trial) -> bool:
    """Whether an optimizer does the same with whole arrays as with parts; a planner asks often."""
    optimizer = optax.GradientTransformationExtraArgs(init, update)

    def both(params: Tree) -> tuple[Tree, Tree]:
        whole = trial.part(_two_steps(optimizer, params))
        return whole, _two_steps(optimizer, trial.part(params))

    try:
        whole, part = both(trial.params)
    except (ValueError, TypeError, NotImplementedError):
        return False
    return all(map(np.allclose, jax.tree.leaves(whole), jax.tree.leaves(part)))


def _states_alike(optimizer: optax.GradientTransformation, whole: Tree, parts: Tree) -> bool:
    """Whether every array of the optimizer's state has a parameter's shape, whole and in parts."""
    states = [jax.eval_shape(optimizer.init, params) for params in (whole, parts)]
    pairs = [
        {(a.shape, b.shape) for a, b in zip(*map(jax.tree.leaves, trees), strict=True)}
        for trees in ((whole, parts), states)
    ]
    return all(pair in pairs[0] or prod(pair[0]) <= 1 for pair in pairs[1])


def _two_steps(optimizer: optax.GradientTransformationExtraArgs, params: Tree) -> Tree:
    state = optimizer.init(params)
    for scale in (3.0, 1.0):
        # zero where the parameter is: rows end in zeros
        gradient = jax.tree.map(lambda a, scale=scale: scale * a * (a - 0.9) ** 3, params)
        updates, state = optimizer.update(gradient, state, params, value=jnp.asarray(scale))
        params = optax.apply_updates(params, updates)
    return params
