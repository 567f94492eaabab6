"""Optimizers that branch (`lax.cond` in optax.MultiSteps, reduce_on_plateau, apply_if_finite) on a mesh.

Inside shard_map jax tells by an array's type along which axes of the mesh it may differ, and both
branches of a `cond` must give the same types: zeros that one of them makes are the same everywhere, what
the other computes is not. So such an optimizer is run on arrays whose types do not say so, and what it
gives gets the types of what was there before. Nothing is computed or sent for it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
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


def _axes(a: Array) -> frozenset[str]:
    """The axes along which an array may differ, as its type says."""
    return jax.typeof(a).manual_axis_type.varying


def _as_before(new: Array, old: Array) -> Array:
    axes = tuple(sorted(_axes(old) - _axes(new)))
    return lax.pcast(new, axes, to="varying") if axes else new
