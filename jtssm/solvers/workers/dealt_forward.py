"""Forward passes of what is dealt: of one subnet, and of the whole network over its homes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from jtssm.arrays import Array, Tree
from jtssm.nn.ops import Products, beside, biased, entering, narrowed, widened
from jtssm.protocol.workers import Meeting
from jtssm.solvers.workers.deal import Cut
from jtssm.solvers.workers.neurons import scaled
from jtssm.solvers.workers.parts import Block, Part


class Own(NamedTuple):
    """What tells a subnet's slots, by the number of a cut."""

    taken: dict[int, Array]  # [slots] 1 or 0; not of cuts that leave none empty
    scale: dict[int, Array]  # M / neurons of this subnet


def forward_of_subnet(
    blocks: Sequence[Block],
    params: list[Tree],
    x: Array,
    own: Own,
    products: Callable[[int], Products],
    dtype: DTypeLike | None,
) -> Array:
    """Outputs of one subnet for x [b, ...], computed in `dtype`; empty places give zeros."""
    inputs, x = x, entering(x, dtype)
    for i, (block, tree) in enumerate(zip(blocks, params, strict=True)):

        def work(part: Part, x: Array, tree: Tree = tree, i: int = i) -> Array:
            return _work_of_subnet(part, part.own(tree), x, own, products(i), dtype)

        x = block.run(x, work)
    return widened(x, dtype, params, inputs)


def _work_of_subnet(
    part: Part, p: Tree, x: Array, own: Own, products: Products, dtype: DTypeLike | None
) -> Array:
    if scaled(part.layer) and part.before is not None:
        x = (x * own.scale[part.before.number]).astype(x.dtype)  # a scale is not rounded
    p = {name: kept.turned(p[name]) if kept else p[name] for name, kept in part.plan().items()}
    taken = None if part.after is None else own.taken.get(part.after.number)
    products = products if taken is None else _among(products, taken)
    x = part.layer.apply(narrowed(p, part.layer.uncast, dtype, products), x, products)
    return x if taken is None else x * beside(taken, x).astype(x.dtype)


def _among(products: Products, taken: Array) -> Products:
    """The products of a layer of which only some places are taken."""

    def mean(a: Array) -> Array:
        inside = (a * beside(taken, a)).sum(axis=tuple(range(1, a.ndim)), keepdims=True)
        return inside / (taken.sum() * prod(a.shape[1:-1]))

    return products._replace(over_neurons=mean)


def forward_of_whole(
    meeting: Meeting,
    products: Products,
    blocks: Sequence[Block],
    params: list[Tree],
    x: Array,
    dtype: DTypeLike | None,
    estimates: bool = False,
) -> tuple[Array, list[Tree]]:
    """Outputs [b, ...] of the network whose neurons are split over homes, and its parameters.

    params: as they lie here (`Dealt.joined`).  estimates: whether their statistics become those of x.
    """
    inputs, x, found = x, entering(x, dtype), [dict(tree) for tree in params]
    for block, tree in zip(blocks, found, strict=True):

        def work(part: Part, x: Array, tree: Tree = tree) -> Array:
            layer, given = part.layer, split_over_homes(meeting, products, part)
            own = lambda: narrowed(part.own(tree), layer.uncast, dtype, given)
            if estimates and layer.estimated:
                new, old = layer.estimate(own(), x, given), part.own(tree)
                tree |= part.named({n: new[n].astype(old[n].dtype) for n in layer.estimated})
            return layer.apply(own(), x, given)

        x = block.run(x, work)
    return widened(x, dtype, params, inputs), found


def split_over_homes(meeting: Meeting, products: Products, part: Part) -> Products:
    """The products of a part whose neurons are split over homes: by outputs, or else by inputs."""
    before, after = part.before, part.after
    if after is not None:
        gather = (lambda x: x) if before is None else meeting.gather

        def dense(x: Array, W: Array, b: Array | None) -> Array:
            whole = gather(x.reshape(x.shape[0], part.pixels, -1)).reshape(x.shape[0], -1)
            return products.dense(whole, W, b)

        return products._replace(
            dense=dense,
            convolved=lambda x, *how: products.convolved(gather(x), *how),
            over_neurons=_over_homes(meeting, after),
        )
    if before is not None:
        total = meeting.sum_homes
        return products._replace(
            dense=lambda x, W, b: biased(total(products.dense(x, W, None)), b),
            convolved=lambda *how: total(products.convolved(*how)),
        )
    return products


def _over_homes(meeting: Meeting, cut: Cut) -> Callable[[Array], Array]:
    """The mean over neurons that are split over homes."""

    def mean(a: Array) -> Array:
        inside = meeting.own_homes(jnp.asarray(cut.inside, a.dtype))
        here = (a * beside(inside, a)).sum(axis=tuple(range(1, a.ndim)), keepdims=True)
        return meeting.sum_homes(here) / (cut.width * prod(a.shape[1:-1]))

    return mean
