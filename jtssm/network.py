"""A network as a sequence of layers, and where it may be cut into subnetworks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtssm import checks
from jtssm import normalisation as normalising
from jtssm.products import PLAIN, Products, Window
from jtssm.protocol import Array, Tree, as_input

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
    # `jtssm.sharding.grid`
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
    statistics: tuple[normalising.Statistics, ...] = ()


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
        return run_layers(self.layers, params, as_input(self, x), lambda i: PLAIN)

    def parameter_shapes(self) -> list[Tree]:
        """Shapes of the parameters, one tree a layer, of float32; kept for the networks seen last."""
        return _parameter_shapes(_Identity(self))

    @property
    def random(self) -> bool:
        """Whether some layer draws random numbers while training."""
        return any(layer.random for layer in self.layers)

    @property
    def estimated(self) -> bool:
        """Whether some layer keeps statistics that are estimated rather than trained."""
        return any(layer.estimate for layer in self.layers)

    def estimate(self, params: Sequence[Tree], x: Array) -> list[Tree]:
        """The parameters with the statistics of x [samples, ...], layer after layer."""
        x = as_input(self, x)
        return estimate_layers(self.layers, params, x, lambda i: PLAIN)

    @property
    def statistics(self) -> tuple[normalising.Statistics, ...]:
        """Means and variances that its layers take while training."""
        return tuple(each for layer in self.layers for each in layer.statistics)

    def costs(self) -> list[int]:
        """Multiply-adds a sample of each layer's forward product."""
        return [layer.cost(s) for layer, s in zip(self.layers, self.shapes, strict=False)]


class _Identity:
    """A network as a key: layers hold dicts, which have no hash."""

    def __init__(self, net: Network):
        self.net = net

    def __hash__(self) -> int:
        return hash((*map(id, self.net.layers), self.net.shapes))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Identity) or self.net.shapes != other.net.shapes:
            return False
        return all(a is b for a, b in zip(self.net.layers, other.net.layers, strict=True))


@lru_cache(maxsize=32)
def _parameter_shapes(key: _Identity) -> list[Tree]:
    net = key.net
    met: dict[Any, Tree] = {}  # layers that are one object are traced once
    for layer, shape in zip(net.layers, net.shapes, strict=False):
        if (id(layer), shape) not in met:
            init = lambda key, layer=layer, shape=shape: layer.init(key, shape, jnp.float32)
            met[id(layer), shape] = jax.eval_shape(init, jax.random.key(0))
    return [met[id(layer), shape] for layer, shape in zip(net.layers, net.shapes, strict=False)]


def sequence(layers: Sequence[Layer], in_shape: Shape) -> Network:
    """A network of the given layers for samples of shape `in_shape`.

    Raises:
      ValueError: no layers or something else, a shape that a layer does not take.
    """
    if not isinstance(layers, (list, tuple)) or not layers:
        raise ValueError(
            f"layers: expected at least one layer, in a list, e.g. [dense(10)]; got "
            f"{checks.shown(layers)}"
        )
    for i, layer in enumerate(layers):
        checks.instance(f"layers[{i}]", layer, Layer, "dense(10)")
    shapes = [checks.counts("in_shape", in_shape, "(28, 28, 1)")]
    for layer in layers:
        shapes.append(layer.shape(shapes[-1]))
    return Network(tuple(layers), tuple(shapes))


def run_layers(
    layers: Sequence[Layer], params: Sequence[Tree], x: Array, products: Callable
) -> Array:
    """What the layers make of x, one after the other; products: index among them -> Products."""
    for i, (layer, p) in enumerate(zip(layers, params, strict=True)):
        given = products(i)
        x = given.leave(layer.apply(given.weights(p), given.enter(x), given))
    return x


def estimate_layers(
    layers: Sequence[Layer], params: Sequence[Tree], x: Array, products: Callable
) -> list[Tree]:
    """Statistics of each layer from what the layers before it make of x, with their new statistics."""
    found = []
    for i, (layer, p) in enumerate(zip(layers, params, strict=True)):
        given = products(i)
        x = given.enter(x)
        found.append(layer.estimate(p, x, given) if layer.estimate else p)
        x = given.leave(layer.apply(given.weights(found[-1]), x, given))
    return found


def keep_estimated(layers: Sequence[Layer], new: Sequence[Tree], old: Sequence[Tree]) -> list[Tree]:
    """The new parameters, but for those that are estimated: no weight decay reaches them."""
    return [
        n | {name: o[name] for name in layer.estimated} if layer.estimated else n
        for layer, n, o in zip(layers, new, old, strict=True)
    ]


def mlp(
    widths: Sequence[int],
    activation: Callable[[Array], Array] = jax.nn.relu,
    *,
    normalisation: str | None = None,
    dropout: float = 0.0,
) -> Network:
    """A multilayer perceptron; images are flattened on entry.

    Args:
      widths: inputs, hidden widths..., outputs; [196, 512, 10] has two layers.
      activation: after every layer but the last.
      normalisation: of every layer before its activation, "batch", "running" or "layer"
        (`jtssm.normalisation`); of the outputs too, without gamma and beta, unless it is "layer".
      dropout: share of the neurons of every hidden layer that are set to zero while training.

    Raises:
      ValueError: fewer than two widths, or one that is not a positive integer; an unknown
        normalisation; a dropout outside [0, 1).
    """
    widths = checks.counts("widths", widths, "[196, 512, 10]", least=2)
    kind, drop = normalising.find(normalisation), dropouts(dropout)
    hidden = [layer for w in widths[1:-1] for layer in (dense(w, activation, normalisation), *drop)]
    outputs = normalisation if kind is not None and kind.outputs else None
    return sequence([*hidden, dense(widths[-1], None, outputs, affine=False)], (widths[0],))


def dense(
    width: int,
    activation: Callable[[Array], Array] | None = None,
    normalisation: str | None = None,
    *,
    affine: bool = True,
) -> Layer:
    """activation(x W + b) with W [inputs, width], b [width]; x is flattened to [samples, inputs].

    With a normalisation (`jtssm.normalisation`) the layer is activation(norm(x W)): gamma and beta
    [width] stand in for b, or nothing without `affine`.
    Under an activation W starts from He's normal, without one from LeCun's; b starts at 0.

    Raises:
      ValueError: a width below 1, an activation that is no function of arrays, an unknown
        normalisation.
    """
    (width,), affine = checks.count(width=width), checks.flag("affine", affine)
    checks.activation(activation)
    scale = jax.nn.initializers.he_normal() if activation else jax.nn.initializers.lecun_normal()
    norm = normalising.find(normalisation)

    def init(key, shape, dtype):
        W = {"W": scale(key, (prod(shape), width), dtype)}
        return W | (norm.init(width, affine, dtype) if norm else {"b": jnp.zeros(width, dtype)})

    def product(params, x, products):
        return products.dense(x.reshape(x.shape[0], -1), params["W"], params.get("b"))

    def apply(params, x, products):
        z = product(params, x, products)
        z = norm.apply(params, z, products) if norm else z
        return z if activation is None else activation(z)

    estimate = norm and norm.estimated and (
        lambda params, x, products: norm.estimate(params, product(params, x, products), products)
    )  # fmt: skip
    names = norm.init(1, affine, jnp.float32) if norm else ("b",)
    title = (f"dense {width}", getattr(activation, "__name__", activation), normalisation)
    return Layer(
        name=" ".join(str(word) for word in title if word),
        init=init,
        apply=apply,
        shape=lambda _: (width,),
        cost=lambda shape: prod(shape) * width,
        splits={
            "gathered": {"W": 1} | dict.fromkeys(names, -1),
            "model": {"W": 1} | dict.fromkeys(names, 0),
            "row": {"W": 0} | dict.fromkeys(names, -1),
        },
        dense=norm is None,
        activation=activation,
        neurons={"W": ("in", "out")} | dict.fromkeys(names, ("out",)),
        scaled=norm is None,
        estimate=estimate or None,
        estimated=norm.estimated if norm else (),
        statistics=(norm.statistics(width, affine),) if norm else (),
    )


def dropout_layer(rate: float) -> Layer:
    """While training, each number is 0 with probability `rate`, the others scaled by 1 / (1 - rate).

    Every sample draws from its own key, so that the numbers are the same on any mesh.

    Raises:
      ValueError: a rate outside [0, 1).
    """
    rate = checks.share("dropout", rate, 0.5, whole=False)

    def apply(_, x, products):
        if not products.training or products.keys is None:
            return x
        kept = lambda key, shape: jax.random.bernoulli(key, 1 - rate, shape)
        return jnp.where(products.drawn(kept, products.keys(), x), x / (1 - rate), 0)

    return Layer(
        name=f"dropout {rate:g}",
        init=lambda key, shape, dtype: {},
        apply=apply,
        shape=lambda shape: shape,
        cost=lambda shape: 0,
        splits={"model": {}},
        neurons={},
        random=True,
        window=Window(1),
        mixes=False,
    )


def dropouts(rate: float) -> list[Layer]:
    """What follows every hidden layer: a layer of dropout, or none at rate 0.

    Raises:
      ValueError: as `dropout_layer`.
    """
    layer = dropout_layer(rate)
    return [] if rate == 0 else [layer]


def cut(net: Network, subnets: int | None, cuts: Sequence[int] | None) -> tuple[int, ...]:
    """Where the subnetworks start: piece l holds the layers starts[l] .. starts[l + 1] - 1.

    Args:
      subnets: number of subnetworks n, 1 <= n <= L; cut so that the largest cost is smallest.
      cuts: instead, the first layer of every subnetwork but the first, e.g. [3, 7] for three.

    Raises:
      ValueError: n out of range, cuts that do not rise within 1 .. L - 1, or the two disagree.
    """
    checks.instance("net", net, Network, "jtssm.mlp([196, 512, 10])")
    num_layers = len(net.layers)
    if cuts is not None:
        cuts = checks.counts("cuts", cuts, "[3, 7]", least=0)
        starts = (0, *cuts, num_layers)
        if any(b <= a for a, b in pairwise(starts)):
            raise ValueError(
                f"cuts: expected rising layer numbers within 1..{num_layers - 1}; got {list(cuts)}"
            )
        if subnets is not None and checks.count(subnets=subnets) != (len(cuts) + 1,):
            raise ValueError(
                f"subnets: expected {len(cuts) + 1} with {len(cuts)} cuts; got {subnets}"
            )
        return starts
    n = 1 if subnets is None else subnets
    if not checks.is_integer(n) or not 1 <= n <= num_layers:
        raise ValueError(
            f"subnets: expected 1..{num_layers}, the network has {num_layers} layers; got "
            f"{checks.shown(n)}"
        )
    return balanced_starts(net.costs(), int(n))


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
