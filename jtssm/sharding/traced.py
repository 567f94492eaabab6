"""What a function does, as one number: of its trace, without running it."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jtssm.arrays import Tree, crc


def digest(function: Callable, *args: Tree) -> int:
    """A checksum of the operations that a function of arrays does, and of the numbers that it holds.

    Two functions that do the same have the same, in whatever process; two that hold other numbers (a
    learning rate, weights of a given module) have others. The order of independent operations does not
    count, for processes may have sets in other orders.

    Args:
      args: arrays or `jax.ShapeDtypeStruct`s.
    """
    traced = jax.make_jaxpr(function)(*args)
    found = Counter(_operations(traced))
    return zlib.crc32(repr(sorted(found.items())).encode())


def _operations(traced: ClosedJaxpr | Jaxpr) -> Iterator[str]:
    """One text an operation, and one a held array."""
    if isinstance(traced, ClosedJaxpr):
        yield from map(_held, traced.consts)
        traced = traced.jaxpr
    for eqn in traced.eqns:
        inputs = [_held(a.val) if isinstance(a, Literal) else str(a.aval) for a in eqn.invars]
        yield f"{eqn.primitive.name} {inputs} {[str(a.aval) for a in eqn.outvars]}"
        for value in eqn.params.values():
            yield from _within(value)


def _within(value: Any) -> Iterator[str]:
    """Of a parameter of an operation: functions, alone or several; numbers are left to their shapes."""
    for each in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(each, (ClosedJaxpr, Jaxpr)):
            yield from _operations(each)


def _held(a: Any) -> str:
    """A number or an array that a function holds."""
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a = jax.random.key_data(a)
    if isinstance(a, jax.Array) and not a.is_fully_addressable:
        return str(jax.typeof(a))
    array = np.ascontiguousarray(a)
    return f"{array.dtype}{array.shape} {crc(array)}"
