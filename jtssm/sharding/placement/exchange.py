"""How pieces meet on a mesh: the `Exchange` of collectives, used inside shard_map.

The work of the pieces runs in a `lax.switch` (`jtssm.sharding.placement.switch`); shifts stand outside
it, since a collective permute inside a divergent branch deadlocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.arrays import Array, Tree
from jtssm.nn.ops import Products, varying
from jtssm.protocol.exchange import Carried, Exchange, Kind
from jtssm.sharding import collectives, gloo
from jtssm.sharding.layers import gradients
from jtssm.sharding.layers.stored import FLAT, WHOLE, in_a_row
from jtssm.sharding.placement.neighbours import move, swap
from jtssm.sharding.placement.packing import Layout, layout_of
from jtssm.sharding.placement.renewal import renew
from jtssm.sharding.placement.rows import Rows, axes_of, dtype_of
from jtssm.sharding.placement.slotted import Slotted
from jtssm.sharding.placement.switch import Place, each, take


def by_collectives(at: Place) -> Exchange:
    """The exchange of pieces that are spread over a mesh."""
    return ByCollectives(at, _Ring(at), _Samples(at), _Layers(at))


@dataclass(frozen=True)
class ByCollectives:
    """The `Exchange` of pieces on a mesh: what is carried are `Rows` [slots here, ...]."""

    at: Place
    ring: _Ring
    samples: _Samples
    layers: _Layers

    def each(
        self,
        fn: Callable[..., tuple],
        *carried: Rows,
        kinds: Sequence[str],
        batched: bool = False,
    ) -> tuple[Carried, ...]:
        """In the branches of a switch; see `jtssm.sharding.placement.switch.each`."""
        return each(self.at, fn, *carried, kinds=kinds, batched=batched)

    def renew(
        self,
        fn: Callable[..., Tree],
        weights: Rows,
        *carried: Rows,
        where: Array,
        after: Sequence[Rows] = (),
    ) -> Rows:
        """In place, in conditionals behind the switch of `each`."""
        return renew(self.at, fn, weights, *carried, where=where, after=after)

    def to_next(self, sent: Rows) -> Rows:
        """By a permute between devices, one a dtype and width of a boundary."""
        return move(self.at, sent, 1)

    def to_previous(self, sent: Rows) -> Rows:
        """By a permute between devices, one a dtype and width of a boundary."""
        return move(self.at, sent, -1)

    def swap(self, ahead: Rows, behind: Rows) -> tuple[Rows, Rows]:
        """Both at once between two processes on CPUs, as `jtssm.sharding.placement.neighbours` says."""
        return swap(self.at, ahead, behind)

    def chain(
        self, fn: Callable[..., Tree], *carried: Rows, x: Tree, keep: bool = False
    ) -> tuple[Carried, ...]:
        """Device after device; the others wait. As in a forward pass."""
        return _Chain(self.at, fn, carried, x).run(keep)


class _Passed(NamedTuple):
    """What has passed along a chain, as rows of each key."""

    last: dict[str, Array]  # [samples, size] what the last piece that ran gave
    taken: dict[str, Array]  # [slots here, samples, size]; none unless it is kept
    given: dict[str, Array]  # the same


class _Chain:
    """A pass through all pieces; rows are as long as the longest tree that passes."""

    def __init__(self, at: Place, fn: Callable[..., Tree], carried: Sequence[Rows], x: Tree):
        self.at, self.fn, self.carried, self.x = at, fn, carried, x
        # entry l is what piece l takes, the last one what the last piece gives
        self.layout = layout_of(Kind.SAMPLES, self._shapes())
        self.axes = axes_of(Kind.SAMPLES, at.names)

    def run(self, keep: bool) -> tuple[Carried, ...]:
        """See `Exchange.chain`."""
        at, none = self.at, self._blank()
        passed = _Passed({key: a[0] for key, a in none.items()}, *(none if keep else {},) * 2)
        for device in at.slots.used:
            mine = collectives.index(at.names.subnet) == device
            passed = lax.cond(mine, partial(self._of_device, device), lambda passed: passed, passed)
            if at.slots.boundary(device) is not None:
                passed = passed._replace(last=self._sent(device, passed.last))
        last = {key: self._everywhere(mine, a) for key, a in passed.last.items()}
        result = self.layout.unpack(at.num, last)
        if not keep:
            return (result,)
        taken, given = (self.layout.between(first, at.slots) for first in (0, 1))
        return result, _cut(passed.taken, taken), _cut(passed.given, given)

    def _blank(self) -> dict[str, Array]:
        """Zeros [slots, samples, size]."""
        samples, layout = jax.tree.leaves(self.x)[0].shape[0], self.layout
        rows = {
            key: jnp.zeros((self.at.slots.local, samples, layout.size(key)), key)
            for key in layout.keys
        }
        return varying(rows, self.axes)

    def _of_device(self, device: int, passed: _Passed) -> _Passed:
        """The pieces of a device, one after the other, on what arrived."""
        pieces = self.at.slots.pieces(device)
        p = self.layout.unpack(pieces.start, passed.last) if pieces.start else self.x
        taken, given = passed.taken, passed.given
        for l in pieces:
            slot = self.at.slots.slot(l)
            f = self.fn(l, *self._trees(l, slot), p)
            if taken:
                taken = self._kept(taken, slot, l, p)
                given = self._kept(given, slot, l + 1, f)
            p = f
        none = {key: jnp.zeros_like(a) for key, a in passed.last.items()}
        last = none | self.layout.pack(pieces.stop, p)
        return varying(_Passed(last, taken, given), self.axes)

    def _kept(self, rows: dict[str, Array], slot: int, entry: int, tree: Tree) -> dict[str, Array]:
        packed = self.layout.pack(entry, tree)
        return rows | {key: rows[key].at[slot].set(row) for key, row in packed.items()}

    def _sent(self, device: int, last: dict[str, Array]) -> dict[str, Array]:
        """What the last piece of a device gave, on the next device; outside the branch."""
        at, entry = self.at, self.at.slots.pieces(device).stop

        def sent(key: str, rows: Array) -> Array:
            width = self.layout.width(entry, key)
            only = [width * (d == device) for d in range(at.sizes[0] - 1)]
            return varying(collectives.shift(rows, at.names.subnet, only, 1), self.axes)

        return {key: sent(key, rows) for key, rows in last.items()}

    def _everywhere(self, mine: Array | bool, rows: Array) -> Array:
        """Rows of the device where `mine` holds, on all along "subnet"."""
        own = jnp.where(mine, rows, jnp.zeros_like(rows))
        # sums of booleans are integers
        return collectives.total(own, self.at.names.present("subnet")).astype(rows.dtype)

    def _trees(self, l: int, slot: int) -> list[Tree]:
        return [take(c.layout, l, slot, c.rows) for c in self.carried]

    def _shapes(self) -> list[Tree]:
        """Shapes of what every piece takes and of what the last one gives."""
        bare = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
        shapes = [bare(self.x)]
        for l in range(self.at.num):
            out = jax.eval_shape(partial(self._of_shape, l, shapes[-1]))
            shapes.append(bare(out))
        return shapes

    def _of_shape(self, l: int, shapes: Tree) -> Tree:
        """What piece l gives on any samples of such shapes; its rows are those of a slot."""
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        p = varying(zeros, axes_of(Kind.SAMPLES, self.at.names))
        return self.fn(l, *self._trees(l, self.at.slots.slot(l)), p)


def _cut(rows: dict[str, Array], layout: Layout) -> Rows:
    """Rows no longer than their layout says."""
    return Rows({key: rows[key][..., : layout.size(key)] for key in layout.keys}, layout)


class _Ring(NamedTuple):
    """See `jtssm.protocol.exchange.Ring`."""

    at: Place

    def recall(self, line: Rows, tick: Array) -> Rows:
        """Each slot of the rows at its own place."""
        layout = _of_line(line)
        places = _places(self.at, layout, tick)
        pick = lambda key, a: a[0, places[layout.slot_of(key)]][None]
        return Rows({key: pick(key, a) for key, a in line.rows.items()}, layout.entry())

    def store(self, line: Rows, entry: Rows, tick: Array) -> Rows:
        """Each slot of the rows at its own place."""
        rows, layout = dict(line.rows), _of_line(line)
        for slot, place in enumerate(_places(self.at, layout, tick)):
            for key in layout.keys_at(slot):
                a = entry.rows[dtype_of(key)][slot, :, : layout.tail(key)[0]]
                rows[key] = rows[key].at[0, place].set(a)
        return Rows(rows, layout)


def _of_line(line: Rows) -> Slotted:
    assert isinstance(line.layout, Slotted), "lines lie slot by slot"
    return line.layout


def _places(at: Place, layout: Slotted, tick: Array) -> list[Array]:
    """Where in its line each local piece stands; lines differ in length from piece to piece."""
    slots, device = at.slots, collectives.index(at.names.subnet)
    held = map(slots.piece, range(slots.total))
    lengths = [1 if l is None else max(layout.ticks(l), 1) for l in held]
    ticks = jnp.asarray(lengths, jnp.int32)
    return [tick % ticks[slots.number(device, slot)] for slot in range(slots.local)]


class _Samples(NamedTuple):
    """See `jtssm.protocol.exchange.SampleSplit`."""

    at: Place

    @property
    def num_splits(self) -> int:
        """The size of pc."""
        return self.at.sizes[2]

    def own(self, a: Array) -> Array:
        """By where the device stands along pc."""
        size = a.shape[0] // self.num_splits
        index = collectives.index(self.at.names.pc)
        return lax.dynamic_slice_in_dim(a, index * size, size)

    def sum(self, tree: Tree) -> Tree:
        """By an all-reduce over pc, or as `jtssm.sharding.gloo` says."""
        return self._over(tree, self.at.names.present("pc"))

    def apart(self, params: Tree) -> Tree:
        """Each device's own."""
        return varying(params, self.at.names.present("pc"))

    def total(self, sums: Tree) -> Tree:
        """Over the slots here, then likewise over subnet and pc."""
        local = jax.tree.map(lambda a: a.sum(axis=0), sums)
        return self._over(local, axes_of(Kind.SUMS, self.at.names))

    def _over(self, tree: Tree, axes: Sequence[str]) -> Tree:
        return (gloo.totals if self.at.gloo else collectives.total)(tree, axes)


class _Layers(NamedTuple):
    """See `jtssm.protocol.exchange.LayerSplit`."""

    at: Place

    def own(self, l: int, params: list[Tree]) -> list[Tree]:
        """By where the device stands along pr."""
        return own_part(self.at, l, params)

    def joined(self, l: int, params: list[Tree], frozen: Sequence[bool]) -> list[Tree]:
        """Between processes on CPUs, as `jtssm.sharding.layers.gradients` says."""
        return gradients.joined(self.at.grid, self.at.starts[l], params, frozen)

    def products(self, i: int, samples: int) -> Products:
        """Those of the layer's form."""
        return self.at.grid.products(i, samples)


def own_part(at: Place, l: int, params: list[Tree], rank: Array | int | None = None) -> list[Tree]:
    """The part of piece l's parameters that a device stores: its slice of what is split over pr."""
    pr = at.sizes[1]
    rank = collectives.index(at.names.pr) if rank is None else rank

    def part(a: Array, dimension: int) -> Array:
        if dimension == WHOLE:
            return a
        if dimension == FLAT:
            a, dimension = in_a_row(a, pr), 0
        size = a.shape[dimension] // pr
        return lax.dynamic_slice_in_dim(a, rank * size, size, dimension)

    layers, grid = range(at.starts[l], at.starts[l + 1]), at.grid
    return [
        jax.tree.map(part, tree, grid.stored(i, tree))
        for i, tree in zip(layers, params, strict=True)
    ]
