"""Which gradients of a network's layers go together, where devices that split the samples sum them.

jax sums the gradient of each parameter where it meets samples that differ: a message each. Between
processes on CPUs (`jtssm.sharding.gloo`) small ones go together instead: the parameters are marked as
differing before they are used, and the gradients that come back are summed at once.

Left as they are: large arrays; what no optimizer moves; what is estimated, which has no gradient; layers
with means over samples, whose sums forward and backward jax shares with the gradients of scale and shift;
and over pr what is stored whole, since there only some uses differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import floating
from jtssm.sharding import gloo
from jtssm.sharding.layers.forms import Grid
from jtssm.sharding.layers.stored import WHOLE


def joined(grid: Grid, first: int, params: Sequence[Tree], frozen: Sequence[bool]) -> list[Tree]:
    """The parameters of layers first .., one tree a layer, as a gradient is to be taken of them.

    frozen: of each array, whether nobody reads its gradient; none: all are read.
    """
    if not grid.gloo or not grid.samples:
        return list(params)
    together = [_together(grid, i, tree) for i, tree in enumerate(params, first)]
    leaves, structure = jax.tree.flatten(list(params))
    pairs = zip(jax.tree.leaves(together), frozen or [False] * len(leaves), strict=True)
    flags = [goes and not still for goes, still in pairs]
    chosen = [a for a, flag in zip(leaves, flags, strict=True) if flag]
    told = iter(gloo.with_joined_gradients(chosen, [grid.samples] * len(chosen)))
    found = [next(told) if flag else a for a, flag in zip(leaves, flags, strict=True)]
    return jax.tree.unflatten(structure, found)


def _together(grid: Grid, i: int, params: Tree) -> Tree:
    """For each parameter of layer i, as a device stores it, whether its gradient goes with others."""
    layer = grid.network.layers[i]
    if any(over == "samples" for over, _, _ in layer.statistics):
        return jax.tree.map(lambda _: False, params)

    def goes(a: Array, dimension: int) -> bool:
        split = grid.axis is None or dimension != WHOLE
        return split and floating(a) and a.size * a.dtype.itemsize < gloo.JOINED

    like = grid.network.parameter_shapes()[i]
    found = jax.tree.map(goes, params, grid.stored(i, like))
    still = {name: jax.tree.map(lambda _: False, params[name]) for name in layer.estimated}
    return found | still if still else found
