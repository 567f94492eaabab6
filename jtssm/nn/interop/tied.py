"""Modules that share parameters become one layer with all that stands between them, and stay tied.

So no cut parts them. The one layer keeps the trees of its modules, with None where a later module has
what an earlier one holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jtssm.arrays import Array, Tree
from jtssm.nn.adapted import Call, Pure, Together
from jtssm.nn.boundary import zeros

Path = tuple[Any, ...]  # keys of a tree, from its root
Held = Sequence[tuple[Path, object]]  # what a module holds, by where it stands among its parameters


Mend = Callable[[Any, Path, Any, Path], None]


class Tie(NamedTuple):
    """What a module has of one before it: at a path, all below it."""

    module: int
    path: Path
    owner: int
    owner_path: Path


def ties(held: Sequence[Held]) -> list[Tie]:
    """Of modules in a row: what stands in two of them, or in two places of one."""
    first: dict[int, tuple[int, Path]] = {}
    found = []
    for i, holds in enumerate(held):
        for path, a in holds:
            owner = first.setdefault(id(a), (i, path))
            if owner[0] != i:
                found.append(Tie(i, path, *owner))
    return found


def spans(num: int, found: Sequence[Tie]) -> list[range]:
    """The modules 0 .. num - 1 in runs that no tie crosses, as short as they can be."""
    together, end = [], 0
    for i in range(num):
        if i >= end:
            together.append(range(i, i + 1))
        reach = max((t.module + 1 for t in found if t.owner == i), default=i + 1)
        end = max(end, i + 1, reach)
        together[-1] = range(together[-1].start, max(together[-1].stop, end))
    return together


def joined(parts: Sequence[Pure], found: Sequence[Tie], mend: Mend) -> Pure:
    """One module of several, one after the other; ties count them from 0.

    mend: (owner, path in it, module, path in it), ties what is given back to the user.

    Raises:
      ValueError: while it is drawn, of statistics that are shared, of parameters that do not stand where
        they were thought to.
    """

    def draw(key: Array, x: Tree) -> tuple[Tree, Tree]:
        params, state = [], []
        for k, part in enumerate(parts):
            p, s = part.draw(jax.random.fold_in(key, k), x)
            like = jax.eval_shape(lambda p, s, x, part=part: part.run(p, s, x, Call())[0], p, s, x)
            params.append(p)
            state.append(s)
            x = zeros(like)
        _no_statistics(parts, found, state)
        _all_met(parts, found, params)
        return _without(params, found), _some(state)

    def each(params: Tree, state: Tree) -> Iterator[tuple[Pure, Tree, Tree]]:
        state = state or [{} for _ in parts]  # without statistics there is no tree of them
        return zip(parts, _filled(params, found), state, strict=True)

    def run(params: Tree, state: Tree, x: Tree, call: Call) -> tuple[Tree, Tree]:
        new = []
        for k, (part, p, s) in enumerate(each(params, state)):
            x, s = part.run(p, s, x, _of_part(call, k))
            new.append(s)
        return x, _some(new)

    def whole(params: Tree, state: Tree) -> Together:
        modules = Together(part.whole(p, s) for part, p, s in each(params, state))
        for tie in found:
            mend(modules[tie.owner], tie.owner_path, modules[tie.module], tie.path)
        return modules

    def moved(state: Tree) -> Tree:
        return _some([part.moved(s) for part, s in zip(parts, state, strict=True)]) if state else {}

    name = " + ".join(part.name for part in parts) + " (tied)"
    known = any(part.pretrained for part in parts)
    return Pure(name, draw, run, whole, moved, tied=True, pretrained=known)


def _some(trees: Sequence[Tree]) -> Tree:
    """The trees, or {} if there is nothing in them."""
    return tuple(trees) if jax.tree.leaves(list(trees)) else {}


def _of_part(call: Call, k: int) -> Call:
    """The call of the k-th module: it draws from keys of its own."""
    folded = lambda key: jax.random.fold_in(key, k)
    key = None if call.key is None else folded(call.key)
    return call._replace(key=key, keys=None if call.keys is None else jax.vmap(folded)(call.keys))


def plain(path: Path) -> Path:
    """A path of jax's keys as the names and numbers in them."""
    return tuple(next(getattr(k, n) for n in ("key", "idx", "name") if hasattr(k, n)) for k in path)


def _owned(k: int, path: Path, found: Sequence[Tie]) -> tuple[int, Path] | None:
    """Where the leaf of a module stands that is an earlier module's."""
    for tie in found:
        if tie.module == k and path[: len(tie.path)] == tie.path:
            owner = tie.owner, (*tie.owner_path, *path[len(tie.path) :])
            return _owned(*owner, found) or owner
    return None


def _without(params: Sequence[Tree], found: Sequence[Tie]) -> tuple[Tree, ...]:
    """The trees with None for what is an earlier module's."""
    mine = lambda k: lambda path, a: None if _owned(k, plain(path), found) else a
    return tuple(jax.tree_util.tree_map_with_path(mine(k), tree) for k, tree in enumerate(params))


def _filled(params: Sequence[Tree], found: Sequence[Tie]) -> list[Tree]:
    """The trees with what is an earlier module's in its place."""
    leaves = [
        {plain(path): a for path, a in jax.tree_util.tree_leaves_with_path(tree)} for tree in params
    ]

    def fill(k: int, path: Path, a: Array | None) -> Array | None:
        owner = _owned(k, plain(path), found) if a is None else None
        return a if owner is None else leaves[owner[0]][owner[1]]

    none = lambda a: a is None
    return [
        jax.tree_util.tree_map_with_path(lambda path, a, k=k: fill(k, path, a), tree, is_leaf=none)
        for k, tree in enumerate(params)
    ]


def _no_statistics(parts: Sequence[Pure], found: Sequence[Tie], state: Sequence[Tree]) -> None:
    for tie in found:
        if jax.tree.leaves(state[tie.module]) and jax.tree.leaves(state[tie.owner]):
            raise ValueError(
                f"expected modules that share parameters alone; got {parts[tie.owner].name} and "
                f"{parts[tie.module].name}, which share something and have statistics: put both into "
                f"one module"
            )


def _all_met(parts: Sequence[Pure], found: Sequence[Tie], params: Sequence[Tree]) -> None:
    """What is shared stands in both modules, or has no parameters: none is left a copy in silence."""
    paths = [[plain(path) for path, _ in jax.tree_util.tree_leaves_with_path(p)] for p in params]
    below = lambda k, top: {p[len(top) :] for p in paths[k] if p[: len(top)] == top}
    for tie in found:
        # of several places in one module flax keeps the first
        places = [t.path for t in found if t[0] == tie[0] and t[2:] == tie[2:]]
        there = set().union(*(below(tie.module, place) for place in places))
        if there != below(tie.owner, tie.owner_path):
            raise ValueError(
                f"expected modules that share nothing, or parameters that stand where fields are; got "
                f"{parts[tie.owner].name} and {parts[tie.module].name}, which share "
                f"{'.'.join(map(str, tie.path)) or 'all'}: put both into one module"
            )
