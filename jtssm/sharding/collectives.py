"""What moves along an axis of the mesh, inside shard_map.

A[I_X, J_Y] stands for a matrix whose rows I are split over the mesh axis X and columns J over Y.
An axis name of None stands for an axis the mesh does not have: nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jtssm.arrays import Array, Tree
from jtssm.nn.ops import varying


def gather_columns(x: Array, axis: str | None) -> Array:
    """A[I, J_X] -> A[I, J]: all-gather; the same on every device, gradients come back as slices."""
    return x if axis is None else gather(x, axis, x.ndim - 1)


def gather(x: Array, axis: str, dimension: int, *, to: str = "invarying") -> Array:
    """A[.., I_X, ..] -> A[.., I, ..]: all-gather along a dimension.

    to: "invarying", the same on every device: gradients come back as slices; or "varying", a copy of each
    device's own: gradients come back summed, by a reduce-scatter.
    """
    return lax.all_gather(x, axis, axis=dimension, tiled=True, to=to)


def scatter_sum(x: Array, axis: str, dimension: int) -> Array:
    """Sum of the devices' A[.., I, ..] as A[.., I_X, ..]: reduce-scatter."""
    return lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True)


def turned(x: Array, axis: str, source: int, target: int) -> Array:
    """A[.., I_X, .., J, ..] -> A[.., I, .., J_X, ..], I the source dimension: all-to-all."""
    return lax.all_to_all(x, axis, split_axis=target, concat_axis=source, tiled=True)


def own(x: Array, axis: str, dimension: int) -> Array:
    """A[.., I, ..], the same everywhere -> A[.., I_X, ..]; no gradient is summed: it is gathered."""
    return kept(lambda x: part(x, axis, dimension), lambda g: gather(g, axis, dimension))(x)


def kept(cut: Callable, joined: Callable) -> Callable:
    """A function that keeps a part of what is the same everywhere; joined: the parts' cotangents.

    Left to autodiff, each device's cotangent would be padded with zeros and all-reduced: twice the bytes.
    """
    kept = jax.custom_vjp(cut)
    kept.defvjp(lambda x: (cut(x), None), lambda _, g: (joined(g),))
    return kept


def part(x: Array, axis: str | tuple[str, ...], dimension: int) -> Array:
    """A[.., I, ..], the same everywhere -> A[.., I_X, ..]: what of it is this device's."""
    size = x.shape[dimension] // lax.axis_size(axis)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axis) * size, size, dimension)


def sent(x: Array, axis: str, step: int) -> Array:
    """Every device sends x to the one `step` further along the axis; the ends get zeros: a permute."""
    size = lax.axis_size(axis)
    ends = [(d, d + step) for d in range(size) if 0 <= d + step < size]
    return lax.ppermute(x, axis, ends)


def from_neighbours(last: Array, first: Array, axis: str, dimension: int) -> tuple[Array, Array]:
    """(`last` of the device before, `first` of the one after), zeros at the ends, by an all-gather.

    For programs that differ between devices, where a permute would wait for ever.
    """
    size, rank = lax.axis_size(axis), lax.axis_index(axis)
    edges = lax.all_gather(jnp.concatenate([last, first], dimension), axis, to="varying")

    def of(device: Array, start: int, stop: int) -> Array:
        edge = lax.dynamic_index_in_dim(edges, jnp.clip(device, 0, size - 1), keepdims=False)
        edge = lax.slice_in_dim(edge, start, stop, axis=dimension)
        return jnp.where((device >= 0) & (device < size), edge, 0)

    width, both = last.shape[dimension], last.shape[dimension] + first.shape[dimension]
    return of(rank - 1, 0, width), of(rank + 1, width, both)


def total(x: Tree, axes: Sequence[str]) -> Tree:
    """Sum of what the devices along the axes hold: all-reduce."""
    return jax.tree.map(lambda a: lax.psum(a, tuple(axes)), x) if axes else x


def mean(x: Tree, axes: Sequence[str]) -> Tree:
    """Mean of what the devices along the axes hold: all-reduce."""
    return jax.tree.map(lambda a: lax.pmean(a, tuple(axes)), x) if axes else x


def index(axis: str | tuple[str, ...] | None) -> Array | int:
    """Where this device stands along an axis, or along several as one."""
    return 0 if axis is None else lax.axis_index(axis)


def narrowed(a: Array, dtype: DTypeLike, *, axes: Sequence[str]) -> Array:
    """A parameter in a narrow dtype, for work that differs along the axes.

    First marked as differing, then cast: so its gradient is summed over them after it is wide again.
    """
    return varying(a, axes).astype(dtype)


def shift(x: Array, axis: str | None, widths: Sequence[int], step: int) -> Array:
    """Device d along the axis sends its x [..., size] to device d + step; the ends get zeros.

    widths[k] is how many leading columns cross the boundary between devices k and k + 1: boundaries
    of equal width share one collective permute, and nothing is sent but those columns.
    """
    received = jnp.zeros_like(x)
    for width in sorted(set(widths) - {0}):
        ends = [(k, k + 1) if step == 1 else (k + 1, k) for k, w in enumerate(widths) if w == width]
        moved = lax.ppermute(x[..., :width], axis, ends)
        place = received.at[..., :width]  # what no device sends is zero, or False
        received = place.max(moved) if x.dtype == bool else place.add(moved)
    return received
