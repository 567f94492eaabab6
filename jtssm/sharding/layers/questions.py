"""What the grid wants to know of a layer, asked of its kind.

Each question is a function with an answer for kinds that it does not know: such a layer has the forms
"batch" and "gathered". A kind of one's own is answered for by `splits.register(Kind)` and the like.
"""

from __future__ import annotations

from functools import singledispatch
from math import prod

from jtssm.arrays import Tree
from jtssm.nn.adapted import Adapted
from jtssm.nn.blocks import Repeated
from jtssm.nn.boundary import Sample
from jtssm.nn.dropout import Dropout
from jtssm.nn.images import Convolution, Pool
from jtssm.nn.layer import Layer, Shape
from jtssm.nn.linear import Linear
from jtssm.nn.ops import Window
from jtssm.nn.perceptrons import Dense
from jtssm.nn.tokens import NORM, Attention, Half, Perceptron


@singledispatch
def splits(layer: Layer) -> dict[str, Tree]:
    """What each form splits over pr.

    Returns:
      "model" (by outputs), "row" (by inputs), "paired" (first by outputs, second by inputs): for each
      parameter the dimension that is split, -1 for none. Forms that a layer cannot have are missing.
    """
    return {}


@singledispatch
def window(layer: Layer) -> Window | None:
    """What an output pixel sees, where rows of an image may be split; None: they may not."""
    return None


@singledispatch
def mixes(layer: Layer) -> bool:
    """Whether an output sees other columns (channels, neurons) than its own."""
    return True


@singledispatch
def groups(layer: Layer) -> int:
    """Of channels that do not see each other."""
    return 1


@singledispatch
def pair(layer: Layer) -> int:
    """Units (heads, neurons) of the columns between its two products; 0: it has no such pair.

    The form "paired" deals them out over pr.
    """
    return 0


@singledispatch
def between(layer: Layer, shape: Sample) -> int:
    """Numbers of a sample that lie between its products, beside its inputs and outputs."""
    return 0


@singledispatch
def prepares(layer: Layer) -> bool:
    """Whether parameters of its own work on its inputs before the first product."""
    return False


@singledispatch
def bare(layer: Layer) -> bool:
    """Whether its outputs are its sums: no gradient needs them."""
    return not layer.statistics


@splits.register
def _(layer: Dense) -> dict[str, Tree]:
    return _by_columns(layer, 1) | _by_rows(layer, 0)


@splits.register
def _(layer: Convolution) -> dict[str, Tree]:
    return _by_columns(layer, 3) | (_by_rows(layer, 2) if layer.groups == 1 else {})


def _by_columns(layer: Linear, columns: int) -> dict[str, Tree]:
    """W split by its outputs; what stands beside it, too, where outputs stay split."""
    return {"model": {"W": columns} | dict.fromkeys(layer.beside, 0)}


def _by_rows(layer: Linear, rows: int) -> dict[str, Tree]:
    return {"row": {"W": rows} | dict.fromkeys(layer.beside, -1)}


@splits.register(Pool)
@splits.register(Dropout)
def _(layer: Layer) -> dict[str, Tree]:
    return {"model": {}}


@splits.register
def _(layer: Half) -> dict[str, Tree]:
    whole = dict.fromkeys((*NORM, "b2"), -1)
    return {"paired": whole | {"W1": 1, "b1": 0, "W2": 0}}


@window.register(Convolution)
@window.register(Pool)
def _(layer: Convolution | Pool) -> Window | None:
    return layer.window


@window.register
def _(layer: Dropout) -> Window | None:
    return Window(1)


@mixes.register(Pool)
@mixes.register(Dropout)
def _(layer: Layer) -> bool:
    return False


@groups.register
def _(layer: Convolution) -> int:
    return layer.groups


@pair.register
def _(layer: Attention) -> int:
    return layer.heads


@pair.register
def _(layer: Perceptron) -> int:
    return layer.hidden


@between.register
def _(layer: Half, shape: Shape) -> int:
    return shape[0] * sum(layer.inner)


@between.register
def _(layer: Attention, shape: Shape) -> int:
    # scores of all pairs of tokens, and their softmax
    return shape[0] * sum(layer.inner) + 2 * layer.heads * shape[0] ** 2


@between.register
def _(layer: Adapted, shape: Shape) -> int:
    return layer.between(shape)


@between.register
def _(layer: Repeated, shape: Shape) -> int:
    shapes = layer.inputs(shape)
    inside = sum(between(part, s) for part, s in zip(layer.block, shapes, strict=False))
    return layer.times * (inside + sum(map(prod, shapes[:-1]))) - prod(shape)


@prepares.register
def _(layer: Half) -> bool:
    return True


@prepares.register
def _(layer: Repeated) -> bool:
    return prepares(layer.block[0])


@bare.register
def _(layer: Linear) -> bool:
    return layer.activation is None and not layer.statistics
