"""Samples as a network takes them: their shapes, structure and dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from jtssm import checks
from jtssm.arrays import Shaped, Tree
from jtssm.nn.boundary import ARRAYS, SampleTree, float_dtype, floating, of_arrays
from jtssm.nn.layer import Shape

if TYPE_CHECKING:
    from jtssm.nn.network import Network


def as_input(network: Network, x: Tree) -> Tree:
    """Samples as the first layer takes them: arrays [samples, *shape of one].

    Images are flattened for a flat first layer, row by row; nothing else is reshaped. Floats become as
    wide as the widest of them; integers and booleans get the dtype in which the network takes them.

    Raises:
      ValueError: x has samples of another shape or structure, or is an array that jax cannot take.
    """
    for name, a in entries(network, "x", x):
        if isinstance(a, ARRAYS):
            checks.array(name, a, booleans=isinstance(network.shapes[0], SampleTree))
    if not isinstance(network.shapes[0], SampleTree):
        x = jnp.asarray(x)
    check_samples(network, x)
    return laid_out(network, x, (-1,))


def laid_out(network: Network, x: Tree, lead: Sequence[int]) -> Tree:
    """Samples that were checked as arrays [*lead, *shape of one], of the dtypes the network takes."""
    dtype = float_dtype(x)

    def one(like: jax.ShapeDtypeStruct, a: Shaped) -> Shaped:
        a = jnp.asarray(a).reshape(*lead, *like.shape)
        return a.astype(dtype if floating(like) else like.dtype)

    return jax.tree.map(one, network.boundaries[0], x)


def leaves(name: str, x: Tree) -> list[tuple[str, Shaped]]:
    """The arrays of a tree, each with what a message calls it: x['ids']; of one array the name alone."""
    return [(name + keystr(path), a) for path, a in jax.tree_util.tree_leaves_with_path(x)]


def entries(network: Network, name: str, x: Tree) -> list[tuple[str, Shaped]]:
    """The arrays of samples x, each with its name; all of it, where the network takes one array."""
    return leaves(name, x) if isinstance(network.shapes[0], SampleTree) else [(name, x)]


def on_host(network: Network, x: object) -> Tree:
    """Samples in numpy: a tree of arrays if the network takes trees, else one array.

    Raises:
      ValueError, TypeError: lists of unequal lengths.
    """
    if isinstance(network.shapes[0], SampleTree) and of_arrays(x):
        return jax.tree.map(np.asarray, x)
    return np.asarray(x)


def check_samples(network: Network, x: Tree) -> None:
    """Arrays [samples, ...], or their shapes, are samples of the network, or flatten to them.

    Raises:
      ValueError: they are others; it says which axis to move where that makes them fit.
    """
    wanted = network.shapes[0]
    if isinstance(wanted, SampleTree):
        _check_tree(wanted, x)
    elif of_arrays(x):
        raise ValueError(
            f"x: expected one array [samples, {_listed(wanted)}]; got a tree of "
            f"{[name for name, _ in leaves('x', x)]}"
        )
    else:
        _check_shape(wanted, jnp.shape(x))


def _check_tree(wanted: SampleTree, x: Tree) -> None:
    if not of_arrays(x) and not isinstance(x, ARRAYS):
        raise ValueError(f"x: expected arrays [samples, ...] of {wanted}; got {checks.shown(x)}")
    if jax.tree.structure(x) != wanted.structure:
        raise ValueError(
            f"x: expected a tree of the network's structure, {wanted}; got {jax.tree.structure(x)}"
        )
    named = leaves("x", x)
    num = jnp.shape(named[0][1])[:1]
    for (name, a), like in zip(named, wanted.leaves, strict=True):
        if jnp.shape(a) != (*num, *like.shape) or not num:
            samples = num[0] if num else "samples"
            raise ValueError(
                f"{name}: expected [{', '.join(map(str, (samples, *like.shape)))}]; got shape "
                f"{jnp.shape(a)}"
            )


def _listed(shape: Shape) -> str:
    return ", ".join(map(str, shape))


def _check_shape(wanted: Shape, shape: Shape) -> None:
    flat = len(wanted) == 1
    if shape and (shape[1:] == wanted or (flat and prod(shape[1:]) == wanted[0])):
        return
    either = f" or images of {wanted[0]} numbers" if flat else ""
    hint = _how_to_fit(tuple(shape[1:]), wanted)
    raise ValueError(f"x: expected [samples, {_listed(wanted)}]{either}; got shape {shape}{hint}")


def _how_to_fit(got: Shape, wanted: Shape) -> str:
    """What makes samples of one shape those of another, if anything does."""
    if sorted(got) == sorted(wanted):
        axes = range(len(got))
        moves = [(a, b) for a in axes for b in axes if _moved(got, a, b) == wanted]
        # channels that come first go last, or the other way round
        moves.sort(key=lambda move: {move[0], move[1]} != {0, len(got) - 1})
        if moves:
            a, b = (axis + 1 for axis in moves[0])
            return f": move axis {a} to {b}, np.moveaxis(x, {a}, {b})"
        return ": transpose its axes"
    if got and prod(got) == prod(wanted):
        return (
            f": as many numbers, in another layout; if they are in the right order, "
            f"x.reshape(-1, {_listed(wanted)})"
        )
    return ""


def _moved(shape: Shape, a: int, b: int) -> Shape:
    rest = [n for i, n in enumerate(shape) if i != a]
    return (*rest[:b], shape[a], *rest[b:])
