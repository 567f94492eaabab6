"""Networks: layers one after another, their parameters and their shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.nn.adapted import Adapted, Together
from jtssm.nn.boundary import Sample, SampleTree, described, sample_of, stacked
from jtssm.nn.drawing import drawn
from jtssm.nn.inputs import as_input
from jtssm.nn.layer import Layer, Shape
from jtssm.nn.norm import Statistics
from jtssm.nn.ops import PLAIN, Products, entering, narrowed, widened

MOST_LINES = 16  # of layers in a network's repr


class Network(NamedTuple):
    """Layers and what one sample is before the first and after each: len(shapes) = L + 1."""

    layers: tuple[Layer, ...]
    # of one array its shape; a `SampleTree`, which refuses whoever needs one array, of anything else
    shapes: tuple[Sample, ...]

    def __repr__(self) -> str:
        return "\n".join(shown(self))

    def init(self, key: Array, dtype: DTypeLike = jnp.float32) -> list[Tree]:
        """Random parameters, one tree a layer; layer i draws from fold_in(key, i)."""
        return self.init_layers(range(len(self.layers)), key, dtype)

    def init_layers(
        self, layers: Sequence[int], key: Array, dtype: DTypeLike = jnp.float32
    ) -> list[Tree]:
        """Random parameters of some layers: the same, whichever device draws them."""
        draw = lambda i: lambda key: self.layers[i].init(key, self._taken(i), dtype)
        return drawn([draw(i) for i in layers], [jax.random.fold_in(key, i) for i in layers])

    @property
    def boundaries(self) -> tuple[Tree, ...]:
        """One sample before the first layer and after each: trees of `jax.ShapeDtypeStruct`.

        Floats are float32 there: they are as wide as the samples are.
        """
        integer = [self.integer, *(False for _ in self.layers)]
        return tuple(map(described, self.shapes, integer))

    def apply(self, params: Sequence[Tree], x: Tree) -> Array:
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

    def estimate(self, params: Sequence[Tree], x: Tree) -> list[Tree]:
        """The parameters with the statistics of x [samples, ...], layer after layer."""
        x = as_input(self, x)
        return estimate_layers(self.layers, params, x, lambda i: PLAIN)

    @property
    def integer(self) -> bool:
        """Whether samples are one array of integers (tokens)."""
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
        return list(map(self.cost, range(len(self.layers))))

    def cost(self, i: int) -> int:
        """Multiply-adds a sample of the forward product of layer i."""
        return self.layers[i].cost(self._taken(i))

    @property
    def outputs(self) -> Shape:
        """The shape of one sample of the outputs: they are one array of floats."""
        return cast(Shape, self.shapes[-1])

    def _taken(self, i: int) -> Shape:
        """What layer i takes; of one that takes trees it may be a `SampleTree`."""
        return cast(Shape, self.shapes[i])


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
    met: dict[tuple[int, Sample], Tree] = {}  # layers that are one object are traced once
    for layer, shape in zip(net.layers, net.shapes, strict=False):
        if (id(layer), shape) not in met:
            init = lambda key, layer=layer, shape=shape: layer.init(key, shape, jnp.float32)
            met[id(layer), shape] = jax.eval_shape(init, jax.random.key(0))
    return [met[id(layer), shape] for layer, shape in zip(net.layers, net.shapes, strict=False)]


def sequence(layers: Sequence[Layer], in_shape: Sequence[int] | Tree) -> Network:
    """A network of the given layers for samples of shape `in_shape`.

    Args:
      layers: one after the other.
      in_shape: of one sample: the shape of an array, or a tree of `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: no layers or something else, a shape that a layer does not take or that has no numbers,
        a tree before a layer that takes one array, or at the end.
    """
    if not isinstance(layers, (list, tuple)) or not layers:
        raise ValueError(
            f"layers: expected at least one layer, in a list, e.g. [dense(10)]; got "
            f"{checks.shown(layers)}"
        )
    for i, layer in enumerate(layers):
        checks.instance(f"layers[{i}]", layer, Layer, "dense(10)")
    shapes: list[Sample] = [_first(in_shape)]
    for i, layer in enumerate(layers):
        if isinstance(shapes[-1], SampleTree) and not layer.trees:
            raise ValueError(
                f"layers[{i}]: expected one array before {layer.name!r}; got a tree, {shapes[-1]}: let "
                f"the layer before it give one array"
            )
        given: Sample = layer.shape(cast(Shape, shapes[-1]))
        if not isinstance(given, SampleTree):
            given = checks.counts(
                f"layers[{i}]: outputs of {layer.name!r}", given, "(10,)", least=0
            )
        shapes.append(given)
    if isinstance(shapes[-1], SampleTree):
        raise ValueError(
            f"layers: expected one array of floats from the last, which the loss is of; got "
            f"{shapes[-1]} from {layers[-1].name!r}"
        )
    return Network(tuple(layers), tuple(shapes))


def _first(in_shape: Sequence[int] | Tree) -> Sample:
    leaves = jax.tree.leaves(in_shape)
    described = leaves and all(isinstance(a, jax.ShapeDtypeStruct) for a in leaves)
    if isinstance(in_shape, SampleTree) or described:
        tree = in_shape.tree if isinstance(in_shape, SampleTree) else in_shape
        return sample_of(stacked(tree, 1))
    return checks.counts("in_shape", in_shape, "(28, 28, 1)")


def run_layers(
    layers: Sequence[Layer],
    params: Sequence[Tree],
    x: Tree,
    products: Callable[[int], Products],
    compute_dtype: DTypeLike | None = None,
) -> Tree:
    """What the layers make of x, one after the other; products: index among them -> Products.

    compute_dtype: what the layers compute in; x and the outputs are in that of the parameters.
    """
    inputs = x
    for i, (layer, p) in enumerate(zip(layers, params, strict=True)):
        given = products(i)
        p = narrowed(given.hops.weights(p), layer.uncast, compute_dtype, given)
        x = given.hops.enter(entering(x, compute_dtype))
        x = given.hops.leave(_work(layer, given)(p, x))
    return widened(x, compute_dtype, list(params), inputs)


def _work(layer: Layer, given: Products) -> Callable[[Tree, Tree], Tree]:
    """What a layer makes of its parameters as they are stored, and of its inputs."""
    return given.hops.again(lambda p, x: layer.apply(given.hops.whole(p), x, given))


def estimate_layers(
    layers: Sequence[Layer],
    params: Sequence[Tree],
    x: Tree,
    products: Callable[[int], Products],
    compute_dtype: DTypeLike | None = None,
) -> list[Tree]:
    """Statistics of each layer from what the layers before it make of x, with their new statistics."""
    found = []
    for i, (layer, p) in enumerate(zip(layers, params, strict=True)):
        given = products(i)
        cast = lambda p, layer=layer, given=given: narrowed(p, layer.uncast, compute_dtype, given)
        x = given.hops.enter(entering(x, compute_dtype))
        if layer.estimated:
            new = layer.estimate(given.hops.whole(cast(p)), x, given)
            like = lambda a, old: a.astype(old.dtype)
            p = p | {name: jax.tree.map(like, new[name], p[name]) for name in layer.estimated}
        found.append(p)
        x = given.hops.leave(_work(layer, given)(cast(given.hops.weights(p)), x))
    return found


def keep_estimated(layers: Sequence[Layer], new: Sequence[Tree], old: Sequence[Tree]) -> list[Tree]:
    """The new parameters, but for those that are estimated: no weight decay reaches them."""
    return [
        n | {name: o[name] for name in layer.estimated} if layer.estimated else n
        for layer, n, o in zip(layers, new, old, strict=True)
    ]
