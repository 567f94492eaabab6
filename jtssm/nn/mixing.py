"""Whether a module mixes its samples: then its numbers on a mesh, which splits them, are others.

Looked for in the module's trace: where the axis of samples goes, primitive by primitive. A sum over it
that does not go through the mesh (`psum`, as flax's batch normalisation has it) mixes; of what the trace
cannot tell, a run on two samples and on each of them alone decides.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from jtssm.arrays import Array, Tree
from jtssm.nn.sample_axes import AXIS, UntoldError, followed

__all__ = ["AXIS", "differ", "mixes"]


def mixes(run: Callable[[Tree, Tree], Tree], tree: Tree, x: Tree) -> bool | None:
    """Whether what run(tree, x [samples, ...]) gives for a sample depends on others.

    What it sums over the mesh axis `AXIS` does not count. None: the trace does not tell.
    """
    traced = jax.make_jaxpr(run, axis_env=[(AXIS, 2)])(tree, x).jaxpr
    needed, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars), instantiate=True)
    axes = [*(None for _ in jax.tree.leaves(tree)), *(0 for _ in jax.tree.leaves(x))]
    try:
        found = followed(needed, axes)
    except UntoldError:
        return None
    if any(axis not in (0, None) for axis in found):
        return True
    return None if None in found else False


def differ(run: Callable[[Tree, Tree], Tree], tree: Tree, x: Tree) -> bool:
    """Whether it gives other numbers for two samples than for each of them alone, tried out."""
    samples = jax.tree.map(_tried, x)
    one = lambda i: jax.tree.map(lambda a: a[i : i + 1], samples)
    with jax.default_matmul_precision("highest"):
        together = jax.jit(run)(tree, samples)
        alone = jax.tree.map(
            lambda *a: jnp.concatenate(a), *(jax.jit(run)(tree, one(i)) for i in range(2))
        )
    return not all(map(_close, jax.tree.leaves(together), jax.tree.leaves(alone)))


def _tried(x: jax.ShapeDtypeStruct) -> Array:
    """Two samples that differ: of integers 0 and 1, of booleans all true and every other one."""
    shape = (2, *x.shape[1:])
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.broadcast_to(jnp.arange(2).reshape(2, *(1 for _ in shape[1:])), shape).astype(
            x.dtype
        )
    if x.dtype == bool:
        return (jnp.arange(prod(shape)) % 2 == 0).reshape(shape).at[0].set(True)
    return jax.random.normal(jax.random.key(1), shape).astype(x.dtype)


def _close(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(
        jnp.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)
        if jnp.issubdtype(a.dtype, jnp.floating)
        else (a == b).all()
    )
