"""Random parameters of many layers, drawn by one program for all that are alike.

A draw is a long program to compile. Layers that draw in the same way from keys of their own, the blocks
of a transformer say, run the same one in a loop; the numbers are those of each layer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.arrays import Array, Tree

Draw = Callable[[Array], Tree]  # key -> parameters


def drawn(draws: Sequence[Draw], keys: Sequence[Array]) -> list[Tree]:
    """What each function draws from its key."""
    alike: dict[str | int, list[int]] = {}
    for i, (draw, key) in enumerate(zip(draws, keys, strict=True)):
        alike.setdefault(_told(draw, key) or i, []).append(i)
    found: dict[int, Tree] = {}
    for of in alike.values():
        if len(of) == 1:
            found[of[0]] = draws[of[0]](keys[of[0]])
            continue
        together = lax.map(draws[of[0]], jnp.stack([keys[i] for i in of]))
        for row, i in enumerate(of):
            found[i] = jax.tree.map(lambda a, row=row: a[row], together)
    return [found[i] for i in range(len(draws))]


def _told(draw: Draw, key: Array) -> str | None:
    """The program of a draw; None: it draws nothing, or has arrays of its own in it."""
    closed, shapes = jax.make_jaxpr(draw, return_shape=True)(key)
    if closed.consts or not closed.eqns:
        return None
    return f"{closed} {jax.tree.structure(shapes)}"
