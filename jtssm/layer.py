"""What a layer and a network are: pure functions of parameters, one layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtssm import checks
from jtssm import normalisation as normalising
from jtssm.products import PLAIN, Products, Window, entering, narrowed, widened
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
    integer: bool = False  # takes integers, which travel as floats
    # parameters that keep their dtype where the others are cast to a method's compute_dtype
    uncast: tuple[str, ...] = ()
    # parameters -> the user's own module with them; None: the layer is no adapted one
    module: Callable[[Tree], Any] | None = None


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
    def integer(self) -> bool:
        """Whether samples are integers (tokens)."""
        return self.layers[0].integer

    def modules(self, params: Sequence[Tree]) -> list[Any]:
        """The user's own modules with these parameters, one a layer.

        Of `from_nnx` the modules, of `from_linen` pairs (module, variables), of `layers` the functions,
        or pairs (params, f).

        Raises:
          ValueError: a layer that is not a user's own.
        """
        for i, layer in enumerate(self.layers):
            if layer.module is None:
                raise ValueError(
                    f"modules: expected a network of from_nnx, from_linen or layers; got layer {i}, "
                    f"{layer.name!r}, which is jtssm's own: its parameters are params[{i}]"
                )
        return [layer.module(p) for layer, p in zip(self.layers, params, strict=True)]  # type: ignore[misc]

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
    layers: Sequence[Layer],
    params: Sequence[Tree],
    x: Array,
    products: Callable,
    compute_dtype: Any = None,
) -> Array:
    """What the layers make of x, one after the other; products: index among them -> Products.

    compute_dtype: what the layers compute in; x and the outputs are in that of the parameters.
    """
    inputs = x
    for i, (layer, p) in enumerate(zip(layers, params, strict=True)):
        given = products(i)
        p = narrowed(given.weights(p), layer.uncast, compute_dtype, given)
        x = given.leave(layer.apply(p, given.enter(_entering(layer, x, compute_dtype)), given))
    return widened(x, compute_dtype, list(params), inputs)


def _entering(layer: Layer, x: Array, compute_dtype: Any) -> Array:
    """Samples as a layer takes them; integers, which travel as floats, would lose digits."""
    return x if layer.integer else entering(x, compute_dtype)


def estimate_layers(
    layers: Sequence[Layer],
    params: Sequence[Tree],
    x: Array,
    products: Callable,
    compute_dtype: Any = None,
) -> list[Tree]:
    """Statistics of each layer from what the layers before it make of x, with their new statistics."""
    found = []
    for i, (layer, p) in enumerate(zip(layers, params, strict=True)):
        given = products(i)
        cast = lambda p, layer=layer, given=given: narrowed(p, layer.uncast, compute_dtype, given)
        x = given.enter(_entering(layer, x, compute_dtype))
        if layer.estimate:
            new = layer.estimate(cast(p), x, given)
            like = lambda a, old: a.astype(old.dtype)
            p = p | {name: jax.tree.map(like, new[name], p[name]) for name in layer.estimated}
        found.append(p)
        x = given.leave(layer.apply(cast(given.weights(p)), x, given))
    return found


def keep_estimated(layers: Sequence[Layer], new: Sequence[Tree], old: Sequence[Tree]) -> list[Tree]:
    """The new parameters, but for those that are estimated: no weight decay reaches them."""
    return [
        n | {name: o[name] for name in layer.estimated} if layer.estimated else n
        for layer, n, o in zip(layers, new, old, strict=True)
    ]
