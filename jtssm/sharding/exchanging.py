"""How pieces meet on a mesh: the `Exchange` of collectives, used inside shard_map.

Pieces lie in blocks of m slots: device d along "subnet" holds pieces d m .. (d + 1) m - 1; where the
axis does not divide their number, the last slots stay empty. Their work runs in a `lax.switch` whose
branches unpack and run their own layers; shifts stand outside it (a collective permute inside a
divergent branch deadlocks), reductions over the other axes inside. Alike pieces that lie side by side
are batched, and devices that do the same share a branch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
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
    alike: tuple[int, ...]  # for each piece the first one that does the same on the same shapes
    weights: Layout | None = None  # of the weights, where no carried argument tells (in init)

    @property
    def num(self) -> int:
        """Number of pieces."""
        return len(self.starts) - 1

    @property
    def local(self) -> int:
        """Slots a device, filled from the first device on."""
        return -(-self.num // self.sizes[0])

    def pieces(self, device: int) -> range:
        """The pieces of a device along "subnet"."""
        return range(device * self.local, min((device + 1) * self.local, self.num))

    def boundary(self, device: int) -> int | None:
        """The piece before the boundary between a device and the next; None where none is cut."""
        last = (device + 1) * self.local - 1
        return last if last < self.num - 1 else None


def by_collectives(at: Place) -> Exchange:
    """The exchange of pieces that are spread over a mesh."""
    return Exchange(
        each=partial(_each, at),
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

    def row(self, l: int, tree: Tree) -> Any:
        """The result of piece l: its sums, or its row of every key padded to the longest line."""
        if self.layout is None:
            return tree
        packed = pack(self.layout, l, tree)
        return {key: self._padded(key, packed) for key in self.layout.keys}

    def _padded(self, key: str, rows: dict) -> Any:
        """Zeros where the piece has no leaf of that key."""
        assert self.layout is not None
        shape = (*self.leading, self.layout.size(key))
        if key not in rows:
            return jnp.zeros(shape, key.removesuffix("/pr"))
        row = rows[key][None] if self.kind == "weights" else rows[key]
        return jnp.pad(row, [(0, n - have) for n, have in zip(shape, row.shape, strict=True)])

    def stacked(self, at: Place, runs: Sequence[Any]) -> Any:
        """Results of runs of pieces, [pieces of the run, ...] each, as one [slots, ...]."""

        def joined(*parts):
            whole = jnp.concatenate(parts) if len(parts) > 1 else parts[0]
            empty = at.local - whole.shape[0]
            return jnp.pad(whole, [(0, empty)] + [(0, 0)] * (whole.ndim - 1)) if empty else whole

        if self.layout is None:
            return collectives.varying(jax.tree.map(joined, *runs), _axes(at, self.kind))
        return {
            key: collectives.varying(joined(*(r[key] for r in runs)), _axes(at, self.kind, key))
            for key in self.layout.keys
        }

    def blank(self, like: Any) -> Any:
        """What no piece at all gives, [0, ...]; like: the shapes of a piece's sums."""
        if self.layout is None:
            return jax.tree.map(lambda a: jnp.zeros((0, *a.shape), a.dtype), like)
        size = self.layout.size
        return {
            key: jnp.zeros((0, *self.leading, size(key)), key.removesuffix("/pr"))
            for key in self.layout.keys
        }


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


def _each(
    at: Place, fn: Callable, *carried: Rows, kinds: tuple[str, ...], batched: bool = False
) -> tuple:
    alike = at.alike if batched else tuple(range(at.num))

    def run(l: int, rows: list) -> tuple:
        """The work of one piece on its own rows."""
        return fn(l, *(_tree(c.layout, l, r) for c, r in zip(carried, rows, strict=True)))

    slot = lambda rows, j: jax.tree.map(lambda a: a[j], rows)
    rows = [c.rows for c in carried]
    # Traced once for its shapes alone: every branch must return rows of the same, longest size.
    kind_shapes = {l: jax.eval_shape(lambda l=l: run(l, slot(rows, 0))) for l in set(alike)}
    shapes = [kind_shapes[l] for l in alike]
    columns = list(zip(*shapes, strict=True))
    results = [_result(at, carried, *pair) for pair in zip(kinds, columns, strict=True)]

    def branch(pieces: range) -> Callable:
        """Runs of alike pieces, batched; the slots of a device from 0 on."""

        def packed(l, rows):
            outs = zip(results, run(l, rows), strict=True)
            return [result.row(l, out) for result, out in outs]

        def work(rows):
            runs, first = [], 0
            for l, group in groupby(pieces, key=lambda l: alike[l]):
                after = first + len(list(group))
                mine = jax.tree.map(lambda a, j=slice(first, after): a[j], rows)
                runs.append(_batched(packed, l, mine, after - first))
                first = after
            if not runs:
                pairs = zip(results, columns, strict=True)
                runs = [[result.blank(column[0]) for result, column in pairs]]
            parts = zip(results, zip(*runs, strict=True), strict=True)
            return [result.stacked(at, run) for result, run in parts]

        return work

    out = _switched(at, alike, branch, rows)
    pairs = zip(out, results, strict=True)
    return tuple(a if result.layout is None else Rows(a, result.layout) for a, result in pairs)


def _batched(fn: Callable, l: int, rows: Any, count: int) -> Any:
    """fn(l, rows of one slot) for `count` slots, results stacked; one slot is not batched."""
    if count > 1:
        return jax.vmap(lambda rows: fn(l, rows))(rows)
    alone = fn(l, jax.tree.map(lambda a: a[0], rows))
    return jax.tree.map(lambda a: a[None], alone)


def _switched(at: Place, alike: Sequence[int], branch: Callable, rows: Any) -> Any:
    """branch(pieces of this device)(rows); devices whose pieces are alike share a branch."""
    kinds: dict[tuple, range] = {}
    kind = lambda pieces: tuple(alike[l] for l in pieces)
    every = [at.pieces(device) for device in range(at.sizes[0])]
    for pieces in every:
        kinds.setdefault(kind(pieces), pieces)
    branches = [branch(pieces) for pieces in kinds.values()]
    if len(branches) == 1:
        return branches[0](rows)
    which = jnp.asarray([list(kinds).index(kind(pieces)) for pieces in every], jnp.int32)
    return lax.switch(which[lax.axis_index(at.names.subnet)], branches, rows)


def _tree(layout: Layout, l: int, rows: dict) -> Tree:
    """The tree of piece l from its rows."""
    own = {key: a[0] for key, a in rows.items()} if layout.kind == "weights" else rows
    return unpack(layout, l, own)


def _take(layout: Layout, l: int, slot: int, rows: dict) -> Tree:
    """The tree of piece l from the rows [slots, ...] of this device."""
    return _tree(layout, l, {key: a[slot] for key, a in rows.items()})


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
    axes = _axes(at, "samples")
    blank = collectives.varying(jnp.zeros((at.local, x.shape[0], size), x.dtype), axes)

    def run(device: int, carry):
        h, *kept = carry
        h = x if device == 0 else unpack(inputs, device * at.local, {key: h})
        for slot, l in enumerate(at.pieces(device)):
            f = fn(l, *(_take(c.layout, l, slot, c.rows) for c in carried), h)
            kept = [a.at[slot].set(flat(b)) for a, b in zip(kept, (h, f), strict=False)]
            h = f
        return collectives.varying((flat(h), *kept), axes)

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
            p = collectives.varying(jnp.zeros(shape.shape, shape.dtype), _axes(at, "samples"))
            return fn(l, *(_take(c.layout, l, 0, c.rows) for c in carried), p)

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
