"""How activations lie over the "pr" axis between layers, and how they get from one layout to another.

    whole    A[B, H, W, C]       the same on every device
    samples  A[B_pr, H, W, C]    the samples of a minibatch are split over pr too
    rows     A[B, H_pr, W, C]    the rows of images (`jtssm.sharding.layers.halo`)
    columns  A[B, H, W, C_pr]    neurons or channels
    copies   A[B, H, W, C]       as whole, but each device's gradient is a part of the sum

Going from whole to copies costs an all-reduce in the backward pass; where a split layout was gathered
only for this, gathering copies makes a reduce-scatter of it, half the bytes.
"""

from __future__ import annotations

from typing import NamedTuple

from jax import lax

from jtssm.arrays import Array
from jtssm.nn.ops import varying
from jtssm.sharding import collectives
from jtssm.sharding.layers.halo import Slabs

SPLIT = {"samples": 0, "rows": 1, "columns": -1}  # layout -> the dimension that it splits


class Hop(NamedTuple):
    """A change of layout; `flat`: of images that were flattened before."""

    source: str
    target: str
    flat: bool


def hops(source: str, target: str, *, flattens: bool, spread: bool) -> tuple[Hop, ...]:
    """From one layout to another; flattens: the next layer takes flat samples, these are images.

    spread: whether pr divides the samples at hand. Parts of images cannot be flattened: they pass through
    a layout that holds whole samples.
    """
    if not flattens:
        return (Hop(source, target, False),) if source != target else ()
    holds = target in ("whole", "samples", "copies")
    between = source if source in ("whole", "samples") else target if holds else None
    between = between or ("samples" if spread else "whole")
    way = (Hop(source, between, False), Hop(between, target, True))
    return tuple(hop for hop in way if hop.source != hop.target)


def moved(x: Array, hop: Hop, axis: str, height: int) -> Array:
    """x in another layout; height: of the whole images, where rows are split."""
    slabs = Slabs(height, lax.axis_size(axis))
    if hop.source == "whole":
        if hop.target == "copies":
            return varying(x, (axis,))
        return _own(x, hop.target, axis, slabs)
    source = SPLIT[hop.source] % x.ndim
    if hop.target in ("whole", "copies"):
        to = "invarying" if hop.target == "whole" else "varying"
        x = collectives.gather(x, axis, source, to=to)
    else:
        x = slabs.spread(x) if hop.target == "rows" else x
        x = collectives.turned(x, axis, source, SPLIT[hop.target] % x.ndim)
    return slabs.joined(x) if hop.source == "rows" else x


def _own(x: Array, layout: str, axis: str, slabs: Slabs) -> Array:
    if layout != "rows":
        return collectives.own(x, axis, SPLIT[layout] % x.ndim)
    cut = lambda x: slabs.own(x, lax.axis_index(axis))
    return collectives.kept(cut, lambda g: slabs.joined(collectives.gather(g, axis, 1)))(x)
