"""What pieces tell their neighbours: inside a device by index, between devices by collectives.

Between processes on CPUs a permute (gloo's) sends one way after the other: 80 ms for 0.52 MB each way at
100 Mbit/s, where a reduce-scatter or an all-reduce takes 45. So there two devices along "subnet" add:

    a small message by a reduce-scatter: each puts its own into the other's half of a pair, zeros into its
    own, and gets the sum of the halves that are its own
    a larger one by an all-reduce of the bits as integers, from whose sum each takes its own away: exact,
    since integers wrap

Both send the same bytes as permutes. Accelerators send permutes side by side; in a longer chain links are
busy either way.
"""

from __future__ import annotations

import jax.numpy as jnp

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
    on, back = _crossing(at, ahead, 1), _crossing(at, behind, -1)
    subnet = at.names.subnet
    assert subnet is not None
    for key in on.keys() & back.keys():
        on[key], back[key] = _swapped(on[key], back[key], subnet)
    shift = lambda a, step: collectives.shift(a, subnet, a.shape[-1:], step)
    on |= {key: shift(a, 1) for key, a in on.items() if key not in back}
    back |= {key: shift(a, -1) for key, a in back.items() if key not in on}
    return _arrived(ahead, 1, on), _arrived(behind, -1, back)


def _swapped(ahead: Array, behind: Array, axis: str) -> tuple[Array, Array]:
    """Of two devices the first one's `ahead` on the second, and the second one's `behind` on the first.

    [samples, n] each, of any two lengths n; zeros where nothing arrives.
    """
    n, m = ahead.shape[-1], behind.shape[-1]
    first = collectives.index(axis) == 0
    mine = jnp.where(first, _lengthened(ahead, max(n, m)), _lengthened(behind, max(n, m)))
    got = gloo.of_the_other(mine, axis)
    blank = jnp.zeros_like(got)
    return jnp.where(first, blank, got)[..., :n], jnp.where(first, got, blank)[..., :m]


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
    cut = [at.boundary(device) for device in range(at.sizes[0] - 1)]
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
