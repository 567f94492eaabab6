"""Weights that change in place: apart from the switch in which the pieces' work is done.

What goes through a switch is copied, weights and optimizer states too; a conditional of two branches, one
of which does nothing, is not. So each device runs, of one such conditional a piece, its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from jax import lax

from jtssm.arrays import Array, Tree
from jtssm.nn.ops import varying
from jtssm.protocol.exchange import not_before
from jtssm.sharding.placement.rows import AnyLayout, Rows, axes_of
from jtssm.sharding.placement.slotted import Slotted
from jtssm.sharding.placement.switch import Place

Arrays = dict[str, Array]  # of a slot, [*shape]


def renew(
    at: Place,
    fn: Callable[..., Tree],
    weights: Rows,
    *carried: Rows,
    where: Array,
    after: Sequence[Rows],
) -> Rows:
    """`Exchange.renew` on a mesh."""
    layout = weights.layout
    assert isinstance(layout, Slotted), "methods that batch pieces renew their weights in `each`"
    others, rows = [c.layout for c in carried], dict(weights.rows)
    device = 0 if at.names.subnet is None else lax.axis_index(at.names.subnet)
    slots, flags = at.slots, jnp.pad(where, (at.slots.empty, 0))
    for slot in range(slots.local):
        own, *given = map(partial(_of_slot, slot), (weights, *carried))
        made = [a[slot] for each in after for a in each.rows.values()]
        live = not_before(flags[slots.number(device, slot)], made)
        for l in slots.at_slot(slot):
            here = live & (device == slots.device(l))
            anew = partial(_anew, at, fn, l, layout, others)
            own = lax.cond(here, anew, lambda _, own, *given: own, here, own, *given)
        rows |= {key: a[None, None] for key, a in own.items()}
    return Rows(rows, layout)


def _of_slot(slot: int, carried: Rows) -> Arrays:
    """Its arrays without the dimensions of "subnet" and "pr"."""
    return {key: a[0, 0] for key, a in carried.layout.of_slots(carried.rows, slot, 1).items()}


def _anew(
    at: Place,
    fn: Callable[..., Tree],
    l: int,
    layout: Slotted,
    others: Sequence[AnyLayout],
    here: Array,
    own: Arrays,
    *given: Arrays,
) -> Arrays:
    """The arrays of a slot with the new weights of piece l.

    What it has in part of an array is made whole before it is written there: what a conditional is given
    XLA makes before. Else it would make it twice, as it writes and for what else is made of it, and copy.
    here: true.
    """
    trees = [of.unpack(l, a) for of, a in zip(others, given, strict=True)]
    rows = layout.joined(l, fn(l, layout.unpack(l, own), *trees))
    filled = lambda rows, own: {key: layout.filled(key, a, own.get(key)) for key, a in rows.items()}
    marked = lambda rows: {
        key: varying(a, axes_of(layout.kind, at.names, key)) for key, a in rows.items()
    }
    parts = {key: a for key, a in rows.items() if a.size < own[key].size}
    whole = {key: a for key, a in rows.items() if key not in parts}
    found = marked(own | filled(whole, {}))
    if parts:
        base = {key: own[key] for key in parts}
        write = lambda parts, base: marked(filled(parts, base))
        found |= lax.cond(here, write, lambda _, base: marked(base), parts, base)
    return found
