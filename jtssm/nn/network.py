"""Networks: layers one after another, their parameters and their shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import AnyArray, Array, Shaped, Tree
from jtssm.nn.adapted import Adapted, Together
from jtssm.nn.layer import Layer, Shape
from jtssm.nn.norm import Statistics
from jtssm.nn.ops import PLAIN, Products, entering, narrowed, widened

MOST_LINES = 16  # of layers in a network's repr


def as_input(network: Network, x: AnyArray) -> Array:
    """Samples in the shape the first layer takes: [samples, *network.shapes[0]].

    Images are flattened for a flat first layer, row by row; nothing else is reshaped.

    Raises:
      ValueError: x has samples of another shape, or is an array that jax cannot take.
    """
    if isinstance(x, (np.ndarray, jax.Array)):
        checks.array("x", x)
    x = jnp.asarray(x)
    check_shape(network, x.shape)
    # integers travel as floats, which hold them exactly up to 2^24
    return x.reshape(-1, *network.shapes[0]).astype(float_dtype(x))


def check_shape(network: Network, shape: Shape) -> None:
    """Samples of an array of this shape are those of the network, or flatten to them.

    Raises:
      ValueError: they are others; it says which axis to move where that makes them fit.
    """
    wanted = network.shapes[0]
    flat = len(wanted) == 1
    if shape and (shape[1:] == wanted or (flat and prod(shape[1:]) == wanted[0])):
        return
    either = f" or images of {wanted[0]} numbers" if flat else ""
    hint = _how_to_fit(tuple(shape[1:]), wanted)
    raise ValueError(
        f"x: expected [samples, {', '.join(map(str, wanted))}]{either}; got shape {shape}{hint}"
    )


def _how_to_fit(got: Shape, wanted: Shape) -> str:
    """What makes samples of one shape those of another, if anything does."""
    if sorted(got) == sorted(wanted):
        axes = range(len(got))
        moves = [(a, b) for a in axes for b in axes if _moved(got, a, b) == wanted]
        # channels that come first go last, or the other way round
        moves.sort(key=lambda move: {move[0], move[1]} != {0, len(got) - 1})
        if moves:
            a, b = (axis + 1 for axis in moves[0])
            return f": move axis {a} to {b}, np.moveaxis(x, {a}, {b})"
        return ": transpose its axes"
    if got and prod(got) == prod(wanted):
        return (
            f": as many numbers, in another layout; if they are in the right order, "
            f"x.reshape(-1, {', '.join(map(str, wanted))})"
        )
    return ""


def _moved(shape: Shape, a: int, b: int) -> Shape:
    rest = [n for i, n in enumerate(shape) if i != a]
    return (*rest[:b], shape[a], *rest[b:])


def float_dtype(x: Shaped) -> np.dtype:
    """The dtype of parameters and variables for samples x: theirs, of integers jax's default.

    Never below float32: samples may be stored in 16 bits, parameters and sums may not.
    """
    given = jnp.result_type(x)
    if not jnp.issubdtype(given, jnp.floating):
        return jnp.zeros(()).dtype
    return jnp.promote_types(given, jnp.float32)


class Network(NamedTuple):
    """Layers and the shape of one sample before the first and after each: len(shapes) = L + 1."""

    layers: tuple[Layer, ...]
    shapes: tuple[Shape, ...]

    def __repr__(self) -> str:
        return "\n".join(shown(self))

    def init(self, key: Array, dtype: DTypeLike = jnp.float32) -> list[Tree]:
        """Random parameters, one tree a layer; layer i draws from fold_in(key, i)."""
        return [self.init_layer(i, key, dtype) for i in range(len(self.layers))]

    def init_layer(self, i: int, key: Array, dtype: DTypeLike = jnp.float32) -> Tree:
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
        return any(layer.estimated for layer in self.layers)

    def estimate(self, params: Sequence[Tree], x: Array) -> list[Tree]:
        """The parameters with the statistics of x [samples, ...], layer after layer."""
        x = as_input(self, x)
        return estimate_layers(self.layers, params, x, lambda i: PLAIN)

    @property
    def integer(self) -> bool:
        """Whether samples are integers (tokens)."""
        return self.layers[0].integer

    def modules(self, params: Sequence[Tree]) -> list[Any]:
        """The user's own modules with these parameters, one a layer, or several where they are tied.

        Of `from_nnx` the modules, of `from_linen` pairs (module, variables), of `layers` the functions,
        or pairs (params, f).

        Raises:
          ValueError: a layer that is not a user's own.
        """
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, Adapted):
                raise ValueError(
                    f"modules: expected a network of from_nnx, from_linen or layers; got layer {i}, "
                    f"{layer.name!r}, which is jtssm's own: its parameters are params[{i}]"
                )
        own = (layer for layer in self.layers if isinstance(layer, Adapted))
        each = (layer.module(p) for layer, p in zip(own, params, strict=True))
        return [m for a in each for m in (a if isinstance(a, Together) else (a,))]

    @property
    def statistics(self) -> tuple[Statistics, ...]:
        """Means and variances that its layers take while training."""
        return tuple(each for layer in self.layers for each in layer.statistics)

    def costs(self) -> list[int]:
        """Multiply-adds a sample of each layer's forward product."""
        return [layer.cost(s) for layer, s in zip(self.layers, self.shapes, strict=False)]


def shown(net: Network) -> list[str]:
    """A network's layers, with the shape of what each gives and its parameters, a line each.

    Of a long one the first and the last, and how many stand between.
    """
    sizes = [sum(a.size for a in jax.tree.leaves(tree)) for tree in net.parameter_shapes()]
    rows = [
        (f"{i:>4}  {layer.name}", str(shape), f"{size:,}")
        for i, (layer, shape, size) in enumerate(
            zip(net.layers, net.shapes[1:], sizes, strict=True)
        )
    ]
    wide = [max(len(row[k]) for row in rows) for k in range(3)]
    lines = [f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}" for a, b, c in rows]
    if (more := len(lines) - MOST_LINES) > 0:
        half = MOST_LINES // 2
        lines[half : half + more] = [f"   ... {more} more"]
    head = f"Network of {len(rows)} layers, {sum(sizes):,} parameters: samples {net.shapes[0]}"
    return [head, *lines]


class _Identity:
    """A network as a key: layers of a user's own may have no hash, or an == that gives an array."""

    def __init__(self, net: Network) -> None:
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
    met: dict[tuple[int, Shape], Tree] = {}  # layers that are one object are traced once
    for layer, shape in zip(net.layers, net.shapes, strict=False):
        if (id(layer), shape) not in met:
            init = lambda key, layer=layer, shape=shape: layer.init(key, shape, jnp.float32)
            met[id(layer), shape] = jax.eval_shape(init, jax.random.key(0))
    return [met[id(layer), shape] for layer, shape in zip(net.layers, net.shapes, strict=False)]


def sequence(layers: Sequence[Layer], in_shape: Shape) -> Network:
    """A network of the given layers for samples of shape `in_shape`.

    Raises:
      ValueError: no layers or something else, a shape that a layer does not take or that has no numbers.
    """
    if not isinstance(layers, (list, tuple)) or not layers:
        raise ValueError(
            f"layers: expected at least one layer, in a list, e.g. [dense(10)]; got "
            f"{checks.shown(layers)}"
        )
    for i, layer in enumerate(layers):
        checks.instance(f"layers[{i}]", layer, Layer, "dense(10)")
    shapes = [checks.counts("in_shape", in_shape, "(28, 28, 1)")]
    for i, layer in enumerate(layers):
        name = f"layers[{i}]: outputs of {layer.name!r}"
        shapes.append(checks.counts(name, layer.shape(shapes[-1]), "(10,)", least=0))
    return Network(tuple(layers), tuple(shapes))


def run_layers(
    layers: Sequence[Layer],
    params: Sequence[Tree],
    x: Array,
    products: Callable[[int], Products],
    compute_dtype: DTypeLike | None = None,
) -> Array:
    """What the layers make of x, one after the other; products: index among them -> Products.

    compute_dtype: what the layers compute in; x and the outputs are in that of the parameters.
    """
    inputs = x
    for i, (layer, p) in enumerate(zip(layers, params, strict=True)):
        given = products(i)
        p = narrowed(given.hops.weights(p), layer.uncast, compute_dtype, given)
        x = layer.apply(p, given.hops.enter(_entering(layer, x, compute_dtype)), given)
        x = given.hops.leave(x)
    return widened(x, compute_dtype, list(params), inputs)


def _entering(layer: Layer, x: Array, compute_dtype: DTypeLike | None) -> Array:
    """Samples as a layer takes them; integers, which travel as floats, would lose digits."""
    return x if layer.integer else entering(x, compute_dtype)


def estimate_layers(
    layers: Sequence[Layer],
    params: Sequence[Tree],
    x: Array,
    products: Callable[[int], Products],
    compute_dtype: DTypeLike | None = None,
) -> list[Tree]:
    """Statistics of each layer from what the layers before it make of x, with their new statistics."""
    found = []
    for i, (layer, p) in enumerate(zip(layers, params, strict=True)):
        given = products(i)
        cast = lambda p, layer=layer, given=given: narrowed(p, layer.uncast, compute_dtype, given)
        x = given.hops.enter(_entering(layer, x, compute_dtype))
        if layer.estimated:
            new = layer.estimate(cast(p), x, given)
            like = lambda a, old: a.astype(old.dtype)
            p = p | {name: jax.tree.map(like, new[name], p[name]) for name in layer.estimated}
        found.append(p)
        x = given.hops.leave(layer.apply(cast(given.hops.weights(p)), x, given))
    return found


def keep_estimated(layers: Sequence[Layer], new: Sequence[Tree], old: Sequence[Tree]) -> list[Tree]:
    """The new parameters, but for those that are estimated: no weight decay reaches them."""
    return [
        n | {name: o[name] for name in layer.estimated} if layer.estimated else n
        for layer, n, o in zip(layers, new, old, strict=True)
    ]
