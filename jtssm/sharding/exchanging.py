"""How pieces meet on a mesh: the `Exchange` of collectives, used inside shard_map.

Pieces lie in blocks: device d along "subnet" holds pieces d m .. (d + 1) m - 1. Their work runs in a
`lax.switch` whose branches unpack and run their own layers; shifts stand outside it (a collective
permute inside a divergent branch deadlocks), reductions over the other axes inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class _Result(NamedTuple):
    """One of the results of the pieces' work, as every branch of the switch must return it."""

    kind: str
    layout: Layout | None  # None for sums
    leading: tuple[int, ...]  # dimensions of a piece's row before its size

    def stacked(self, at: Place, pieces: Sequence[int], trees: Sequence[Tree]) -> Any:
        """Results of the local pieces as rows [local, ...], marked where they differ."""
        if self.layout is None:
            sums = jax.tree.map(lambda *a: jnp.stack(a), *trees)
            return collectives.varying(sums, _axes(at, self.kind))
        packed = [pack(self.layout, l, tree) for l, tree in zip(pieces, trees, strict=True)]
        return {
            key: collectives.varying(
                jnp.stack([self._row(key, rows) for rows in packed]), _axes(at, self.kind, key)
            )
            for key in self.layout.keys
        }

    def _row(self, key: str, rows: dict) -> Any:
        """A piece's row padded to the longest line; zeros where it has no leaf of that key."""
        assert self.layout is not None
        shape = (*self.leading, self.layout.size(key))
        if key not in rows:
            return jnp.zeros(shape, key.removesuffix("/pr"))
        row = rows[key][None] if self.kind == "weights" else rows[key]
        return jnp.pad(row, [(0, n - have) for n, have in zip(shape, row.shape, strict=True)])


def _result(at: Place, carried: Sequence[Rows], kind: str, trees: Sequence[Tree]) -> _Result:
    """What a result looks like, from the shapes that all pieces give it."""
    if kind == "sums":
        return _Result(kind, None, ())
    if kind == "weights":
        known = [c.layout for c in carried if c.layout.kind == "weights"]
        return _Result(kind, at.weights or known[0], (1,))
    layout, leaves = layout_of(kind, trees), jax.tree.leaves(trees)
    if kind == "samples":
        return _Result(kind, layout, tuple(leaves[0].shape[:1]) if leaves else ())
    ticks = max(layout.ticks(l) for l in range(at.num))
    return _Result(kind, layout, (ticks, *leaves[0].shape[1:2]) if leaves else ())


def _each(at: Place, fn: Callable, *carried: Rows, kinds: tuple[str, ...]) -> tuple:
    def run(l: int, slot: int, rows: list) -> tuple:
        return fn(l, *(_take(c.layout, l, slot, r) for c, r in zip(carried, rows, strict=True)))

    rows = [c.rows for c in carried]
    # Traced once for its shapes alone: every branch must return rows of the same, longest size.
    shapes = [jax.eval_shape(lambda l=l: run(l, 0, rows)) for l in range(at.num)]
    columns = zip(*shapes, strict=True)
    results = [_result(at, carried, *pair) for pair in zip(kinds, columns, strict=True)]

    def branch(device: int) -> Callable:
        pieces = range(device * at.local, (device + 1) * at.local)

        def work(rows):
            outs = zip(*(run(l, slot, rows) for slot, l in enumerate(pieces)), strict=True)
            return [result.stacked(at, pieces, t) for result, t in zip(results, outs, strict=True)]

        return work

    branches = [branch(device) for device in range(at.sizes[0])]
    if len(branches) == 1:
        out = branches[0](rows)
    else:
        out = lax.switch(lax.axis_index(at.names.subnet), branches, rows)
    pairs = zip(out, results, strict=True)
    return tuple(a if result.layout is None else Rows(a, result.layout) for a, result in pairs)


def _take(layout: Layout, l: int, slot: int, rows: dict) -> Tree:
    """The tree of piece l from the rows [local, ...] of this device."""
    pick = (slot, 0) if layout.kind == "weights" else (slot,)
    return unpack(layout, l, {key: a[pick] for key, a in rows.items()})


def _move(at: Place, sent: Rows, step: int) -> Rows:
    """Every piece's rows one piece on: inside a device by index, between devices by a permute."""
    layout = sent.layout.moved(step)
    first = at.local - 1 if step == 1 else at.local  # the piece that sends over the first boundary
    edges = [first + device * at.local for device in range(at.sizes[0] - 1)]

    def moved(key: str):
        rows, size = sent.rows[key], layout.size(key)
        widths = [sent.layout.width(piece, key) for piece in edges]
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
    axes = _axes(at, "samples")
    blank = collectives.varying(jnp.zeros((at.local, x.shape[0], size), x.dtype), axes)

    def run(device: int, carry):
        h, *kept = carry
        h = x if device == 0 else unpack(inputs, device * at.local, {key: h})
        for slot, l in enumerate(range(device * at.local, (device + 1) * at.local)):
            f = fn(l, *(_take(c.layout, l, slot, c.rows) for c in carried), h)
            kept = [a.at[slot].set(flat(b)) for a, b in zip(kept, (h, f), strict=False)]
            h = f
        return collectives.varying((flat(h), *kept), axes)

    carry = (blank[0], blank, blank) if keep else (blank[0],)
    for device in range(at.sizes[0]):
        mine = collectives.index(at.names.subnet) == device
        carry = h, *kept = lax.cond(mine, partial(run, device), lambda carry: carry, carry)
        width = outputs.width((device + 1) * at.local - 1, key)
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
            p = collectives.varying(jnp.zeros(shape.shape, shape.dtype), _axes(at, "samples"))
            return fn(l, *(_take(c.layout, l, 0, c.rows) for c in carried), p)

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
