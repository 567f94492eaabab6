"""How pieces meet on a mesh: the `Exchange` of collectives, used inside shard_map.

The work of the pieces runs in a `lax.switch` (`jtssm.sharding.placement.switch`); shifts stand outside
it, since a collective permute inside a divergent branch deadlocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.arrays import Tree
from jtssm.nn.ops import varying
from jtssm.protocol.pieces import Exchange
from jtssm.sharding import collectives
from jtssm.sharding.layers import forms
from jtssm.sharding.placement.packing import Rows, layout_of, unpack
from jtssm.sharding.placement.switch import Place, axes_of, each, take


def by_collectives(at: Place) -> Exchange:
    """The exchange of pieces that are spread over a mesh."""
    return Exchange(
        each=partial(each, at),
        to_next=partial(_move, at, step=1),
        to_previous=partial(_move, at, step=-1),
        chain=partial(_chain, at),
        sum_samples=lambda a: collectives.total(a, at.names.present("pc")),
        recall=partial(_recall, at),
        store=partial(_store, at),
        total=partial(_total, at),
        own=partial(own_part, at, rank=None),
        own_samples=partial(_own_samples, at),
        num_splits=at.sizes[2],
        products=at.grid.products,
    )


def _move(at: Place, sent: Rows, step: int) -> Rows:
    """Every piece's rows one piece on: inside a device by index, between devices by a permute."""
    layout = sent.layout.moved(step)
    cut = [at.boundary(device) for device in range(at.sizes[0] - 1)]
    senders = [l if l is None or step == 1 else l + 1 for l in cut]

    def moved(key: str):
        rows, size = sent.rows[key], layout.size(key)
        widths = [0 if l is None else sent.layout.width(l, key) for l in senders]
        edge = rows[-1] if step == 1 else rows[0]
        arrived = collectives.shift(edge, at.names.subnet, widths, step)[None]
        order = (arrived, rows[:-1]) if step == 1 else (rows[1:], arrived)
        return jnp.concatenate(order)[..., :size]

    return Rows({key: moved(key) for key in layout.keys}, layout)


def _chain(at: Place, fn: Callable, *carried: Rows, x: Any, keep: bool = False) -> tuple:
    """One pass through all pieces, device after device; the others wait. As in a forward pass."""
    shapes = _chain_shapes(at, fn, carried, x)
    inputs, outputs = layout_of("samples", shapes[:-1]), layout_of("samples", shapes[1:])
    (key,) = {*inputs.keys, *outputs.keys}  # what passes a boundary has the dtype of x
    size = max(inputs.size(key), outputs.size(key))
    flat = lambda a: jnp.pad(a.reshape(a.shape[0], -1), ((0, 0), (0, size - a[0].size)))
    axes = axes_of(at, "samples")
    blank = varying(jnp.zeros((at.local, x.shape[0], size), x.dtype), axes)

    def run(device: int, carry):
        h, *kept = carry
        h = x if device == 0 else unpack(inputs, device * at.local, {key: h})
        for slot, l in enumerate(at.pieces(device)):
            f = fn(l, *(take(c.layout, l, slot, c.rows) for c in carried), h)
            kept = [a.at[slot].set(flat(b)) for a, b in zip(kept, (h, f), strict=False)]
            h = f
        return varying((flat(h), *kept), axes)

    carry = (blank[0], blank, blank) if keep else (blank[0],)
    for device in range(-(-at.num // at.local)):
        mine = collectives.index(at.names.subnet) == device
        carry = h, *kept = lax.cond(mine, partial(run, device), lambda carry: carry, carry)
        last = at.boundary(device)
        width = 0 if last is None else outputs.width(last, key)
        only = [width * (d == device) for d in range(at.sizes[0] - 1)]
        carry = (collectives.shift(h, at.names.subnet, only, 1), *kept)
    result = collectives.total(jnp.where(mine, h, 0), at.names.present("subnet"))
    rows = [
        Rows({key: a[..., : layout.size(key)]}, layout)
        for a, layout in zip(kept, (inputs, outputs), strict=False)
    ]
    return unpack(outputs, at.num - 1, {key: result}), *rows


def _chain_shapes(at: Place, fn: Callable, carried: Sequence[Rows], x: Any) -> list:
    """Shapes of the input of every piece and of the last output."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype)]
    for l in range(at.num):

        def run(l=l, shape=shapes[-1]):
            p = varying(jnp.zeros(shape.shape, shape.dtype), axes_of(at, "samples"))
            return fn(l, *(take(c.layout, l, 0, c.rows) for c in carried), p)

        out = jax.eval_shape(run)
        shapes.append(jax.ShapeDtypeStruct(out.shape, out.dtype))
    return shapes


def _slots(at: Place, line: Rows, tick: Any) -> list:
    """Where in its line each local piece stands; lines differ in length from piece to piece."""
    empty = [1] * (at.local * at.sizes[0] - at.num)
    lengths = [max(line.layout.ticks(l), 1) for l in range(at.num)]
    ticks = jnp.asarray(lengths + empty, jnp.int32)
    first = collectives.index(at.names.subnet) * at.local
    return [tick % ticks[first + j] for j in range(at.local)]


def _recall(at: Place, line: Rows, tick: Any) -> Rows:
    slots = _slots(at, line, tick)
    pick = lambda a: jnp.stack([a[j, slot] for j, slot in enumerate(slots)])
    return Rows({key: pick(a) for key, a in line.rows.items()}, line.layout.entry())


def _store(at: Place, line: Rows, entry: Rows, tick: Any) -> Rows:
    rows = dict(line.rows)
    for key, a in entry.rows.items():
        for j, slot in enumerate(_slots(at, line, tick)):
            rows[key] = rows[key].at[j, slot].set(a[j])
    return Rows(rows, line.layout)


def _total(at: Place, sums: Tree) -> Tree:
    local = jax.tree.map(lambda a: a.sum(axis=0), sums)
    return collectives.total(local, axes_of(at, "sums"))


def own_part(at: Place, l: int, params: list[Tree], rank: Any = None) -> list[Tree]:
    """The part of piece l's parameters that a device stores: its slice of what is split over pr."""
    pr = at.sizes[1]
    rank = collectives.index(at.names.pr) if rank is None else rank

    def part(a, dimension):
        if dimension < 0:
            return a
        size = a.shape[dimension] // pr
        return lax.dynamic_slice_in_dim(a, rank * size, size, dimension)

    owned = []
    for i, layer_params in zip(range(at.starts[l], at.starts[l + 1]), params, strict=True):
        split = forms.split_dimensions(at.network.layers[i], at.forms[i])
        owned.append(layer_params if split is None else jax.tree.map(part, layer_params, split))
    return owned


def _own_samples(at: Place, a: Any) -> Any:
    size = a.shape[0] // at.sizes[2]
    return lax.dynamic_slice_in_dim(a, collectives.index(at.names.pc) * size, size)
