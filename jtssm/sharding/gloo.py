"""Sums between processes on CPUs, which meet by gloo: few messages, and both ways at once.

Measured on two pinned cores, one process each (`benchmarks.gloo_messages`; `jtssm.sharding.receiving`
keeps gloo's thread from taking them): a message takes 0.15 ms beside its bytes, and what two devices tell
each other by permutes or an all-to-all goes one way after the other, twice the time on a link of 1 Gbit/s
or less. So there

    small arrays go together in one message;
    what two devices tell each other is their sum, less one's own: both ways at once, and as many bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh

from jtssm.arrays import Array, Tree
from jtssm.nn.ops import varying

JOINED = 2**18  # bytes below which an array goes with others: copies take less, by estimate
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
            found |= {k: lax.psum(marked[k], over) if over else marked[k] for k in message}
            continue
        row = lax.psum(jnp.concatenate([marked[k].reshape(-1) for k in message]), over)
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


def of_the_other(x: Array, axis: str) -> Array:
    """What the other of two devices along the axis holds in the place of x, to the bit."""
    mine = x.astype(jnp.uint8) if x.dtype == bool else x
    integer = jnp.dtype(f"uint{8 * mine.dtype.itemsize}")
    mine = lax.bitcast_convert_type(mine, integer)
    found = lax.psum(mine, axis) - mine
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
