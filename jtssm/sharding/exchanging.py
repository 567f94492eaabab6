"""How pieces meet on a mesh: the `Exchange` of collectives, used inside shard_map.

Pieces lie in blocks: device d along "subnet" holds pieces d m .. (d + 1) m - 1. Their work runs in a
`lax.switch` whose branches unpack and run their own layers; shifts stand outside it (a collective
permute inside a divergent branch deadlocks), reductions over the other axes inside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.network import Network
from jtssm.protocol import Exchange, Tree
from jtssm.sharding import collectives, grid
from jtssm.sharding.mesh import AxisNames
from jtssm.sharding.packing import Layout, Rows, layout_of, pack, unpack


class Place(NamedTuple):
    """Where a method's pieces live: what its exchange needs to know of the mesh."""

    network: Network
    starts: tuple[int, ...]
    forms: tuple[str, ...]  # one a layer
    names: AxisNames
    sizes: tuple[int, int, int]  # of subnet, pr, pc
    weights: Layout | None = None  # of the weights, where no carried argument tells (in init)

    @property
    def num(self) -> int:
        """Number of pieces."""
        return len(self.starts) - 1

    @property
    def local(self) -> int:
        """Pieces a device."""
        return self.num // self.sizes[0]


def by_collectives(at: Place) -> Exchange:
    """The exchange of pieces that are spread over a mesh."""
    return Exchange(
        each=partial(_each, at),
        to_next=partial(_move, at, step=1),
        to_previous=partial(_move, at, step=-1),
        chain=partial(_chain, at),
        recall=partial(_recall, at),
        store=partial(_store, at),
        total=partial(_total, at),
        own=partial(own_part, at, rank=None),
        own_samples=partial(_own_samples, at),
        num_splits=at.sizes[2],
        products=lambda layer: grid.products(at.forms[layer], at.names.pr),
    )


def _axes(at: Place, kind: str, key: str = "") -> tuple[str, ...]:
    """The axes along which rows of a kind differ."""
    if kind == "weights":
        return at.names.present("subnet", *(["pr"] if key.endswith("/pr") else []))
    return at.names.present("subnet", "pc")


def _each(at: Place, fn: Callable, *carried: Rows, kinds: tuple[str, ...]) -> tuple:
    def run(l: int, slot: int, rows: list) -> tuple:
        return fn(l, *(_take(c.layout, l, slot, r) for c, r in zip(carried, rows, strict=True)))

    rows = [c.rows for c in carried]
    # Traced once for its shapes alone: every branch must return rows of the same, longest size.
    shapes = [jax.eval_shape(lambda l=l: run(l, 0, rows)) for l in range(at.num)]
    results = [_result_layout(at, carried, kind, column) for kind, column in zip(kinds, zip(*shapes, strict=True), strict=True)]  # fmt: skip
    samples = [_num_samples(kind, column) for kind, column in zip(kinds, zip(*shapes, strict=True), strict=True)]  # fmt: skip

    def branch(device: int) -> Callable:
        def work(rows):
            pieces = [(device * at.local + j, j) for j in range(at.local)]
            outs = [run(l, j, rows) for l, j in pieces]
            columns = zip(kinds, results, samples, zip(*outs, strict=True), strict=True)
            return [_stacked(at, pieces, *column) for column in columns]

        return work

    out = _switch(at, [branch(device) for device in range(at.sizes[0])], rows)
    return tuple(
        rows if layout is None else Rows(rows, layout)
        for rows, layout in zip(out, results, strict=True)
    )


def _switch(at: Place, branches: list[Callable], operand: Any) -> Any:
    if len(branches) == 1:
        return branches[0](operand)
    return lax.switch(lax.axis_index(at.names.subnet), branches, operand)


def _take(layout: Layout, l: int, slot: int, rows: dict) -> Tree:
    pick = (slot, 0) if layout.kind == "weights" else (slot,)
    return unpack(layout, l, {key: a[pick] for key, a in rows.items()})


def _result_layout(at: Place, carried: tuple, kind: str, trees: tuple) -> Layout | None:
    if kind == "sums":
        return None
    if kind != "weights":
        return layout_of(kind, trees)
    known = [c.layout for c in carried if c.layout.kind == "weights"]
    return at.weights if at.weights is not None else known[0]


def _num_samples(kind: str, trees: tuple) -> int:
    position = {"samples": 0, "line": 1}.get(kind)
    leaves = jax.tree.leaves(trees) if position is not None else []
    return leaves[0].shape[position] if leaves else 0


def _stacked(at: Place, pieces: list, kind: str, layout: Layout | None, samples: int, trees: tuple):
    """Results of the local pieces as rows [local, ...], marked with the axes along which they differ."""
    if layout is None:
        return collectives.varying(jax.tree.map(lambda *a: jnp.stack(a), *trees), _axes(at, kind))
    packed = [pack(layout, l, tree) for (l, _), tree in zip(pieces, trees, strict=True)]
    lead = {"weights": (), "samples": (samples,)}.get(kind)
    rows = {}
    for key in layout.keys:
        dtype = key.removesuffix("/pr")
        ticks = max(layout.ticks(l) for l in range(at.num)) if kind == "line" else 0
        empty = jnp.zeros((*((ticks, samples) if lead is None else lead), layout.size(key)), dtype)
        full = [empty.at[: row[key].shape[0]].set(row[key]) if kind == "line" and key in row else row.get(key, empty) for row in packed]  # fmt: skip
        stack = jnp.stack(full)[:, None] if kind == "weights" else jnp.stack(full)
        rows[key] = collectives.varying(stack, _axes(at, kind, key))
    return rows


def _move(at: Place, sent: Rows, step: int) -> Rows:
    """Every piece's rows one piece on: inside a device by index, between devices by a permute."""
    layout = sent.layout.moved(step)
    edges = [device * at.local + (at.local - 1 if step == 1 else at.local) for device in range(at.sizes[0] - 1)]  # fmt: skip

    def moved(key: str):
        rows, size = sent.rows[key], layout.size(key)
        widths = [sent.layout.width(piece, key) for piece in edges]
        edge = rows[-1] if step == 1 else rows[0]
        arrived = collectives.shift(edge, at.names.subnet, widths, step)[None]
        order = (arrived, rows[:-1]) if step == 1 else (rows[1:], arrived)
        return jnp.concatenate(order)[..., :size]

    return Rows({key: moved(key) for key in layout.keys}, layout)


def _chain(at: Place, fn: Callable, weights: Rows, x: Any) -> tuple:
    """One pass through all pieces, device after device; the others wait. As in a forward pass."""
    shapes = _chain_shapes(at, fn, weights, x)
    inputs, outputs = layout_of("samples", shapes[:-1]), layout_of("samples", shapes[1:])
    size = max(sum(a.width(l, key) for key in a.keys) for a in (inputs, outputs) for l in range(at.num))  # fmt: skip
    (key,) = outputs.keys
    axes = _axes(at, "samples")
    blank = lambda *lead: collectives.varying(jnp.zeros((*lead, x.shape[0], size), x.dtype), axes)
    flat = lambda a: jnp.pad(a.reshape(a.shape[0], -1), ((0, 0), (0, size - a[0].size)))

    def stage(device: int, carry):
        def run(carry):
            _, ins, outs = carry
            h = x if device == 0 else unpack(inputs, device * at.local, {key: carry[0]})
            for j in range(at.local):
                l = device * at.local + j
                ins = ins.at[j].set(flat(h))
                h = fn(l, _take(weights.layout, l, j, weights.rows), h)
                outs = outs.at[j].set(flat(h))
            return collectives.varying((flat(h), ins, outs), axes)

        if at.sizes[0] == 1:
            return run(carry)
        mine = lax.axis_index(at.names.subnet) == device
        return lax.cond(mine, run, lambda carry: carry, carry)

    carry = (blank(), blank(at.local), blank(at.local))
    for device in range(at.sizes[0]):
        h, ins, outs = stage(device, carry)
        widths = [outputs.width((d + 1) * at.local - 1, key) * (d == device) for d in range(at.sizes[0] - 1)]  # fmt: skip
        carry = (collectives.shift(h, at.names.subnet, widths, 1), ins, outs)
    mine = collectives.index(at.names.subnet) == at.sizes[0] - 1
    result = collectives.total(jnp.where(mine, h, 0), at.names.present("subnet"))
    rows = lambda a, layout: Rows({key: a[..., : layout.size(key)]}, layout)
    return unpack(outputs, at.num - 1, {key: result}), rows(ins, inputs), rows(outs, outputs)


def _chain_shapes(at: Place, fn: Callable, weights: Rows, x: Any) -> list:
    """Shapes of the input of every piece and of the last output."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype)]
    for l in range(at.num):

        def run(l=l, shape=shapes[-1]):
            p = collectives.varying(jnp.zeros(shape.shape, shape.dtype), _axes(at, "samples"))
            return fn(l, _take(weights.layout, l, 0, weights.rows), p)

        out = jax.eval_shape(run)
        shapes.append(jax.ShapeDtypeStruct(out.shape, out.dtype))
    return shapes


def _slots(at: Place, line: Rows, tick: Any) -> list:
    """Where in its line each local piece stands; lines differ in length from piece to piece."""
    ticks = jnp.asarray([max(line.layout.ticks(l), 1) for l in range(at.num)], jnp.int32)
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
    return collectives.total(local, _axes(at, "sums"))


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
        split = grid.split_dimensions(at.network.layers[i], at.forms[i])
        owned.append(layer_params if split is None else jax.tree.map(part, layer_params, split))
    return owned


def _own_samples(at: Place, a: Any) -> Any:
    size = a.shape[0] // at.sizes[2]
    return lax.dynamic_slice_in_dim(a, collectives.index(at.names.pc) * size, size)
