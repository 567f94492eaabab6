"""The layers of a network on the "pr" axis of the mesh: forms, and the products of each.

A layer's samples lie over pc always. What it does over pr is its form:

    batch      weights whole; the samples are split over pr too (where pr does not divide them, work is
               repeated on every device)
    gathered   the same, but parameters are stored split (`jtssm.sharding.layers.stored`): gathered for
               use, again for the backward pass, their gradient reduce-scattered; for layers of any kind
    model      W[I, J_pr]: takes whole inputs, leaves columns; dX is all-reduced (the paper's model form:
               the gather of Y is left to the layer that wants it whole)
    scattered  the same on inputs that are gathered as copies: dX is reduce-scattered, half the bytes
    row        W[I_pr, J]: takes columns, sums the products; behind `model` no gather is needed: one
               reduction a pair of layers (the column-and-row pairs of Megatron)
    domain     weights whole; rows of images are split, neighbours exchange what windows need of them
    paired     two products in one layer, W1[I, J_pr] and W2[J_pr, O] (heads of attention, neurons of a
               perceptron), from whole inputs to whole outputs: all-reduces of their sum and of dX

Layouts between layers: `jtssm.sharding.layers.layouts`. Source: Gholami et al., arXiv 1712.04432
(batch, model, domain); Shoeybi et al., arXiv 1909.08053 (paired); Rajbhandari et al., arXiv 1910.02054
(gathered); the others are later work's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.typing import DTypeLike

from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import Sample, SampleTree
from jtssm.nn.layer import Layer
from jtssm.nn.network import Network
from jtssm.nn.ops import (
    PLAIN,
    Hops,
    Products,
    Window,
    biased,
    plain_convolved,
    plain_dense,
    varying,
)
from jtssm.sharding import collectives
from jtssm.sharding.layers.halo import Halo, Slabs, windowed
from jtssm.sharding.layers.layouts import Hop, hops, moved
from jtssm.sharding.layers.questions import mixes, window
from jtssm.sharding.layers.regathered import regathering
from jtssm.sharding.layers.stored import made_whole, split_dimensions

FORMS = ("batch", "gathered", "model", "scattered", "row", "domain", "paired")


class Grid(NamedTuple):
    """A network's layers on a grid: what its products need to know of the mesh."""

    network: Network
    forms: tuple[str, ...]  # one a layer
    entries: tuple[int, ...]  # layers that begin a piece: between pieces samples are whole
    axis: str | None  # the mesh's name of pr; None: not split
    size: int  # of pr
    samples: tuple[str, ...]  # the mesh's names of pc
    apart: bool  # whether devices of other pieces run other programs: no permute may be used
    # whether the network's inputs may come, and its outputs stay, split over pr
    open: bool = False
    gloo: bool = False  # whether its devices meet by gloo: see `jtssm.sharding.gloo`

    @property
    def pr(self) -> str:
        """The mesh's name of pr, where layers are split over it."""
        assert self.axis is not None
        return self.axis

    def enters(self, i: int, spread: bool) -> str:
        """The layout that layer i takes; spread: pr divides the samples at hand."""
        return enters(self.network.layers[i], self.forms[i], spread)

    def leaves(self, i: int, spread: bool) -> str:
        """The layout that layer i leaves, before a piece's end makes it whole."""
        form = self.forms[i]
        if form == "row":
            ends = i + 1 in (*self.entries, len(self.forms))
            return "whole" if ends or self.enters(i + 1, spread) != "samples" else "samples"
        known = {"model": "columns", "scattered": "columns", "domain": "rows", "paired": "whole"}
        return known.get(form, "samples" if spread else "whole")

    def before(self, i: int, spread: bool) -> tuple[Hop, ...]:
        """How the inputs of layer i get into its layout."""
        source = self.leaves(i - 1, spread) if i not in self.entries else self._entry(spread)
        return hops(source, self.enters(i, spread), flattens=self._flattens(i), spread=spread)

    def _entry(self, spread: bool) -> str:
        """The layout in which samples come into a piece."""
        layout, shape = self.enters(0, spread), self.network.shapes[0]
        even = layout == "samples" or (layout == "rows" and shape[0] % self.size == 0)
        return layout if self.open and even else "whole"

    def arrives(self, samples: int) -> str:
        """The layout of the network's inputs, for so many samples on each device of pc."""
        return "whole" if self.axis is None else self._entry(samples % self.size == 0)

    def after(self, i: int, spread: bool) -> tuple[Hop, ...]:
        """How the outputs of layer i are made whole where its piece ends."""
        last = i + 1 == len(self.forms)
        if not last and i + 1 not in self.entries:
            return ()
        leaves = self.leaves(i, spread)
        if last and self.open and leaves == "samples":
            return ()
        return hops(leaves, "whole", flattens=False, spread=spread)

    def split_outputs(self, samples: int) -> bool:
        """Whether the network's outputs for so many samples here stay split over pr."""
        last = len(self.forms) - 1
        spread = self.axis is not None and samples % self.size == 0
        return spread and self.open and self.leaves(last, spread) == "samples"

    def _flattens(self, i: int) -> bool:
        """Whether layer i takes flat samples and gets images."""
        if any(isinstance(a, SampleTree) for a in self.network.shapes[i : i + 2]):
            return False
        return len(self.network.shapes[i]) > 1 and len(self.network.shapes[i + 1]) == 1

    def halo(self, i: int) -> Halo:
        """What layer i, in the form "domain", takes of the neighbours' rows."""
        seen = window(self.network.layers[i])
        assert seen is not None  # or it could not have the form
        return Halo.of(seen, self.network.shapes[i][0], self.size)

    def products(self, i: int, samples: int) -> Products:
        """The products of layer i where `samples` samples are here at the entry of its piece."""
        over = lambda a: collectives.mean(PLAIN.over_samples(a), self.samples)
        products = PLAIN._replace(over_samples=over, sample_axes=self.samples)
        if self.axis is None:
            return products._replace(hops=Hops(narrowed=_narrowed(self.samples)))
        spread = samples % self.size == 0
        return products._replace(
            hops=self._hops(i, spread),
            **_of_form(self, self.forms[i], self.leaves(i, spread)),
            **_of_layout(self, self.enters(i, spread), i),
        )

    def _hops(self, i: int, spread: bool) -> Hops:
        """How parameters and samples come to layer i, and its outputs go on."""
        into, away = self.before(i, spread), self.after(i, spread)
        heights = [_height(shape) for shape in self.network.shapes[i : i + 2]]
        found = Hops(
            enter=partial(self._moved, i, into, heights[0]),
            leave=partial(self._moved, i, away, heights[1]),
            narrowed=_narrowed(self._apart_axes(i, spread)),
        )
        if self.forms[i] == "gathered":
            return found._replace(whole=self._whole(i, spread), again=regathering)
        if self.enters(i, spread) != "rows":
            return found
        # every device's own before they are used for inner rows and edges: one gradient is summed
        return found._replace(weights=partial(varying, axes=(*self.samples, self.pr)))

    def _whole(self, i: int, spread: bool) -> Callable[[Tree], Tree]:
        """The whole parameters of layer i from what devices store."""
        to = "varying" if spread else "invarying"
        like = self.network.parameter_shapes()[i]

        def gather(a: Array, dimension: int) -> Array:
            # first made every device's own: then its gradient is scattered before it is summed over pc
            return collectives.gather(varying(a, self.samples), self.pr, dimension, to=to)

        return lambda params: made_whole(params, like, self.stored(i, like), gather)

    def stored(self, i: int, params: Tree) -> Tree:
        """How parameters of layer i lie over pr; see `jtssm.sharding.layers.stored.split_dimensions`."""
        size = 1 if self.axis is None else self.size
        return split_dimensions(self.network.layers[i], self.forms[i], params, size)

    def _apart_axes(self, i: int, spread: bool) -> tuple[str, ...]:
        """Along which the samples, or rows of them, that parameters of layer i work on differ."""
        split = self.leaves(i, spread) in ("samples", "rows")
        return (*self.samples, *([self.pr] if split else []))

    def _moved(self, i: int, way: Sequence[Hop], height: int, x: Tree) -> Tree:
        def one(a: Array, hop: Hop) -> Array:
            return moved(a.reshape(len(a), -1) if hop.flat else a, hop, self.pr, height)

        for hop in way:
            x = jax.tree.map(partial(one, hop=hop), x)
        return x


def _height(sample: Sample) -> int:
    """Of images; of trees of arrays, whose samples alone are split, 0."""
    return 0 if isinstance(sample, SampleTree) or not sample else sample[0]


def _narrowed(axes: tuple[str, ...]) -> Callable[[Array, DTypeLike], Array]:
    return partial(collectives.narrowed, axes=axes)


def whole_grid(
    net: Network,
    forms: Sequence[str],
    pr: int,
    pc: int,
    names: tuple[str | None, str | None] = ("pr", "pc"),
    gloo: bool = False,
) -> Grid:
    """The grid of a network that is trained as one piece; names: of the mesh's axes for pr and pc."""
    axis = names[0] if pr > 1 else None
    pc_name = names[1] if pc > 1 else None
    samples = () if pc_name is None else (pc_name,)
    return Grid(net, tuple(forms), (0,), axis, pr, samples, apart=False, open=True, gloo=gloo)


def enters(layer: Layer, form: str, spread: bool) -> str:
    """The layout that a layer takes in a form; spread: pr divides the samples at hand."""
    if form == "model":
        return "whole" if mixes(layer) else "columns"
    known = {"scattered": "copies", "row": "columns", "domain": "rows", "paired": "whole"}
    return known.get(form, "samples" if spread else "whole")


def _of_form(grid: Grid, form: str, leaves: str) -> dict[str, Any]:
    """The products of a form, and what they leave for means over samples."""
    summed = partial(_summed, axis=grid.pr, leaves=leaves)
    if form == "paired":
        return {"second": partial(_dense_sum, summed)}
    if form == "row":
        over = (*grid.samples, grid.pr) if leaves == "samples" else grid.samples
        return {
            "dense": partial(_dense_sum, summed),
            "convolved": lambda *given: summed(plain_convolved(*given)),
            "over_samples": lambda a: collectives.mean(PLAIN.over_samples(a), over),
        }
    if form in ("model", "scattered"):
        return {"convolved": partial(_own_groups, axis=grid.pr, size=grid.size)}
    return {}


def _dense_sum(summed: Callable, x: Array, W: Array, b: Array | None) -> Array:
    """x[B, ..., J_pr] W[J_pr, O] summed over the devices, and b."""
    return biased(summed(plain_dense(x, W, None)), b)


def _summed(x: Array, axis: str, leaves: str) -> Array:
    """The devices' parts of a sum, summed."""
    if leaves == "samples":
        return collectives.scatter_sum(x, axis, 0)
    return collectives.total(x, (axis,))


def _own_groups(
    x: Array, W: Array, window: Window, pads: tuple, groups: int, *, axis: str, size: int
) -> Array:
    """Convolution by this device's share W[.., J_pr] of the output channels, from whole inputs.

    Its share is of whole groups, or lies in one.
    """
    if groups > 1:
        mine = max(1, groups // size)
        width = x.shape[-1] // groups * mine
        start = lax.axis_index(axis) * groups // size * (x.shape[-1] // groups)
        x, groups = lax.dynamic_slice_in_dim(x, start, width, x.ndim - 1), mine
    return plain_convolved(x, W, window, pads, groups)


def _of_layout(grid: Grid, layout: str, i: int) -> dict[str, Any]:
    """Means, draws and windows of a layer that works on a layout."""
    axis, both = grid.pr, (*grid.samples, grid.pr)
    columns = grid.forms[i] in ("model", "scattered")
    if layout == "samples":
        return {
            "over_samples": lambda a: collectives.mean(PLAIN.over_samples(a), both),
            "sample_axes": both,
            "drawn": lambda draw, keys, x: PLAIN.drawn(draw, _rows(keys, axis), x),
        }
    if layout == "rows":
        halo = grid.halo(i)
        return {
            "windowed": partial(windowed, halo, axis, grid.apart),
            "over_samples": lambda a: _mean_of_rows(a, halo.outputs, axis, both, (0, 1, 2)),
            "over_neurons": lambda a: _mean_of_rows(a, halo.outputs, axis, (axis,), (1, 2, 3)),
            "drawn": partial(_drawn, grid, i, lambda a: halo.rows.own(a, lax.axis_index(axis))),
        }
    if columns:
        return {
            "over_neurons": lambda a: collectives.mean(PLAIN.over_neurons(a), (axis,)),
            "drawn": partial(_drawn, grid, i, lambda a: _rows(a, axis, -1)),
        }
    return {}


def _rows(a: Array, axis: str, dimension: int = 0) -> Array:
    return collectives.part(a, axis, dimension % a.ndim)


def _drawn(grid: Grid, i: int, own: Callable, draw: Callable, keys: Array, x: Array) -> Array:
    """The part of whole samples' draws that lies here."""
    return own(jax.vmap(lambda key: draw(key, grid.network.shapes[i]))(keys))


def _mean_of_rows(
    a: Array, slabs: Slabs, axis: str, over: tuple[str, ...], dimensions: tuple[int, ...]
) -> Array:
    """Mean of a [b, room, w, c] over dimensions and axes, of rows that are owned."""
    owned = slabs.blanked(a, lax.axis_index(axis))
    keep = 0 not in dimensions
    count = prod(a.shape[d] for d in dimensions if d != 1) * slabs.height
    sums = collectives.total(owned.sum(axis=dimensions, keepdims=keep), over)
    return sums / (count * prod(lax.axis_size(name) for name in over if name != axis))
