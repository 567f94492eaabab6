"""What pieces tell their neighbours: inside a device by index, between devices by collectives.

Between processes on CPUs a permute (gloo's) sends one way after the other: 80 ms for 0.52 MB each way at
100 Mbit/s, where an all-reduce takes 45. So there two devices along "subnet" add the bits of what they
have for each other, as integers: each takes its own away from the sum, which is exact, since integers
wrap. That sends the same bytes as permutes, and arrays of several dtypes in one message as far as bits go
into one another: codes of 8 bits and the ends of their grids. Accelerators send permutes side by side; in
a longer chain links are busy either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from jtssm.arrays import Array
from jtssm.sharding import collectives, gloo
from jtssm.sharding.placement.packing import Layout
from jtssm.sharding.placement.rows import Rows
from jtssm.sharding.placement.switch import Place


def move(at: Place, sent: Rows, step: int) -> Rows:
    """Every piece's rows one piece on (step 1) or back (-1), by a permute for each dtype and width."""
    layout = _layout(sent)
    widths = _widths(at, layout, step)
    shift = lambda key, edge: collectives.shift(edge, at.names.subnet, widths[key], step)
    return _arrived(sent, step, {key: shift(key, _edge(sent, step, key)) for key in layout.keys})


def swap(at: Place, ahead: Rows, behind: Rows) -> tuple[Rows, Rows]:
    """`ahead` one piece on and `behind` one back, both at once where that is faster."""
    if not at.gloo or at.sizes[0] != 2:
        return move(at, ahead, 1), move(at, behind, -1)
    assert at.names.subnet is not None
    on, back = _crossing(at, ahead, 1), _crossing(at, behind, -1)
    for keys in _messages({**back, **on}):
        _swap(on, back, keys, at.names.subnet)
    return _arrived(ahead, 1, on), _arrived(behind, -1, back)


def _messages(edges: Mapping[str, Array]) -> Iterator[list[str]]:
    """Which keys go together: that of most bytes, and all whose numbers are no narrower."""
    left = sorted(edges, key=lambda key: (-edges[key].size * edges[key].dtype.itemsize, key))
    while left:
        width = edges[left[0]].dtype.itemsize
        yield [key for key in left if edges[key].dtype.itemsize >= width]
        left = [key for key in left if edges[key].dtype.itemsize < width]


def _swap(on: dict[str, Array], back: dict[str, Array], keys: Sequence[str], axis: str) -> None:
    """Of two devices the first one's `on` on the second, the second one's `back` on the first, in place.

    Arrays [samples, n] of any lengths n; zeros where nothing arrives. The first key has the narrowest
    numbers.
    """
    like = next(edge[keys[0]] for edge in (on, back) if keys[0] in edge)
    bits = jnp.dtype(f"uint{8 * like.dtype.itemsize}")
    ahead, behind = (_row(edge, keys, like.shape[0], bits) for edge in (on, back))
    n = max(ahead.shape[1], behind.shape[1])
    first = collectives.index(axis) == 0
    mine = jnp.where(first, _lengthened(ahead, n), _lengthened(behind, n))
    got = gloo.of_the_other(mine, axis)
    for edge, arrives in ((on, jnp.logical_not(first)), (back, first)):
        start = 0
        for key in (key for key in keys if key in edge):
            a, parts = edge[key], edge[key].dtype.itemsize // bits.itemsize
            after = start + a.shape[1] * parts
            edge[key] = jnp.where(arrives, _of_bits(got[:, start:after], a), jnp.zeros_like(a))
            start = after


def _row(edge: Mapping[str, Array], keys: Sequence[str], samples: int, bits: np.dtype) -> Array:
    """[samples, n] integers of so many bits: what of a message goes one way."""
    own = (edge[key] for key in keys if key in edge)
    plain = (a.astype(jnp.uint8) if a.dtype == bool else a for a in own)
    found = [lax.bitcast_convert_type(a, bits).reshape(samples, -1) for a in plain]
    return jnp.concatenate([jnp.zeros((samples, 0), bits), *found], axis=1)


def _of_bits(row: Array, like: Array) -> Array:
    """The numbers of `like`'s shape and dtype whose bits stand in a row."""
    if like.dtype == bool:
        return row.astype(bool)
    parts = row.shape[1] // max(1, like.shape[1])
    split = row.reshape(*like.shape, parts) if parts > 1 else row
    return lax.bitcast_convert_type(split, like.dtype)


def _crossing(at: Place, sent: Rows, step: int) -> dict[str, Array]:
    """Of each key what one of two devices has for the other; of keys that cross."""
    widths = _widths(at, _layout(sent), step)
    return {key: _edge(sent, step, key)[..., :n] for key, (n,) in widths.items() if n}


def _lengthened(a: Array, size: int) -> Array:
    """[..., size], zeros behind what there is."""
    return jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, size - a.shape[-1])])


def _layout(sent: Rows) -> Layout:
    assert isinstance(sent.layout, Layout), "weights and lines are not sent"
    return sent.layout


def _widths(at: Place, layout: Layout, step: int) -> dict[str, list[int]]:
    """Of every key, how many numbers of a sample cross each boundary between devices."""
    cut = [at.slots.boundary(device) for device in range(at.sizes[0] - 1)]
    senders = [l if l is None or step == 1 else l + 1 for l in cut]
    width = lambda l, key: 0 if l is None else layout.width(l, key)
    return {key: [width(l, key) for l in senders] for key in layout.keys}


def _edge(sent: Rows, step: int, key: str) -> Array:
    """What a device would send of its rows."""
    return sent.rows[key][-1] if step == 1 else sent.rows[key][0]


def _arrived(sent: Rows, step: int, edges: dict[str, Array]) -> Rows:
    """The rows after the move, with what arrived from the neighbour."""
    layout = _layout(sent).moved(step)

    def moved(key: str) -> Array:
        rows = sent.rows[key]
        none = jnp.zeros_like(_edge(sent, step, key))
        edge = _lengthened(edges.get(key, none), rows.shape[-1])[None]
        order = (edge, rows[:-1]) if step == 1 else (rows[1:], edge)
        return jnp.concatenate(order)[..., : layout.size(key)]

    return Rows({key: moved(key) for key in layout.keys}, layout)
