"""How a network's parameters are read from the arrays of a state, without the method that trains it.

A method's own `params` is run once on arrays that are but names: they note that they were reshaped,
turned, cut and joined. What they have noted stands in each checkpoint, and is done again with numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtssm.arrays import Tree

Recipe = list[Any]  # [what, ...]: an array's name, or what is done with the array of another recipe


class Named:
    """An array that is but a name, a shape and a dtype; it notes what is done with it."""

    def __init__(self, recipe: Recipe, like: jax.ShapeDtypeStruct):
        self.recipe, self._like = recipe, like
        self.shape, self.dtype, self.ndim = like.shape, like.dtype, len(like.shape)

    def reshape(self, *shape: Any) -> Named:
        """As of an array."""
        return self._after("reshape", lambda a: a.reshape(*shape), lambda like: list(like.shape))

    def transpose(self, *axes: Any) -> Named:
        """As of an array."""
        order = np.arange(self.ndim)[::-1] if not axes else np.ravel(axes)
        turned = [int(axis) for axis in order]
        return self._after("transpose", lambda a: a.transpose(turned), lambda _: turned)

    def __getitem__(self, index: Any) -> Named:
        parts = index if isinstance(index, tuple) else (index,)
        return self._after("take", lambda a: a[index], lambda _: [_told(part) for part in parts])

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Named:
        if function is not np.concatenate:
            return NotImplemented
        (parts, *_), axis = args, int(kwargs.get("axis", 0))
        like = jax.eval_shape(lambda a: jnp.concatenate(a, axis), [p._like for p in parts])
        return Named(["join", [part.recipe for part in parts], axis], like)

    def _after(self, what: str, do: Callable, tell: Callable) -> Named:
        like = jax.eval_shape(do, self._like)
        return Named([what, self.recipe, tell(like)], like)


def recipes(params: Callable[[Tree], list[Tree]], state: Tree, names: Tree) -> list[Any] | None:
    """Of each layer how its tree is made, as JSON holds it; None: not by reshaping and cutting alone.

    Args:
      params: the method's.
      state: its state, or shapes of one.
      names: of its arrays, a tree like it.
    """
    shape = lambda a, name: Named(["array", name], jax.ShapeDtypeStruct(a.shape, a.dtype))
    try:
        return [_structure(tree) for tree in params(jax.tree.map(shape, state, names))]
    except Exception:  # whatever a method of somebody's own does with its arrays
        return None


def made(structure: Any, array: Callable[[str], np.ndarray]) -> Tree:
    """The tree that `recipes` tells of; array: name -> the array of a state."""
    kind, what = structure
    if kind == "leaf":
        return _done(what, array)
    if kind == "dict":
        return {name: made(each, array) for name, each in what}
    return [made(each, array) for each in what]


def named(structure: Any) -> set[str]:
    """The names of the arrays that a tree is made of."""
    kind, what = structure
    if kind == "leaf":
        return _names(what)
    return set().union(*(named(each[1] if kind == "dict" else each) for each in what))


def _structure(tree: Tree) -> list[Any]:
    """A tree as JSON holds it: [kind, what]."""
    if isinstance(tree, Named):
        return ["leaf", tree.recipe]
    if isinstance(tree, Mapping):
        return ["dict", [[name, _structure(each)] for name, each in tree.items()]]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return ["dict", [[name, _structure(getattr(tree, name))] for name in tree._fields]]
    if isinstance(tree, (list, tuple)):
        return ["list", [_structure(each) for each in tree]]
    raise TypeError(f"params: expected trees of dicts, lists and tuples; got {type(tree).__name__}")


def _told(index: Any) -> Any:
    """A part of an index as JSON holds it."""
    if isinstance(index, slice):
        return {"slice": [index.start, index.stop, index.step]}
    if index is Ellipsis:
        return "..."
    return np.asarray(index).tolist()


def _index(told: Any) -> Any:
    if isinstance(told, dict):
        return slice(*told["slice"])
    return Ellipsis if told == "..." else np.asarray(told) if isinstance(told, list) else told


def _done(recipe: Recipe, array: Callable[[str], np.ndarray]) -> np.ndarray:
    what, of, *how = recipe
    if what == "array":
        return array(of)
    if what == "join":
        return np.concatenate([_done(part, array) for part in of], axis=how[0])
    a = _done(of, array)
    if what == "take":
        return a[tuple(map(_index, how[0]))]
    return a.reshape(how[0]) if what == "reshape" else a.transpose(how[0])


def _names(recipe: Recipe) -> set[str]:
    what, of, *_ = recipe
    if what == "array":
        return {of}
    parts: Sequence[Recipe] = of if what == "join" else [of]
    return set().union(*map(_names, parts))
