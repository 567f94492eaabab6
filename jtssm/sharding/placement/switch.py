"""The work of pieces on a mesh: which device holds which, and a `lax.switch` between their programs.

Pieces lie in blocks of m slots: device d along "subnet" holds pieces d m .. (d + 1) m - 1; where the
axis does not divide their number, the last slots stay empty. Each branch of the switch unpacks the
rows of its pieces and runs their own layers; reductions over the other axes may stand inside. Alike
pieces that lie side by side are batched, and devices that do the same share a branch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.arrays import Tree
from jtssm.nn.network import Network
from jtssm.nn.ops import varying
from jtssm.sharding.layers.forms import Grid
from jtssm.sharding.mesh import AxisNames
from jtssm.sharding.placement.packing import Layout, Rows, layout_of, pack, unpack


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
    def grid(self) -> Grid:
        """Their layers on pr and pc."""
        _, pr, _ = self.sizes
        axis = self.names.pr if pr > 1 else None
        samples, apart = self.names.present("pc"), self.sizes[0] > 1
        return Grid(self.network, self.forms, self.starts[:-1], axis, pr, samples, apart)

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


def axes_of(at: Place, kind: str, key: str = "") -> tuple[str, ...]:
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
            return varying(jax.tree.map(joined, *runs), axes_of(at, self.kind))
        return {
            key: varying(joined(*(r[key] for r in runs)), axes_of(at, self.kind, key))
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


def each(
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


def take(layout: Layout, l: int, slot: int, rows: dict) -> Tree:
    """The tree of piece l from the rows [slots, ...] of this device."""
    return _tree(layout, l, {key: a[slot] for key, a in rows.items()})
