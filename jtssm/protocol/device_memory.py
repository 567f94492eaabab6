"""Whether a state fits in the memory of the devices, before XLA ends the process over it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jtssm.arrays import Shaped, Tree


def memory(devices: Sequence[jax.Device]) -> float:
    """Bytes that jax may take of the memory of the devices together; of CPUs the host's."""
    here = [device for device in devices if device.process_index == jax.process_index()]
    if not here or (here[0].platform == "cpu" and not hasattr(os, "sysconf")):  # Windows
        return np.inf
    found: float
    if here[0].platform == "cpu":
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        found = sum(_limit(device) for device in here)
    return found * len(devices) / len(here)


def _limit(device: jax.Device) -> float:
    """Bytes of an accelerator; unlimited where it does not tell, or is not there."""
    try:
        return (device.memory_stats() or {}).get("bytes_limit", np.inf)
    except (RuntimeError, NotImplementedError):
        return np.inf


def fits(state: Tree, devices: Iterable[jax.Device] | None = None) -> None:
    """A state of such shapes fits into the memory of the devices; None: of the default one.

    XLA ends the process, without an exception, over arrays that no memory holds.
    """
    devices = [_default_device()] if devices is None else list(devices)
    size = sum(prod(a.shape) * _itemsize(a.dtype) for a in jax.tree.leaves(state))
    if size > memory(devices):
        raise ValueError(
            f"net: expected a network whose state fits in the {memory(devices):.3g} bytes of memory "
            f"there are; got one of {size:.3g} bytes: fewer or narrower layers, workers or sweeps"
        )


def held(tree: Tree) -> int:
    """Bytes that one device holds of arrays, or of shapes: of those with a sharding its shard."""
    return sum(prod(_here(a)) * _itemsize(a.dtype) for a in jax.tree.leaves(tree))


def _here(a: Shaped) -> tuple[int, ...]:
    """The shape of an array's part on one device."""
    sharding = getattr(a, "sharding", None)
    return a.shape if sharding is None else sharding.shard_shape(a.shape)


def _default_device() -> jax.Device:
    """Where jax puts what is not told where to go."""
    given = jax.config.values.get("jax_default_device")
    if given is None or isinstance(given, str):
        return jax.local_devices(backend=given)[0]
    return given


def _itemsize(dtype: DTypeLike) -> int:
    return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize
