"""What independent subnet training wants to know of a layer, asked of its kind."""

from __future__ import annotations

from functools import singledispatch

from jtssm.nn.dropout import Dropout
from jtssm.nn.images import Convolution, Pool
from jtssm.nn.layer import Layer
from jtssm.nn.linear import Linear
from jtssm.nn.perceptrons import Dense


@singledispatch
def neurons(layer: Layer) -> dict[str, tuple[str, ...]] | None:
    """What is dealt.

    Returns:
      For each parameter and each of its dimensions whose neurons (channels) it belongs to, "in" or "out",
      "" where to none; nothing for a layer without parameters; None: the layer cannot be dealt, or not
      by itself (`jtssm.solvers.workers.parts`).
    """
    return None


@singledispatch
def scaled(layer: Layer) -> bool:
    """Whether the size of its inputs' sum matters: no normalisation follows it."""
    return False


@neurons.register
def _(layer: Dense) -> dict[str, tuple[str, ...]] | None:
    return {"W": ("in", "out")} | dict.fromkeys(layer.beside, ("out",))


@neurons.register
def _(layer: Convolution) -> dict[str, tuple[str, ...]] | None:
    """One in groups is not: its channels see those of their own group alone."""
    if layer.groups > 1:
        return None
    return {"W": ("", "", "in", "out")} | dict.fromkeys(layer.beside, ("out",))


@neurons.register
def _(layer: Pool) -> dict[str, tuple[str, ...]] | None:
    return {}


@neurons.register
def _(layer: Dropout) -> dict[str, tuple[str, ...]] | None:
    return {}


@scaled.register
def _(layer: Linear) -> bool:
    return layer.normalisation is None
