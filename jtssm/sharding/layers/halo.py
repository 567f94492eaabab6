"""Images whose rows are split over an axis: who owns which, and what a window takes from neighbours.

Device r of p owns the rows r h // p .. (r + 1) h // p - 1 of images of height h: slabs differ by one row
at most. An array [b, rows, w, c] of a slab has room for the tallest; a row behind the last that is owned
holds nothing of use, and has no cotangent.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jtssm.arrays import Array
from jtssm.nn.ops import Window
from jtssm.sharding import collectives


class Slabs(NamedTuple):
    """How `height` rows are dealt out to `parts` devices."""

    height: int
    parts: int

    @property
    def starts(self) -> np.ndarray:
        """[parts + 1] first row of each slab, and the height."""
        return np.arange(self.parts + 1) * self.height // self.parts

    @property
    def sizes(self) -> np.ndarray:
        """[parts] rows of each slab."""
        return np.diff(self.starts)

    @property
    def room(self) -> int:
        """Rows of the tallest slab: what an array of any slab has."""
        return -(-self.height // self.parts)

    @property
    def even(self) -> bool:
        """Whether all slabs are equal."""
        return self.height % self.parts == 0

    def spread(self, x: Array) -> Array:
        """Rows [b, height, ...] as [b, parts * room, ...], every slab in its room."""
        if self.even:
            return x
        rows = np.minimum(self.starts[:-1, None] + np.arange(self.room), self.height - 1)
        return x[:, rows.reshape(-1)]

    def joined(self, x: Array) -> Array:
        """Rows [b, parts * room, ...] as [b, height, ...]: the inverse of `spread`."""
        if self.even:
            return x
        places = [
            r * self.room + np.arange(b - a) for r, (a, b) in enumerate(pairwise(self.starts))
        ]
        return x[:, np.concatenate(places)]

    def own(self, x: Array, rank: Array | int) -> Array:
        """The slab of device `rank` of whole images [b, height, ...]."""
        start = jnp.asarray(self.starts[:-1], jnp.int32)[rank]
        return lax.dynamic_slice_in_dim(x, start, self.room, 1)

    def owned(self, rank: Array | int) -> Array:
        """[1, room, 1, 1] whether each row of the slab of device `rank` is owned."""
        size = jnp.asarray(self.sizes, jnp.int32)[rank]
        return (jnp.arange(self.room) < size)[None, :, None, None]

    def last(self, x: Array, num: int, rank: Array | int) -> Array:
        """The last rows that device `rank` owns of its slab."""
        if self.even:
            return x[:, self.room - num :]
        size = jnp.asarray(self.sizes, jnp.int32)[rank]
        return lax.dynamic_slice_in_dim(x, size - num, num, 1)

    def blanked(self, x: Array, rank: Array | int) -> Array:
        """The slab with zeros in the rows that are not owned."""
        return x if self.even else jnp.where(self.owned(rank), x, 0)


class Halo(NamedTuple):
    """What every device needs of its neighbours' rows for the window of a layer."""

    window: Window
    rows: Slabs  # of the input
    outputs: Slabs

    @classmethod
    def of(cls, window: Window, height: int, parts: int) -> Halo:
        """The halo of images of a height over so many devices."""
        return cls(window, Slabs(height, parts), Slabs(window.outputs(height), parts))

    @property
    def first(self) -> np.ndarray:
        """[parts] first row that a device's outputs see; below 0 in the padding."""
        before, _ = self.window.pads(self.rows.height)
        return self.outputs.starts[:-1] * self.window.stride - before

    @property
    def last(self) -> np.ndarray:
        """[parts] the row after the last that a device's outputs see."""
        before, _ = self.window.pads(self.rows.height)
        stride, size = self.window.stride, self.window.size
        return (self.outputs.starts[1:] - 1) * stride - before + size

    @property
    def above(self) -> int:
        """Rows that a device sends to the next one: the most that any needs."""
        needed = self.rows.starts[:-1] - np.maximum(self.first, 0)
        return int(max(0, *needed[1:])) if self.rows.parts > 1 else 0

    @property
    def below(self) -> int:
        """Rows that a device sends to the one before."""
        needed = np.minimum(self.last, self.rows.height) - self.rows.starts[1:]
        return int(max(0, *needed[:-1])) if self.rows.parts > 1 else 0

    @property
    def fits(self) -> bool:
        """Whether no slab is empty and no neighbour is asked for more rows than it owns."""
        if min(self.rows.height, self.outputs.height) < self.rows.parts:
            return False
        return max(self.above, self.below) <= self.rows.sizes.min()

    @property
    def inner(self) -> tuple[int, int]:
        """The outputs i0 .. i1 - 1 of a slab that see its own rows alone, on every device."""
        stride, own = self.window.stride, self.rows.starts
        early = -(-(own[:-1] - self.first) // stride)
        late = (own[1:] - self.window.size - self.first) // stride + 1
        i0 = int(min(self.outputs.room, max(0, *early)))
        return i0, max(i0, int(min(self.outputs.room, *late)))


def windowed(
    halo: Halo, axis: str, apart: bool, fn: Callable, x: Array, window: Window, fill: float
) -> Array:
    """fn over the rows of all devices: `Products.windowed` for a slab x [b, room, w, c].

    The outputs that see own rows alone do not wait for the neighbours' rows: a compiler can run them
    while those travel.

    Args:
      apart: rows go by an all-gather of the slabs' edges instead of to neighbours alone: in a program
        that is not the same on all devices a permute would wait for ever.
      fill: what stands for rows outside the image.
    """
    rank = lax.axis_index(axis)
    pads = window.pads(x.shape[2])
    i0, i1 = halo.inner
    stack = lambda rows: fn(rows, (0, 0), pads)
    seen = _Seen(halo, rank)
    parts = []
    edges = None if (i0, i1) == (0, halo.outputs.room) else _exchanged(halo, x, axis, rank, apart)
    if edges and i0 > 0:
        parts.append(stack(seen.with_edges(x, edges, 0, i0, fill)))
    if i1 > i0:
        parts.append(stack(seen.alone(x, i0, i1)))
    if edges and i1 < halo.outputs.room:
        parts.append(stack(seen.with_edges(x, edges, i1, halo.outputs.room, fill)))
    y = _joined(*parts) if len(parts) > 1 else parts[0]
    return halo.outputs.blanked(y, rank)


class _Seen(NamedTuple):
    """The rows that some outputs of this device see."""

    halo: Halo
    rank: Array | int

    def alone(self, x: Array, i0: int, i1: int) -> Array:
        """Out of the slab x alone, for outputs i0 .. i1 - 1."""
        return self._cut(x, self.halo.first - self.halo.rows.starts[:-1], i0, i1)

    def with_edges(
        self, x: Array, edges: tuple[Array, Array], i0: int, i1: int, fill: float
    ) -> Array:
        """Out of the slab and its neighbours' edges; `fill` outside the image."""
        window = self.halo.window
        canvas, origin = self._canvas(x, edges, i0, i1)
        offsets = self.halo.first - origin
        before = max(0, -int(offsets.min()) - i0 * window.stride)
        end = int(offsets.max()) + (i1 - 1) * window.stride + window.size
        pads = (before, max(0, end - canvas.shape[1]))
        canvas = jnp.pad(canvas, ((0, 0), pads, (0, 0), (0, 0)))
        if fill or not self.halo.rows.even:
            row = jnp.arange(canvas.shape[1]) - before + jnp.asarray(origin, jnp.int32)[self.rank]
            inside = ((row >= 0) & (row < self.halo.rows.height))[None, :, None, None]
            canvas = jnp.where(inside, canvas, fill)
        return self._cut(canvas, offsets + before, i0, i1)

    def _canvas(
        self, x: Array, edges: tuple[Array, Array], i0: int, i1: int
    ) -> tuple[Array, np.ndarray]:
        """(rows with all that outputs i0 .. i1 - 1 see, [parts] where in the image they begin).

        No more of the slab than they see: out of a canvas of all rows XLA would make, for the gradient of
        an edge, a convolution over the whole slab (TPU: 79 360 estimated cycles against 2 560).
        """
        rows, window, starts = self.halo.rows, self.halo.window, self.halo.rows.starts[:-1]
        begin = self.halo.first - starts + i0 * window.stride
        end = self.halo.first - starts + (i1 - 1) * window.stride + window.size
        upper, lower = max(0, int(end.max())), max(0, int((rows.sizes - begin).max()))
        if upper <= rows.sizes.min():
            return _joined(edges[0], x[:, :upper]), starts - self.halo.above
        if begin.min() >= 0 and lower <= rows.sizes.min():
            last = rows.last(x, lower, self.rank)
            return _joined(last, edges[1]), starts + rows.sizes - lower
        return self._whole(x, *edges), starts - self.halo.above

    def _whole(self, x: Array, from_above: Array, from_below: Array) -> Array:
        """The slab between its neighbours' edges."""
        if self.halo.rows.even:
            return _joined(from_above, x, from_below)
        canvas = _joined(from_above, x, jnp.zeros_like(from_below))
        end = self.halo.above + jnp.asarray(self.halo.rows.sizes, jnp.int32)[self.rank]
        return lax.dynamic_update_slice_in_dim(canvas, from_below, end, 1)

    def _cut(self, rows: Array, offsets: np.ndarray, i0: int, i1: int) -> Array:
        """The rows that outputs i0 .. i1 - 1 see; offsets: [parts] where output 0 begins to see."""
        window = self.halo.window
        size = (i1 - 1 - i0) * window.stride + window.size
        starts = offsets + i0 * window.stride
        if (starts == starts[0]).all():
            return lax.slice_in_dim(rows, int(starts[0]), int(starts[0]) + size, axis=1)
        start = jnp.asarray(starts, jnp.int32)[self.rank]
        return lax.dynamic_slice_in_dim(rows, start, size, 1)


def _joined(*rows: Array) -> Array:
    return jnp.concatenate(rows, axis=1)


def _exchanged(
    halo: Halo, x: Array, axis: str, rank: Array | int, apart: bool
) -> tuple[Array, Array]:
    """(rows of the device before, rows of the one after), zeros at the ends."""
    above, below = halo.above, halo.below
    bottom = halo.rows.last(x, above, rank)
    top = x[:, :below]
    if apart and above + below:
        return collectives.from_neighbours(bottom, top, axis, 1)

    def sent(edge: Array, step: int) -> Array:
        return collectives.sent(edge, axis, step) if edge.shape[1] else edge

    return sent(bottom, 1), sent(top, -1)
