"""Moments of an optimizer that travel with the weights they are of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jax

from jtssm.arrays import Tree
from jtssm.protocol.optimizers import words
from jtssm.protocol.piece_optimizers import Optimizer


def moments(opt_state: Tree, params: Tree) -> list[Tree]:
    """The trees of an optimizer's state that have an array for each parameter, in order."""
    return [node for node, is_like in _nodes(opt_state, params) if is_like]


def with_moments(opt_state: Tree, params: Tree, new: Sequence[Tree]) -> Tree:
    """The state with other moments, in the order of `moments`."""
    given = iter(new)
    is_like = _like(params)
    take = lambda node: next(given) if is_like(node) else node
    return jax.tree.map(take, opt_state, is_leaf=is_like)


def check_carried(optimizer: Optimizer, params: Tree) -> int:
    """How many moments of each parameter travel.

    Args:
      params: shapes of the parameters.

    Raises:
      ValueError: an optimizer that keeps arrays which belong to no parameter, or only to some.
    """
    state = jax.eval_shape(optimizer.init, params)
    other = [node.shape for node, is_like in _nodes(state, params) if not is_like and node.shape]
    if other:
        raise ValueError(
            f"carry: expected 'fresh' with an optimizer whose state has arrays {list(other[0])} that "
            f"are not one for each parameter; got 'moments' with {words(optimizer)}"
        )
    return len(moments(state, params))


def _nodes(opt_state: Tree, params: Tree) -> Iterator[tuple[Tree, bool]]:
    """The trees like `params` in a state, and its other leaves; which it is."""
    is_like = _like(params)
    return ((node, is_like(node)) for node in jax.tree.leaves(opt_state, is_leaf=is_like))


def _like(params: Tree) -> Callable[[Tree], bool]:
    """Whether a tree has a leaf for each parameter."""
    structure = jax.tree.structure(params)
    return lambda node: jax.tree.structure(node) in (structure,)
