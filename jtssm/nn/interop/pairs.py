"""linen modules that come with their variables, in pairs as `Network.modules` gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jtssm.arrays import Array, Tree
from jtssm.nn.interop.tied import Held, Path, ties

if TYPE_CHECKING:
    from flax import linen

Variables = Mapping[str, Tree]  # collections by name, "params" among them
Draw = Callable[[Array, Array], tuple[Tree, Tree]]  # (key, x) -> params, other collections


class Entry(NamedTuple):
    """What stands in the list of a user."""

    module: linen.Module | Callable
    variables: Variables | None  # None: they are drawn


def entry(given: Any) -> Entry:
    """A pair taken apart; anything else as it is."""
    from flax import linen
    from flax.core import unfreeze

    pair = isinstance(given, (tuple, list)) and len(given) == 2
    if pair and isinstance(given[0], linen.Module) and isinstance(given[1], Mapping):
        return Entry(given[0], unfreeze(dict(given[1])))
    return Entry(given, None)


def given(draw: Draw, variables: Variables) -> Draw:
    """A draw that gives those variables, once they are found to be such as the module draws."""

    def of_user(key: Array, x: Array) -> tuple[Tree, Tree]:
        params, others = jax.eval_shape(draw, key, x)
        _same_arrays(_shapes({"params": params} | others), _shapes(variables))
        rest = dict(variables)
        return rest.pop("params", {}), rest

    return of_user


def _shapes(variables: Variables) -> dict[str, tuple[int, ...]]:
    """Of every array, by where it stands; whatever says how flax would split it is left out."""
    from flax.core import meta

    leaves = jax.tree_util.tree_leaves_with_path(meta.unbox(dict(variables)))
    return {jax.tree_util.keystr(path): tuple(np.shape(a)) for path, a in leaves}


def _same_arrays(drawn: dict[str, tuple[int, ...]], had: dict[str, tuple[int, ...]]) -> None:
    missing, more = (sorted(a.keys() - b.keys()) for a, b in ((drawn, had), (had, drawn)))
    if missing or more:
        raise ValueError(
            f"variables: expected the arrays that the module draws; got none at "
            f"{', '.join(missing[:3]) or 'no place'}, and others at {', '.join(more[:3]) or 'no place'}"
        )
    for path, shape in drawn.items():
        if had[path] != shape:
            raise ValueError(f"variables{path}: expected shape {shape}; got {had[path]}")


def tied_alike(entries: Sequence[Entry], held: Sequence[Held]) -> None:
    """Modules that share parameters come with the same ones.

    Raises:
      ValueError: other numbers for what is one array, or numbers for the later of two modules alone.
    """
    for tie in ties(held):
        later, first = entries[tie.module].variables, entries[tie.owner].variables
        if later is None:
            continue
        if first is None or not _alike(_at(first, tie.owner_path), _at(later, tie.path)):
            raise ValueError(
                f"modules: expected one set of parameters of what modules {tie.owner} and {tie.module} "
                f"share; got {'none for the first' if first is None else 'others in the second'}"
            )


def _at(variables: Variables, path: Path) -> Tree:
    """The parameters below a place; None: there are none."""
    step = lambda tree, key: tree.get(key) if isinstance(tree, Mapping) else None
    return reduce(step, path, variables.get("params", {}))


def _alike(one: Tree, other: Tree) -> bool:
    leaves, structures = zip(*map(jax.tree.flatten, (one, other)), strict=True)
    return structures[0] == structures[1] and all(map(np.array_equal, *leaves))
