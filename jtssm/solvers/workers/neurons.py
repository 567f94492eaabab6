"""What independent subnet training wants to know of a layer, asked of its kind."""

from __future__ import annotations

from functools import singledispatch

from jtssm.nn.dropout import Dropout
from jtssm.nn.layer import Layer
from jtssm.nn.perceptrons import Dense


@singledispatch
def neurons(layer: Layer) -> dict[str, tuple[str, ...]] | None:
    """What is dealt.

    Returns:
      For each parameter and each of its dimensions whose neurons it belongs to, "in" or "out"; nothing
      for a layer without parameters; None: the layer cannot be dealt.
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
def _(layer: Dropout) -> dict[str, tuple[str, ...]] | None:
    return {}


@scaled.register
def _(layer: Dense) -> bool:
    return layer.normalisation is None
