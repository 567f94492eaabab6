"""What a layer and a network are: pure functions of parameters, one layer after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jtssm.arrays import Array, Tree
from jtssm.nn import norm
from jtssm.nn.ops import Products, Window

Shape = tuple[int, ...]


class Layer(NamedTuple):
    """One layer. Its products come in as an argument, so that a grid can hand in its own."""

    name: str
    init: Callable[[Array, Shape, Any], Tree]  # (key, shape of one input sample, dtype) -> params
    apply: Callable[[Tree, Array, Products], Array]  # (params, x [b, ...], products) -> [b, ...]
    shape: Callable[[Shape], Shape]  # shape of one input sample -> shape of one output sample
    cost: Callable[[Shape], int]  # shape of one input sample -> multiply-adds a sample
    # "gathered", "model" (by its outputs), "row" (by its inputs), "paired" (first by outputs, second by
    # inputs) -> tree like params: the dimension that this form splits over pr, -1 for none; see
    # `jtssm.sharding.layers.forms`
    splits: dict[str, Tree]
    dense: bool = False  # activation(x W + b) with params {"W", "b"}: what pdADMM can train
    activation: Callable[[Array], Array] | None = None  # of a dense layer
    # parameter -> for each of its dimensions "in" or "out", the neurons it belongs to: what independent
    # subnet training deals; None: the layer cannot be dealt
    neurons: dict[str, tuple[str, ...]] | None = None
    scaled: bool = False  # whether the size of its inputs' sum matters: no normalisation follows it
    random: bool = False  # draws from products.keys while training
    estimate: Callable[[Tree, Array, Products], Tree] | None = (
        None  # (params, x, products) -> params
    )
    estimated: tuple[str, ...] = ()  # parameters that `estimate` sets and no optimizer moves
    window: Window | None = None  # what an output pixel sees, where rows of an image may be split
    mixes: bool = True  # whether an output sees other columns (channels, neurons) than its own
    groups: int = 1  # of channels that do not see each other
    # units (heads, neurons) of the columns between its two products, which the form "paired" deals out
    # over pr; 0: it has no such pair
    pair: int = 0
    # whether parameters of its own work on its inputs before the first product
    prepares: bool = False
    # means and variances that it takes while training, for what they cost on a mesh
    statistics: tuple[norm.Statistics, ...] = ()
    integer: bool = False  # takes integers, which travel as floats
    # parameters that keep their dtype where the others are cast to a method's compute_dtype
    uncast: tuple[str, ...] = ()
    # parameters -> the user's own module with them; None: the layer is no adapted one
    module: Callable[[Tree], Any] | None = None
