"""What a run is, and what its arrays are, in a few words and numbers that another process can compare."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jtssm.arrays import Array, Tree
from jtssm.protocol.method import Method
from jtssm.train.record import Document

Words = TypeVar("Words", Array, np.ndarray)
PRIME = np.uint32(2654435761)


def abstract_state(method: Method, key: Array, x: Tree, y: Array | np.ndarray) -> Tree:
    """Shapes of an unplaced state; x, y: the samples as `init` sees them, or their shapes."""
    shape = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)
    x, y = jax.tree.map(shape, (x, y))
    return jax.eval_shape(method.program.on_one_device().init, key, x, y)


def fingerprint(
    method: Method,
    state: Tree,
    train: str,
    used: int,
    key: Array,
    params: Sequence[Tree] | None,
) -> Document:
    """What must be the same for a run to go on from a checkpoint; numbers and names that JSON holds.

    Args:
      state: shapes of its unplaced state.
      train: `samples` or `stream`.  used: of the samples at hand, how many the method sees.
      params: weights that the run starts from, or None.
    """
    impl = str(jax.random.key_impl(key))
    return {
        **method.program.identity(),
        "samples": used,
        "train": train,
        "key": [impl, np.asarray(jax.random.key_data(key)).tolist()],
        "params": None if params is None else _crc(jax.tree.leaves(params)),
        "state": {
            jax.tree_util.keystr(path).lstrip("."): f"{a.dtype}{list(a.shape)}"
            for path, a in jax.tree_util.tree_leaves_with_path(state)
        },
    }


def samples(train: Tree, shares: int | None = None) -> str:
    """What (x, y) are, in words; shares: of `ProcessSamples` a checksum of all processes' samples."""
    crc = lambda a: _crc([a]) if shares is None else f"{shares} of all shares"
    return ", ".join(f"{a.dtype}{list(a.shape)} of checksum {crc(a)}" for a in _leaves(train))


def stream(first: Tree, steps_per_epoch: int | None) -> str:
    """What a stream is, in words, by its first sample; its batches have checksums of their own."""
    each = ", ".join(f"{a.dtype}{list(a.shape[1:])}" for a in _leaves(first))
    return f"a stream of {each}; an epoch is {steps_per_epoch or 'a pass, not'} steps"


def _leaves(pair: Tree) -> list[np.ndarray]:
    """The arrays of x, then y."""
    return jax.tree.leaves(tuple(pair))


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs, in words; empty where nothing does."""
    found = []
    for name in [*here, *(set(there) - set(here))]:
        a, b = there.get(name), here.get(name)
        if a != b and isinstance(a, Mapping) and isinstance(b, Mapping):
            found.append(f"{name}: {differences(a, b).split('; ')[0]}")
        elif a != b:
            found.append(f"{name}: {a} there, {b} here")
    return "; ".join(found)


def _crc(arrays: Sequence[ArrayLike]) -> int:
    crc = 0
    for a in arrays:
        crc = zlib.crc32(np.ascontiguousarray(a).view(np.uint8).data, crc)
    return crc


def checksums(leaves: Sequence[Array | np.ndarray]) -> list[int]:
    """One number an array, the same on any mesh and on the host; a changed number changes it."""
    numbers = [jax.random.key_data(a) if is_key(a) else a for a in leaves]
    placed = iter(_on_devices([a for a in numbers if not isinstance(a, np.ndarray)]))
    found = (_checksum(a, np) if isinstance(a, np.ndarray) else next(placed) for a in numbers)
    return [int(number) for number in found]


def is_key(a: Array | np.ndarray | jax.ShapeDtypeStruct) -> bool:
    """Whether it is an array of typed keys."""
    return jnp.issubdtype(a.dtype, jax.dtypes.prng_key)


@jax.jit
def _on_devices(leaves: list[Array]) -> list[Array]:
    return [_checksum(a, jnp) for a in leaves]


def _checksum(a: Words, xp: ModuleType) -> Words:
    """The sum of all words, each times an odd number that its place decides, modulo 2^32."""
    a = a.reshape(1) if a.ndim == 0 else a
    words, odd = _words(a, xp), xp.zeros((1,) * a.ndim, np.uint32)
    for d, n in enumerate(a.shape):
        places = xp.arange(n, dtype=np.uint32).reshape([n if i == d else 1 for i in range(a.ndim)])
        odd = (odd + places) * PRIME
    return xp.sum(words * (odd * np.uint32(2) + np.uint32(1)), dtype=np.uint32)


def _words(a: Words, xp: ModuleType) -> Words:
    """The bits of an array as uint32, those of 64 folded."""
    if a.dtype == bool:
        return a.astype(np.uint32)
    kind = np.dtype(f"uint{8 * a.dtype.itemsize}")
    bits: Any = a.view(kind) if xp is np else lax.bitcast_convert_type(a, kind)
    if kind.itemsize == 8:
        bits = bits ^ (bits >> np.uint64(32))
        return (bits & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    return bits.astype(np.uint32)
