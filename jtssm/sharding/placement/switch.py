"""The work of pieces on a mesh: which device holds which, and a `lax.switch` between their programs.

Pieces lie in blocks of slots, as `jtssm.sharding.slots` says. Each branch of the switch unpacks the rows
of its pieces and runs their own layers; reductions over the other axes may stand inside. Alike pieces
that lie side by side are batched, and devices that do the same share a branch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.arrays import Array, Tree
from jtssm.nn.network import Network
from jtssm.protocol.exchange import Carried, Kind
from jtssm.sharding.layers.forms import Grid
from jtssm.sharding.mesh import AxisNames
from jtssm.sharding.placement.results import Result, SlottedResult, result_of
from jtssm.sharding.placement.rows import AnyLayout, Rows
from jtssm.sharding.slots import Slots


class Place(NamedTuple):
    """Where a method's pieces live: what its exchange needs to know of the mesh."""

    network: Network
    starts: tuple[int, ...]
    forms: tuple[str, ...]  # one a layer
    names: AxisNames
    sizes: tuple[int, int, int]  # of subnet, pr, pc
    alike: tuple[int, ...]  # for each piece the first one that does the same on the same shapes
    gloo: bool = False  # whether its devices meet by gloo: see `jtssm.sharding.gloo`
    weights: AnyLayout | None = None  # of the weights, where no carried argument tells (in init)

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
        entries = self.starts[:-1]
        return Grid(self.network, self.forms, entries, axis, pr, samples, apart, gloo=self.gloo)

    @property
    def slots(self) -> Slots:
        """Which device along "subnet" holds which pieces."""
        return Slots(self.num, self.sizes[0])


def each(
    at: Place,
    fn: Callable[..., tuple],
    *carried: Rows,
    kinds: Sequence[str],
    batched: bool = False,
) -> tuple[Carried, ...]:
    """Every piece's work on its own rows, inside shard_map: `Exchange.each` on a mesh.

    Each device runs the branch of a `lax.switch` that holds the work of its pieces, so fn may be
    another program for every piece. What that asks of fn and of its results:

    - fn(l, *trees) gets the number l of the piece, a Python integer, and of every `carried` the tree of
      that piece, in the dtypes and shapes that it was given back with: "weights" are the part of them
      that this device stores (where a layer is split over pr), leaves of "samples" are [samples here,
      ...], those of a "line" [ticks of this piece, samples here, ...]. It gives one tree for each of
      `kinds`, of the same kind of leaves; "sums" are over the samples here alone. It is traced once for
      its shapes and once in its branch, and must give the same structure both times.
    - Only devices that stand at the same place along "subnet" take the same branch. Reductions, gathers
      and all-to-alls over pr and pc may stand in fn, since whole groups take part; over "subnet" nothing
      may. A permute never: it waits for every device, those of other branches too, whatever its axis.
      So what pieces tell each other is sent outside, by `to_next` and `to_previous`.
    - A switch gives the same arrays from every branch. So rows are as long as the longest piece's, and
      lines as long as the longest at their slot: shorter ones are padded with zeros, and keys that a
      piece has no leaves of are zeros throughout. "sums" are not packed: every piece gives the same
      tree of shapes. "weights" keep the layout of those that are carried (in init: that of the `Place`),
      and so do "copies" where any are; what a piece does not use of their arrays stays as it is.
    - `batched`: fn does the same on the same shapes for pieces with one number in `Place.alike`. Those
      that lie side by side on a device run as one vmap, under the l of the first piece alike; devices
      whose pieces are alike share a branch. Otherwise every piece is traced under its own l.
    - A slot without a piece runs nothing: its rows and sums are zeros.

    Args:
      at: where the pieces live.
      fn: the work of a piece.
      *carried: rows [slots here, ...] of each kind.
      kinds: of each result, a `Kind` or its name.
      batched: whether fn does the same for alike pieces.

    Returns:
      One a kind: `Rows` [slots here, ...], or for "sums" the tree with leaves [slots here, ...].

    Raises:
      ValueError: results that cannot be given the same shape in every branch.
    """
    alike = at.alike if batched else tuple(range(at.num))
    work = _Work(at, fn, tuple(c.layout for c in carried), alike)
    rows = [c.rows for c in carried]
    shapes = work.shapes(rows)
    columns = zip(kinds, zip(*shapes, strict=True), strict=True)
    results = [
        result_of(Kind(kind), column, work.kept(Kind(kind)), at.slots) for kind, column in columns
    ]
    branch = lambda pieces: partial(work.of_device, results, pieces)
    out = _switched(at, work.alike, branch, rows)
    return tuple(result.carried(a) for result, a in zip(results, out, strict=True))


class _Work(NamedTuple):
    """A function of pieces, and where it finds their trees."""

    at: Place
    fn: Callable[..., tuple]
    layouts: tuple[AnyLayout, ...]  # of what is carried
    alike: tuple[int, ...]  # for each piece the first one that fn does the same for

    def kept(self, kind: Kind) -> AnyLayout | None:
        """The layout of weights that results of that kind keep, or go with; None: none are carried."""
        gradients = kind in (Kind.GRADIENTS, Kind.PARTIAL_GRADIENTS)
        of = (lambda a: a.trained) if gradients else (lambda a: a is kind)
        carried = next((a for a in self.layouts if of(a.kind)), None)
        return self.at.weights or carried if kind is Kind.WEIGHTS else carried

    def shapes(self, rows: list[dict[str, Array]]) -> list[tuple]:
        """What every piece gives, as shapes; alike pieces are traced once."""

        def found(l: int) -> tuple:
            slot = self._slots(rows, self.at.slots.slot(l), 1)
            return jax.eval_shape(partial(self.of_piece, l), _first(slot))

        each = {l: found(l) for l in set(self.alike)}
        return [each[l] for l in self.alike]

    def of_piece(self, l: int, rows: list[dict[str, Array]]) -> tuple:
        """fn for piece l, on the rows of its slot."""
        return self.fn(l, *map(partial(_tree, piece=l), self.layouts, rows))

    def of_device(
        self, results: list[Result], pieces: range, rows: list[dict[str, Array]]
    ) -> list[Tree]:
        """fn for the pieces of a device, on its rows: results with leaves [slots, ...]."""
        runs, first = [], self.at.slots.slot(pieces[0]) if pieces else 0
        for l, group in groupby(pieces, key=lambda l: self.alike[l]):
            count = len(list(group))
            runs.append(self._of_run(results, l, self._slots(rows, first, count), count))
            first += count
        columns: list[tuple] = list(zip(*runs, strict=True)) or [()] * len(results)
        pairs = zip(results, columns, strict=True)
        return [
            result.marked(
                self.at.names, result.joined(parts, self.at.slots.local, self._base(result, rows))
            )
            for result, parts in pairs
        ]

    def _of_run(
        self, results: list[Result], l: int, rows: list[dict[str, Array]], count: int
    ) -> list[Tree]:
        """fn for `count` pieces that do what piece l does; one alone is not batched."""

        def of_slot(rows: list[dict[str, Array]]) -> list[Tree]:
            given = zip(results, self.of_piece(l, rows), strict=True)
            return [result.row(l, tree, self._base(result, rows)) for result, tree in given]

        if count > 1:
            return jax.vmap(of_slot)(rows)
        return jax.tree.map(lambda a: a[None], of_slot(_first(rows)))

    def _slots(
        self, rows: list[dict[str, Array]], first: int, count: int
    ) -> list[dict[str, Array]]:
        pairs = zip(self.layouts, rows, strict=True)
        return [layout.of_slots(each, first, count) for layout, each in pairs]

    def _base(self, result: Result, rows: list[dict[str, Array]]) -> dict[str, Array] | None:
        """The carried rows in whose place the result comes; None: there are none."""
        if not isinstance(result, SlottedResult):
            return None
        pairs = zip(self.layouts, rows, strict=True)
        return next((each for layout, each in pairs if layout == result.layout), None)


def _first(rows: Tree) -> Tree:
    """The first slot of rows [slots, ...]."""
    return jax.tree.map(lambda a: a[0], rows)


def _switched(
    at: Place, alike: Sequence[int], branch: Callable[[range], Callable], rows: Tree
) -> Tree:
    """branch(pieces of this device)(rows); devices whose pieces are alike share a branch."""
    held = [at.slots.pieces(device) for device in range(at.sizes[0])]
    marks = [tuple(alike[l] for l in pieces) for pieces in held]
    distinct = list(dict.fromkeys(marks))
    branches = [branch(held[marks.index(mark)]) for mark in distinct]
    if len(branches) == 1:
        return branches[0](rows)
    which = jnp.asarray([distinct.index(mark) for mark in marks], jnp.int32)
    return lax.switch(which[lax.axis_index(at.names.subnet)], branches, rows)


def _tree(layout: AnyLayout, rows: dict[str, Array], piece: int) -> Tree:
    """The tree of a piece from the rows of its slot."""
    own = _first(rows) if layout.kind.trained else rows
    return layout.unpack(piece, own)


def take(layout: AnyLayout, l: int, slot: int, rows: dict[str, Array]) -> Tree:
    """The tree of piece l from the rows [slots, ...] of this device."""
    return _tree(layout, _first(layout.of_slots(rows, slot, 1)), l)
