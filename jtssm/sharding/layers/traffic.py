"""What the layers of a network send on the grid in one pass forward and backward: formulas.

For b samples on each device of pc, n numbers a sample, |W| of a parameter, numbers that one device hands
in, to a collective over p devices of the axes named:

    hop         whole -> split          backward: all-gather b n / pr
                split -> whole          forward: all-gather b n / pr
                split -> copies         the same, backward: reduce-scatter b n
                whole -> copies         backward: all-reduce b n
                split -> another split  all-to-all b n / pr, each way
    model       dX: all-reduce b n_in over pr (the other forms have theirs in a hop)
    gathered    forward: all-gather |W| / pr; backward: all-gather |W| / pr of what the gradients need
                (`jtssm.sharding.layers.regathered`), reduce-scatter |W|
    row         all-reduce b n_out; if samples are split next: reduce-scatter b n_out forward
                and all-gather b n_out / pr backward
    paired      all-reduce b n_out forward; all-reduce b n_in backward
    domain      b w c rows to each neighbour, each way; where devices run different programs: all-gather
                of them forward, reduce-scatter backward
    statistics  "batch", "running": over the axes that split samples or rows, all-reduce 2 c forward and
                2 c backward, c the channels here; 3 c backward in the domain form, or without gamma or
                where that is gathered
                "layer": over pr where it splits neurons or rows, all-reduce 2 b forward, 3 b backward
    gradient    all-reduce of what a device stores of each parameter over pc, and over pr too where it
                is whole and pr splits samples or rows; where gradients of several passes are added up
                first (`Pass.late`), over pr in each pass and over pc once

Of trees of arrays n are the floats; integers and booleans go forward with them, nothing comes back.
Rows count as the tallest slab has them: b n / pr is then b n room / h. The first layer with weights has
no dX (a pair has one behind gamma and beta of its own), and what lies before it no backward. Statistics
are counted as in training. Source: Gholami et al., arXiv 1712.04432, equations 3 to 9; the paper charges
the first dX too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress
from math import prod
from typing import NamedTuple

import jax

from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import SampleTree, by_dtype, described, floats_of, partition
from jtssm.nn.layer import Layer
from jtssm.protocol.declared import WORD
from jtssm.sharding.count.routes import Route, ring_bytes
from jtssm.sharding.layers.forms import Grid
from jtssm.sharding.layers.halo import Slabs
from jtssm.sharding.layers.layouts import Hop
from jtssm.sharding.layers.questions import mixes, prepares
from jtssm.sharding.layers.regathered import gathered_leaves
from jtssm.sharding.layers.stored import WHOLE, dimension_of, part_size

OUTPUTS = "gathered for outputs"  # which no gradient needs
LATE = "gradient of all passes"  # summed once


class Sent(NamedTuple):
    """What one device hands to a collective in one pass."""

    # "hop", "model", "gathered", `OUTPUTS`, "row", "paired", "domain", "statistics", "gradient" or `LATE`
    what: str
    layer: int
    collective: str  # "all_gather", "reduce_scatter", "all_reduce", "all_to_all" or "permute"
    axes: tuple[str, ...]  # "pr", "pc" or both
    numbers: int
    step: int = 0  # of a permute: 1 to the device after (the last sends none), -1 to the one before
    backward: bool = False  # whether it is sent on the way back
    wide: bool = False  # whether in the dtype of parameters, whatever layers compute in
    itemsize: int | None = None  # bytes of a number; None: as the layer computes or stores


class Pass(NamedTuple):
    """A pass forward and backward of the layers on a grid."""

    grid: Grid
    params: Sequence[Tree]  # shapes of the whole parameters, one tree a layer
    samples: int  # on each device of pc
    pc: int
    # whether gradients go back to the inputs of a piece; None: to those of all pieces but the first
    inputs: bool | None = None
    weights: bool = True  # whether they are taken of weights
    late: bool = (
        False  # whether those of several passes are added up, and then summed over pc at once
    )

    @property
    def spread(self) -> bool:
        """Whether pr divides the samples."""
        return self.samples % self.grid.size == 0

    def sent(self) -> list[Sent]:
        """All that is sent, layer after layer."""
        return [each for i in range(len(self.grid.forms)) for each in self.layer(i)]

    def layer(self, i: int) -> Iterator[Sent]:
        """What layer i sends: on the way in, for its own work, for its gradient, on the way out."""
        yield from self.entry(i)
        yield from self.own(i)

    def entry(self, i: int) -> Iterator[Sent]:
        """The hops of its inputs into the layout of layer i."""
        if self.grid.axis is not None:
            yield from self._hops(i, self.grid.before(i, self.spread), i, self.differs(i))

    def own(self, i: int) -> Iterator[Sent]:
        """What layer i sends between its inputs in its layout and the next layer's entry."""
        if self.grid.axis is not None:
            yield from self._work(i)
        yield from self._statistics(i)
        if self.weights:
            yield from self._gradient(i)
        if self.grid.axis is not None:
            yield from self._hops(i, self.grid.after(i, self.spread), i + 1, True)

    def differs(self, i: int) -> bool:
        """Whether the inputs of layer i have a gradient."""
        start = max(e for e in self.grid.entries if e <= i)
        back = start > 0 if self.inputs is None else self.inputs
        return back or bool(jax.tree.leaves(self.params[start:i]))

    def _numbers(self, position: int) -> int:
        """Of b samples before layer `position`; of trees of arrays their floats."""
        sample = self.grid.network.shapes[position]
        return self.samples * sum(
            prod(a.shape) for a in jax.tree.leaves(floats_of(described(sample)))
        )

    def _others(self, position: int) -> list[tuple[int, int]]:
        """(bytes of a number, numbers) of integers and booleans of b samples: they only go forward."""
        sample = self.grid.network.shapes[position]
        if not isinstance(sample, SampleTree):
            return []
        found = by_dtype(partition(sample.tree)[1]).items()
        return [(dtype.itemsize, self.samples * num) for dtype, num in found]

    def _part(self, layouts: Sequence[str], position: int) -> int:
        """What a device holds of b samples that are split, as they pass from layout to layout."""
        if "rows" not in layouts:
            return self._numbers(position) // self.grid.size
        height = self.grid.network.shapes[position][0]
        return self._numbers(position) // height * Slabs(height, self.grid.size).room

    def _hops(self, i: int, way: Sequence[Hop], position: int, differs: bool) -> Iterator[Sent]:
        for hop in way:
            for collective, numbers, backward in self._hop(hop, position):
                if (differs or not backward) and numbers:
                    yield Sent("hop", i, collective, ("pr",), numbers, backward=backward)
            for size, others in self._others(position) if hop.target == "whole" else ():
                part = others // self.grid.size
                yield Sent("hop", i, "all_gather", ("pr",), part, itemsize=size)

    def _hop(self, hop: Hop, position: int) -> Iterator[tuple[str, int, bool]]:
        """(collective, numbers, whether it is of the backward pass)."""
        whole, part = self._numbers(position), self._part(hop[:2], position)
        if hop.source == "whole":
            yield (
                ("all_reduce", whole, True)
                if hop.target == "copies"
                else ("all_gather", part, True)
            )
        elif hop.target in ("whole", "copies"):
            yield "all_gather", part, False
            if hop.target == "copies":
                yield "reduce_scatter", part * self.grid.size, True
        else:
            yield "all_to_all", part, False
            yield "all_to_all", part, True

    def _work(self, i: int) -> Iterator[Sent]:
        form = self.grid.forms[i]

        def send(collective: str, numbers: int, backward: bool = False) -> Sent:
            return Sent(form, i, collective, ("pr",), numbers, backward=backward)

        if form == "model" and mixes(self.grid.network.layers[i]) and self.differs(i):
            yield send("all_reduce", self._numbers(i), True)
        elif form == "gathered":
            yield from self._gathers(i)
        elif form == "row":
            if self.grid.leaves(i, self.spread) == "samples":
                yield send("reduce_scatter", self._numbers(i + 1))
                yield send("all_gather", self._numbers(i + 1) // self.grid.size, True)
            else:
                yield send("all_reduce", self._numbers(i + 1))
        elif form == "paired":
            yield send("all_reduce", self._numbers(i + 1))
            if self.differs(i) or prepares(self.grid.network.layers[i]):
                yield send("all_reduce", self._numbers(i), True)
        elif form == "domain":
            yield from self._halo(i)

    def _gathers(self, i: int) -> Iterator[Sent]:
        """Of the form "gathered"."""
        net, size, params = self.grid.network, self.grid.size, self.params[i]
        layer = net.layers[i]
        found = gathered_leaves(
            layer, net.shapes[i], params, inputs=self.differs(i), weights=self.weights
        )
        pairs = _pairs(params, self.grid.stored(i, params))
        sizes = [part_size(a.size, d, size) if d != WHOLE else 0 for a, d in pairs]
        kinds = (("gathered", False), (OUTPUTS, False), ("gathered", True))
        wides = _wide(layer, params)
        for wide in (False, True):
            parts = [n if is_wide == wide else 0 for n, is_wide in zip(sizes, wides, strict=True)]
            for (what, again), flags in zip(kinds, found, strict=True):
                numbers = sum(compress(parts, flags))
                if numbers:
                    yield Sent(what, i, "all_gather", ("pr",), numbers, 0, again, wide)
            if self.spread and self.weights and any(parts):
                numbers = size * sum(parts)
                yield Sent("gathered", i, "reduce_scatter", ("pr",), numbers, 0, True, wide)

    def _halo(self, i: int) -> Iterator[Sent]:
        _, width, channels = self.grid.network.shapes[i]
        halo = self.grid.halo(i)
        row = self.samples * width * channels
        down, up = halo.above * row, halo.below * row  # to the device after, to the one before
        both = down + up
        forward = [("permute", down, 1), ("permute", up, -1)]
        backward = [("permute", down, -1), ("permute", up, 1)]
        if self.grid.apart:
            forward = [("all_gather", both, 0)]
            backward = [("reduce_scatter", both * self.grid.size, 0)]
        ways = [(False, sent) for sent in forward]
        ways += [(True, sent) for sent in backward if self.differs(i)]
        for back, (collective, numbers, step) in ways:
            if numbers:
                yield Sent("domain", i, collective, ("pr",), numbers, step, back)

    def _gradient(self, i: int) -> Iterator[Sent]:
        """All-reduces of the gradient, one kind of axes after the other."""
        layer, size = self.grid.network.layers[i], self.grid.size
        split = _trained(layer, self.grid.stored(i, self.params[i]))
        pairs = _pairs(_trained(layer, self.params[i]), split)
        over = ("pr",) if self._varies(i) and self.grid.axis is not None else ()
        stored = {True: 0, False: 0}
        for a, d in pairs:
            stored[d != WHOLE] += part_size(a.size, d, size)
        pc = ("pc",) if self.pc > 1 else ()
        each = [("gradient", (*over, *pc), stored[False]), ("gradient", pc, stored[True])]
        late = [("gradient", over, stored[False]), (LATE, pc, sum(stored.values()))]
        for what, axes, numbers in late if self.late else each:
            if axes and numbers:
                yield Sent(what, i, "all_reduce", axes, numbers, backward=True)

    def _statistics(self, i: int) -> Iterator[Sent]:
        """All-reduces of means and variances, and of the gradients that come back to them."""
        layout = self.grid.leaves(i, self.spread) if self.grid.axis is not None else "whole"
        pc = ("pc",) if self.pc > 1 else ()
        for over, width, affine in self.grid.network.layers[i].statistics:
            if over == "neurons":
                axes = ("pr",) if layout in ("columns", "rows") else ()
                numbers, back = self.samples, 3
            else:
                axes = (*(("pr",) if layout in ("samples", "rows") else ()), *pc)
                numbers = width // (self.grid.size if layout == "columns" else 1)
                # where gamma is the same on the devices that share them, its gradient's sum is theirs too
                shared = layout != "rows" and not self._gathers_row(i, width) and not self.late
                back = 2 if affine and self.weights and shared else 3
            if axes:
                yield Sent("statistics", i, "all_reduce", axes, 2 * numbers)
                yield Sent("statistics", i, "all_reduce", axes, back * numbers, backward=True)

    def _gathers_row(self, i: int, width: int) -> bool:
        """Whether layer i gathers a parameter [width], of which each device then has its own."""
        gathered = self.grid.axis is not None and self.grid.forms[i] == "gathered"
        return gathered and dimension_of((width,), self.grid.size) != WHOLE

    def _varies(self, i: int) -> bool:
        """Whether whole parameters of layer i are used on what pr splits."""
        if self.grid.forms[i] in ("row", "paired"):
            return self.grid.leaves(i, self.spread) == "samples"
        return self.grid.forms[i] == "domain" or self.spread


def _trained(layer: Layer, tree: Tree) -> Tree:
    """Parameters, or what has their names, without those that are estimated: they have no gradient."""
    if not layer.estimated:
        return tree
    return {name: a for name, a in tree.items() if name not in layer.estimated}


def _wide(layer: Layer, params: Tree) -> list[bool]:
    """Of each parameter, whether it keeps its dtype where a layer computes in another."""
    if not layer.uncast:
        return [False] * len(jax.tree.leaves(params))
    return jax.tree.leaves(
        {
            name: jax.tree.map(lambda _, name=name: name in layer.uncast, a)
            for name, a in params.items()
        }
    )


def _pairs(params: Tree, split: Tree) -> list[tuple[Array, int]]:
    return list(zip(jax.tree.leaves(params), jax.tree.leaves(split), strict=True))


def in_compute_dtype(sent: Sent) -> bool:
    """Whether it is sent in the dtype that layers compute in; else in that of parameters and samples."""
    return sent.what not in ("gradient", LATE, "statistics") and not sent.wide


def by_route(sent: Sequence[Sent], pr: int) -> dict[Route, int]:
    """Numbers by collective and axes, of the device that hands in most; of other sizes in words."""
    ways: dict[Route, dict[int, int]] = {}
    for each in sent:
        way = ways.setdefault(Route(each.collective, each.axes), {})
        way[each.step] = way.get(each.step, 0) + each.numbers * (each.itemsize or WORD) // WORD
    # of two devices each has a single neighbour; between two others a device sends both ways
    most = max if pr == 2 else sum
    return {route: most(way.values()) for route, way in ways.items()}


def ring_numbers(sent: Sequence[Sent], pr: int, pc: int, share: float = 1.0) -> float:
    """Numbers that one device sends to others, by rings.

    share: what a number in the dtype that layers compute in counts, bytes over those of other numbers.
    """
    narrow = [each for each in sent if in_compute_dtype(each)]
    wide = [each for each in sent if not in_compute_dtype(each)]
    sizes = {"pr": pr, "pc": pc}
    return share * ring_bytes(by_route(narrow, pr), sizes) + ring_bytes(by_route(wide, pr), sizes)
