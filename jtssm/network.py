"""A network as a sequence of layers, and where it may be cut into subnetworks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtssm.protocol import PLAIN, Array, Products, Tree, as_input

Shape = tuple[int, ...]


class Layer(NamedTuple):
    """One layer. Its products come in as an argument, so that a grid can hand in its own."""

    name: str
    init: Callable[[Array, Shape, Any], Tree]  # (key, shape of one input sample, dtype) -> params
    apply: Callable[[Tree, Array, Products], Array]  # (params, x [b, ...], products) -> [b, ...]
    shape: Callable[[Shape], Shape]  # shape of one input sample -> shape of one output sample
    cost: Callable[[Shape], int]  # shape of one input sample -> multiply-adds a sample
    splits: dict[str, Tree]  # form -> tree like params: the dimension split over pr, -1 for none
    dense: bool = False  # activation(x W + b) with params {"W", "b"}: what pdADMM can train
    activation: Callable[[Array], Array] | None = None  # of a dense layer


class Network(NamedTuple):
    """Layers and the shape of one sample before the first and after each: len(shapes) = L + 1."""

    layers: tuple[Layer, ...]
    shapes: tuple[Shape, ...]

    def init(self, key: Array, dtype: Any = jnp.float32) -> list[Tree]:
        """Random parameters, one tree a layer; layer i draws from fold_in(key, i)."""
        return [self.init_layer(i, key, dtype) for i in range(len(self.layers))]

    def init_layer(self, i: int, key: Array, dtype: Any = jnp.float32) -> Tree:
        """Random parameters of layer i: the same, whichever device draws them."""
        return self.layers[i].init(jax.random.fold_in(key, i), self.shapes[i], dtype)

    def apply(self, params: Sequence[Tree], x: Array) -> Array:
        """Outputs [samples, ...] of the whole network for x [samples, ...]."""
        x = as_input(self, x)
        for layer, p in zip(self.layers, params, strict=True):
            x = layer.apply(p, x, PLAIN)
        return x

    def costs(self) -> list[int]:
        """Multiply-adds a sample of each layer's forward product."""
        return [layer.cost(s) for layer, s in zip(self.layers, self.shapes, strict=False)]


def sequence(layers: Sequence[Layer], in_shape: Shape) -> Network:
    """A network of the given layers for samples of shape `in_shape`."""
    if not layers:
        raise ValueError("layers: expected at least one layer; got none")
    shapes = [tuple(in_shape)]
    for layer in layers:
        shapes.append(layer.shape(shapes[-1]))
    return Network(tuple(layers), tuple(shapes))


def mlp(widths: Sequence[int], activation: Callable[[Array], Array] = jax.nn.relu) -> Network:
    """A multilayer perceptron; images are flattened on entry.

    Args:
      widths: inputs, hidden widths..., outputs; [196, 512, 10] has two layers.
      activation: after every layer but the last.

    Raises:
      ValueError: fewer than two widths, or one that is not a positive integer.
    """
    widths = list(widths)
    if len(widths) < 2 or any(not isinstance(w, int) or w < 1 for w in widths):
        raise ValueError(
            f"widths: expected at least two positive integers, e.g. [196, 512, 10]; got {widths}"
        )
    hidden = [dense(w, activation) for w in widths[1:-1]]
    return sequence([*hidden, dense(widths[-1])], (widths[0],))


def dense(width: int, activation: Callable[[Array], Array] | None = None) -> Layer:
    """activation(x W + b) with W [inputs, width], b [width]; x is flattened to [samples, inputs].

    Under an activation W starts from He's normal, without one from LeCun's; b starts at 0.
    """
    scale = jax.nn.initializers.he_normal() if activation else jax.nn.initializers.lecun_normal()

    def init(key, shape, dtype):
        return {"W": scale(key, (prod(shape), width), dtype), "b": jnp.zeros(width, dtype)}

    def apply(params, x, products):
        z = products.dense(x.reshape(x.shape[0], -1), params["W"], params["b"])
        return z if activation is None else activation(z)

    name = f"dense {width}" + (
        f" {getattr(activation, '__name__', activation)}" if activation else ""
    )
    cost = lambda shape: prod(shape) * width
    splits = {"model": {"W": 1, "b": 0}}
    return Layer(name, init, apply, lambda _: (width,), cost, splits, True, activation)


def cut(net: Network, subnets: int | None, cuts: Sequence[int] | None) -> tuple[int, ...]:
    """Where the subnetworks start: piece l holds the layers starts[l] .. starts[l + 1] - 1.

    Args:
      subnets: number of subnetworks n, 1 <= n <= L; cut so that the largest cost is smallest.
      cuts: instead, the first layer of every subnetwork but the first, e.g. [3, 7] for three.

    Raises:
      ValueError: n out of range, cuts that do not rise within 1 .. L - 1, or the two disagree.
    """
    num_layers = len(net.layers)
    if cuts is not None:
        starts = (0, *cuts, num_layers)
        if any(b <= a for a, b in pairwise(starts)):
            raise ValueError(
                f"cuts: expected rising layer numbers within 1..{num_layers - 1}; got {list(cuts)}"
            )
        if subnets is not None and subnets != len(cuts) + 1:
            raise ValueError(
                f"subnets: expected {len(cuts) + 1} with {len(cuts)} cuts; got {subnets}"
            )
        return starts
    n = 1 if subnets is None else subnets
    if not isinstance(n, int) or not 1 <= n <= num_layers:
        raise ValueError(
            f"subnets: expected 1..{num_layers}, the network has {num_layers} layers; got {n}"
        )
    return balanced_starts(net.costs(), n)


def balanced_starts(costs: Sequence[int], n: int) -> tuple[int, ...]:
    """Split costs into n non-empty runs with the smallest possible largest sum.

    Dynamic program over (layers taken, runs): best[j] holds, for the first j layers, the pair
    (largest sum, sum of squares) and the starts; squares break ties towards even runs.
    """
    best = {j: ((sum(costs[:j]), sum(costs[:j]) ** 2), (0,)) for j in range(1, len(costs) + 1)}
    for runs in range(2, n + 1):
        best = {
            j: min(_extended(best, costs, i, j) for i in range(runs - 1, j))
            for j in range(runs, len(costs) + 1)
        }
    return (*best[len(costs)][1], len(costs))


def _extended(best: dict, costs: Sequence[int], i: int, j: int) -> tuple:
    (largest, squares), starts = best[i]
    run = sum(costs[i:j])
    return (max(largest, run), squares + run**2), (*starts, i)
