"""Grids that what crosses a boundary is rounded to, so that small integers cross instead of floats."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import floating
from jtssm.protocol.declared import Move

BITS = {8: "uint8", 16: "uint16"}


class Message(NamedTuple):
    """An array [samples, ...] as it crosses a boundary."""

    codes: Array  # uint8 or uint16
    scale: (
        Tree  # an affine grid's (lowest value, step), each [samples, 1, ...]; () with given values
    )


class RoundingGrid(NamedTuple):
    """Values that the entries of an array may take.

    Given values: the same for all entries. None: 2^bits evenly spaced ones from the least to the
    largest entry of each sample, whose ends travel along (8 bytes a sample and array in float32).
    """

    bits: int  # of a code: 8 or 16
    values: tuple[float, ...] | None  # rising

    def encode(self, a: Array) -> Message:
        """The nearest grid value of every entry of a [samples, ...]."""
        if self.values is not None:
            values = jnp.asarray(self.values, a.dtype)
            codes = jnp.searchsorted((values[1:] + values[:-1]) / 2, a)
            return Message(codes.astype(BITS[self.bits]), ())
        entries = tuple(range(1, a.ndim))
        low, high = a.min(axis=entries, keepdims=True), a.max(axis=entries, keepdims=True)
        step = (high - low) / (2**self.bits - 1)
        codes = jnp.round((a - low) / jnp.where(step > 0, step, 1))
        return Message(codes.astype(BITS[self.bits]), (low, step))

    def decode(self, message: Message, dtype: DTypeLike) -> Array:
        """The array that a message stands for."""
        codes, scale = message
        if self.values is not None:
            return jnp.asarray(self.values, dtype)[codes]
        low, step = scale
        return low + step * codes.astype(dtype)

    def moves(self, floats: Move, arrays: int = 1) -> tuple[Move, ...]:
        """The move of floats [samples, ...] of so many arrays as it is once they are rounded."""
        codes = floats._replace(what=f"codes of {floats.what}", itemsize=self.bits // 8)
        if self.values is not None:
            return (codes,)
        shape = (floats.shape[0], 2 * arrays)
        return codes, floats._replace(what=f"ends of {floats.what}'s grids", shape=shape)


class Crossing(NamedTuple):
    """The grids of what crosses the boundaries of pieces; None: floats cross as they are."""

    forward: RoundingGrid | None = None
    backward: RoundingGrid | None = None

    @classmethod
    def of(cls, grid: RoundingGrid | None) -> Crossing:
        """Both ways on a grid. What goes backward is as small as gradients are, which given values do
        not tell: it is on an affine grid of as many bits."""
        return cls(grid, grid and grid._replace(values=None))


UNROUNDED = Crossing()


def rounded(grid: RoundingGrid | None, tree: Tree) -> Tree:
    """A tree with the `Message` of each array [samples, ...] of floats in its place."""
    if grid is None:
        return tree
    return jax.tree.map(lambda a: grid.encode(a) if floating(a) else a, tree)


def restored(grid: RoundingGrid | None, tree: Tree, dtype: DTypeLike) -> Tree:
    """The tree that was `rounded`, its floats on the grid."""
    if grid is None:
        return tree
    is_message = lambda a: isinstance(a, Message)
    read = lambda a: grid.decode(a, dtype) if is_message(a) else a
    return jax.tree.map(read, tree, is_leaf=is_message)


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
