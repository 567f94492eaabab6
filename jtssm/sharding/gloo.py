"""Sums between processes on CPUs, which meet by gloo: there a message costs more than its bytes.

Measured on two pinned cores, one process each, on a free link (`benchmarks.gloo_messages`): an all-reduce
takes 3 to 4 ms, whatever it sums, up to 0.5 MB: a tick of the scheduler; a reduce-scatter 0.3 to 0.6 ms
of as little, but 50 ms and more of 4 MB, where an all-reduce takes 9. So there

    small arrays go together in one message;
    a small message over an axis of two is a reduce-scatter of two copies, whose sum each device gets: as
    many bytes as a ring's all-reduce sends, and both add the same two numbers;
    larger ones are all-reduced;
    what two devices tell each other is their sum, less one's own: both ways at once.

jax knows the result of a reduce-scatter as another on every device. That it is not is said by a maximum
over groups of one device each, which moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh

from jtssm.arrays import Array, Tree
from jtssm.nn.ops import varying

SMALL = 2**19  # bytes of a message that a reduce-scatter takes less time for
JOINED = 2**20  # bytes below which an array goes with others: a copy takes less than a message
LONGEST = 2**22  # bytes of a message of several arrays


def meet(mesh: Mesh | AbstractMesh) -> bool:
    """Whether the devices of a mesh meet by gloo: CPUs, of several processes."""
    if isinstance(mesh, AbstractMesh) or jax.process_count() == 1:
        return False
    return mesh.devices.flat[0].platform == "cpu"


def totals(tree: Tree, axes: Sequence[str]) -> Tree:
    """Sums over the devices along the axes of all arrays of a tree, in as few messages as pay."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, summed(leaves, [tuple(axes)] * len(leaves)))


def summed(arrays: Sequence[Array], axes: Sequence[tuple[str, ...]]) -> list[Array]:
    """Of each array the sum over its own axes."""
    marked = [varying(a, over) for a, over in zip(arrays, axes, strict=True)]
    found: dict[int, Array] = {}
    for message in _messages(marked, axes):
        over = axes[message[0]]
        if len(message) == 1 or not over:
            found |= {k: total(marked[k], over) for k in message}
            continue
        row = total(jnp.concatenate([marked[k].reshape(-1) for k in message]), over)
        start = 0
        for k in message:
            found[k] = row[start : start + marked[k].size].reshape(marked[k].shape)
            start += marked[k].size
    return [found[k] for k in range(len(marked))]


def _messages(arrays: Sequence[Array], axes: Sequence[tuple[str, ...]]) -> Iterator[list[int]]:
    """Which go together: small ones of one dtype that differ and are summed along the same axes."""
    alike: dict[tuple, list[int]] = {}
    for k, (a, over) in enumerate(zip(arrays, axes, strict=True)):
        if _bytes(a) >= JOINED:
            yield [k]
            continue
        key = (a.dtype, over, jax.typeof(a).manual_axis_type.varying)
        open_one = alike.setdefault(key, [])
        if sum(_bytes(arrays[i]) for i in open_one) + _bytes(a) > LONGEST:
            yield open_one
            alike[key] = open_one = []
        open_one.append(k)
    yield from alike.values()


def total(x: Array, axes: Sequence[str]) -> Array:
    """Sum of what the devices along the axes hold, of an array that differs along all of them."""
    if not axes:
        return x
    if _bytes(x) > SMALL or any(lax.axis_size(axis) != 2 for axis in axes):
        return lax.psum(x, tuple(axes))
    for axis in axes:
        x = _added(axis)(x)
    return x


def _added(axis: str) -> Callable[[Array], Array]:
    """The sum over two devices, by a reduce-scatter; transposed as an all-reduce."""

    def add(x: Array) -> Array:
        # both add in the same order: 0 + 1 is 1 + 0
        return same(lax.psum_scatter(jnp.broadcast_to(x, (2, *x.shape)), axis), (axis,))

    added = jax.custom_vjp(add)
    added.defvjp(lambda x: (add(x), None), lambda _, g: (varying(g, (axis,)),))
    return added


def of_the_other(x: Array, axis: str) -> Array:
    """What the other of two devices along the axis holds in the place of x, to the bit."""
    mine = x.astype(jnp.uint8) if x.dtype == bool else x
    integer = jnp.dtype(f"uint{8 * mine.dtype.itemsize}")
    mine = lax.bitcast_convert_type(mine, integer)
    if _bytes(mine) > SMALL:
        found = lax.psum(mine, axis) - mine
    else:
        other = 1 - lax.axis_index(axis)
        blank = jnp.zeros((2, *mine.shape), integer)
        halves = lax.dynamic_update_slice_in_dim(blank, mine[None], other, 0)
        found = lax.psum_scatter(halves, axis)
    return found.astype(bool) if x.dtype == bool else lax.bitcast_convert_type(found, x.dtype)


def turned(a: Array, axis: str) -> Array:
    """A[I_X, J, ...] -> A[J_X, I, ...] over two devices: an all-to-all, told both ways at once.

    gloo's own tells one way after the other.
    """
    here, half = lax.axis_index(axis), a.shape[1] // 2
    of_device = lambda d: lax.dynamic_slice_in_dim(a, d * half, half, axis=1)
    own, other = of_device(here), of_the_other(of_device(1 - here), axis)
    pick = lambda first, second: jnp.where(here == 0, first, second)
    rows = jnp.concatenate([pick(own, other), pick(other, own)])
    return rows.swapaxes(0, 1)


def same(x: Array, axes: Sequence[str]) -> Array:
    """x, which the devices along the axes all hold, marked as the same there; nothing moves.

    Nobody checks that it is the same.
    """
    alone = [[device] for device in range(prod(lax.axis_size(axis) for axis in axes))]
    return lax.pmax(x, tuple(axes), axis_index_groups=alone)


def with_joined_gradients(
    params: Sequence[Array], axes: Sequence[tuple[str, ...]]
) -> Sequence[Array]:
    """The parameters as they are; their gradients are summed over the axes in as few messages as pay.

    axes: of each parameter those along which it is the same, and the samples it works on are split; none
    of one that is to be left as it is.
    """
    told = jax.custom_vjp(
        lambda params: [varying(a, over) for a, over in zip(params, axes, strict=True)]
    )
    told.defvjp(lambda params: (told(params), None), lambda _, g: (summed(g, axes),))
    return told(list(params))


def _bytes(a: Array) -> int:
    return a.size * a.dtype.itemsize
