"""What moves along an axis of the mesh, inside shard_map.

A[I_X, J_Y] stands for a matrix whose rows I are split over the mesh axis X and columns J over Y.
An axis name of None stands for an axis the mesh does not have: nothing moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.protocol import Array, Tree


def gather_columns(x: Array, axis: str | None) -> Array:
    """A[I, J_X] -> A[I, J]: all-gather; the same on every device, gradients come back as slices."""
    return (
        x if axis is None else lax.all_gather(x, axis, axis=x.ndim - 1, tiled=True, to="invarying")
    )


def total(x: Tree, axes: Sequence[str]) -> Tree:
    """Sum of what the devices along the axes hold: all-reduce."""
    return jax.tree.map(lambda a: lax.psum(a, tuple(axes)), x) if axes else x


def mean(x: Tree, axes: Sequence[str]) -> Tree:
    """Mean of what the devices along the axes hold: all-reduce."""
    return jax.tree.map(lambda a: lax.pmean(a, tuple(axes)), x) if axes else x


def index(axis: str | None) -> Any:
    """Where this device stands along an axis."""
    return 0 if axis is None else lax.axis_index(axis)


def varying(x: Tree, axes: Sequence[str]) -> Tree:
    """x marked as differing along the axes, so that no gradient is summed over them unasked."""

    def mark(a: Array) -> Array:
        missing = tuple(n for n in axes if n not in jax.typeof(a).manual_axis_type.varying)
        return lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(lambda a: mark(jnp.asarray(a)), x)


def shift(x: Array, axis: str | None, widths: Sequence[int], step: int) -> Array:
    """Device d along the axis sends its x [..., size] to device d + step; the ends get zeros.

    widths[k] is how many leading columns cross the boundary between devices k and k + 1: boundaries
    of equal width share one collective permute, and nothing is sent but those columns.
    """
    received = jnp.zeros_like(x)
    for width in sorted(set(widths) - {0}):
        ends = [(k, k + 1) if step == 1 else (k + 1, k) for k, w in enumerate(widths) if w == width]
        moved = lax.ppermute(x[..., :width], axis, ends)
        received = received.at[..., :width].add(moved)
    return received
