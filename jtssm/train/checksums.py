"""Checksums of the arrays of a state: one number each, that no mesh changes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jtssm.arrays import Array

Words = TypeVar("Words", Array, np.ndarray)
PRIME = np.uint32(2654435761)
# of murmur3's last steps: each bit of a word changes each bit of what becomes of it with chance 1/2
FIRST, SECOND = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)


def checksums(leaves: Sequence[Array | np.ndarray]) -> list[int]:
    """One number an array, the same on any mesh and on the host: no device gathers anything.

    Any bits that change, and values that change places, go unseen once in 2^32 times.
    """
    numbers = [jax.random.key_data(a) if is_key(a) else a for a in leaves]
    # all are under way before the first is waited for
    found = [_checksum(a, np) if isinstance(a, np.ndarray) else _on_devices(a) for a in numbers]
    return [int(number) for number in found]


def is_key(a: Array | np.ndarray | jax.ShapeDtypeStruct) -> bool:
    """Whether it is an array of typed keys."""
    return jnp.issubdtype(a.dtype, jax.dtypes.prng_key)


@jax.jit  # of one array: those of a shape share a program
def _on_devices(a: Array) -> Array:
    return _checksum(a, jnp)


def _checksum(a: Words, xp: ModuleType) -> Words:
    """The sum, modulo 2^32, of all words, each mixed with its place: changes cancel by chance alone."""
    a = a.reshape(1) if a.ndim == 0 else a
    words, places = _words(a, xp), _places(a.shape, xp)
    mixed = [_mixed(word ^ (places * PRIME + np.uint32(i))) for i, word in enumerate(words)]
    return xp.sum(sum(mixed[1:], start=mixed[0]), dtype=np.uint32)


def _mixed(h: Words) -> Words:
    h = (h ^ (h >> np.uint32(16))) * FIRST
    h = (h ^ (h >> np.uint32(13))) * SECOND
    return h ^ (h >> np.uint32(16))


def _places(shape: Sequence[int], xp: ModuleType) -> Any:
    """The number of each place, row by row, modulo 2^32; it broadcasts to the shape."""
    places = xp.zeros((1,) * len(shape), np.uint32)
    for d, n in enumerate(shape):
        stride = np.uint32(prod(shape[d + 1 :]) % 2**32)
        along = [n if i == d else 1 for i in range(len(shape))]
        places = places + (xp.arange(n, dtype=np.uint32) * stride).reshape(along)
    return places


def _words(a: Words, xp: ModuleType) -> list[Words]:
    """The bits of an array as uint32; of 64 the low and the high ones."""
    if a.dtype == bool:
        return [a.astype(np.uint32)]
    kind = np.dtype(f"uint{8 * a.dtype.itemsize}")
    bits: Any = a.view(kind) if xp is np else lax.bitcast_convert_type(a, kind)
    if kind.itemsize == 8:
        low = (bits & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        return [low, (bits >> np.uint64(32)).astype(np.uint32)]
    return [bits.astype(np.uint32)]
