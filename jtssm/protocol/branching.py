"""Optimizers that branch (`lax.cond` in optax.MultiSteps, reduce_on_plateau, apply_if_finite) on a mesh.

Inside shard_map jax tells by an array's type along which axes of the mesh it may differ, and both
branches of a `cond` must give the same types: zeros that one of them makes are the same everywhere, what
the other computes is not. So such an optimizer is run on arrays whose types do not say so, and what it
gives gets the types of what was there before. Nothing is computed or sent for it. Work that is left out
where there is none to do (`where_live`) gives zeros of the types that it would have had.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jtssm.arrays import Array, Tree

# an array -> the same, whose type does not say along which axes of the mesh it differs
_alike = Primitive("alike")
_alike.def_impl(lambda a: a)
_alike.def_abstract_eval(lambda a: a.update(manual_axis_type=type(a.manual_axis_type)()))
mlir.register_lowering(_alike, lambda context, a: [a])
batching.primitive_batchers[_alike] = lambda args, dims: (_alike.bind(*args), dims[0])


def on_a_mesh(update: Callable[..., tuple[Tree, Tree]]) -> Callable[..., tuple[Tree, Tree]]:
    """The update of an optimizer that branches, which may run inside shard_map."""

    def run(
        gradient: Tree, state: Tree, params: Tree | None = None, **more: Array
    ) -> tuple[Tree, Tree]:
        given = gradient, state, params, more
        if not any(map(_axes, jax.tree.leaves(given))):
            return update(gradient, state, params, **more)
        gradient_, state_, params_, more_ = jax.tree.map(_alike.bind, given)
        updates, new = update(gradient_, state_, params_, **more_)
        return jax.tree.map(_as_before, (updates, new), (gradient, state))

    return run


def where_live(live: Array | bool, fn: Callable[..., Tree], *args: Tree) -> Tree:
    """fn(*args) where `live` holds, else zeros of such arrays, for which nothing is computed.

    It may stand inside shard_map, and reductions in fn: then `live` must be the same on all devices that
    take part in them.
    """

    def none(*args: Tree) -> Tree:
        return jax.tree.map(_zeros, jax.eval_shape(fn, *args))

    return none(*args) if live is False else lax.cond(live, fn, none, *args)


ONE_TRIP_IN = "one_trip_in_"


def one_trip_in(trips: int) -> AbstractContextManager[None]:
    """Names what the body of a loop does in one of so many trips alone: who counts what a program moves
    (`jtssm.sharding.count`) reads it, since a conditional does not tell how often it is taken."""
    return jax.named_scope(f"{ONE_TRIP_IN}{trips}")


def trips_a_run(name: str) -> int:
    """In how many trips of its loop an operation of that name runs once."""
    found = re.search(rf"\b{ONE_TRIP_IN}(\d+)", name)
    return int(found[1]) if found else 1


def _zeros(like: jax.ShapeDtypeStruct) -> Array:
    """Zeros that may differ along the same axes, as far as types say."""
    zeros, known = jnp.zeros(like.shape, like.dtype), like.manual_axis_type
    return zeros if known is None else _differing(zeros, known.varying)  # None: outside shard_map


def _axes(a: Array) -> frozenset[str]:
    """The axes along which an array may differ, as its type says."""
    return jax.typeof(a).manual_axis_type.varying


def _as_before(new: Array, old: Array) -> Array:
    return _differing(new, _axes(old))


def _differing(a: Array, over: frozenset[str]) -> Array:
    axes = tuple(sorted(over - _axes(a)))
    return lax.pcast(a, axes, to="varying") if axes else a
