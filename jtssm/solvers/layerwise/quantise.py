"""Grids that p and q are rounded to, so that small integers cross a boundary instead of floats."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import Array, Tree

BITS = {8: "uint8", 16: "uint16"}


class Message(NamedTuple):
    """A matrix [samples, width] as it crosses a boundary."""

    codes: Array  # uint8 or uint16
    scale: Tree  # an affine grid's (lowest value, step), each [samples, 1]; () with given values


class RoundingGrid(NamedTuple):
    """Values that the entries of a matrix may take.

    Given values: the same for all entries. None: 2^bits evenly spaced ones from the least to the
    largest entry of each sample, whose ends travel along (8 bytes a sample in float32).
    """

    bits: int  # of a code: 8 or 16
    values: tuple[float, ...] | None  # rising

    def encode(self, a: Array) -> Message:
        """The nearest grid value of every entry of a [samples, width]."""
        if self.values is not None:
            values = jnp.asarray(self.values, a.dtype)
            codes = jnp.searchsorted((values[1:] + values[:-1]) / 2, a)
            return Message(codes.astype(BITS[self.bits]), ())
        low, high = a.min(axis=1, keepdims=True), a.max(axis=1, keepdims=True)
        step = (high - low) / (2**self.bits - 1)
        codes = jnp.round((a - low) / jnp.where(step > 0, step, 1))
        return Message(codes.astype(BITS[self.bits]), (low, step))

    def decode(self, message: Message, dtype: DTypeLike) -> Array:
        """The matrix that a message stands for."""
        codes, scale = message
        if self.values is not None:
            return jnp.asarray(self.values, dtype)[codes]
        low, step = scale
        return low + step * codes.astype(dtype)


def grid_of(given: int | Sequence[float] | None) -> RoundingGrid | None:
    """A grid from 8 or 16 (bits of an affine one), or from its values.

    Raises:
      ValueError: another number of bits; values that do not rise, are not finite or too many.
    """
    if given is None:
        return None
    if isinstance(given, (int, np.integer)):
        if given not in BITS or isinstance(given, bool):
            raise ValueError(
                f"grid: expected 8 or 16 bits, or a list of values; got {checks.shown(given)}"
            )
        return RoundingGrid(int(given), None)
    try:
        # one more than there may be: whoever gives a long range does not wait
        values = tuple(float(a) for a in given[: 2**16 + 1])
    except (TypeError, ValueError, OverflowError, LookupError):
        raise ValueError(
            f"grid: expected 8, 16, or rising finite numbers, e.g. range(-1, 21); got "
            f"{checks.shown(given)}"
        ) from None
    rising = all(a < b for a, b in pairwise(values))
    if not 2 <= len(values) <= 2**16 or not rising or not np.isfinite(values).all():
        shown = f"{len(given)} of them" if len(values) > 2**16 else list(values[:8])
        raise ValueError(
            f"grid: expected 2 to 65536 rising finite numbers, e.g. sorted(values); got {shown}"
        )
    return RoundingGrid(8 if len(values) <= 2**8 else 16, values)
