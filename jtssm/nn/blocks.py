"""Equal blocks as one layer, whose program is compiled once: they run in a loop over their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax import lax
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.nn.adapted import Adapted
from jtssm.nn.layer import Layer, Shape
from jtssm.nn.network import run_layers
from jtssm.nn.ops import Products, varying
from jtssm.nn.residual import by_part, inside, numbered


def repeated(layers: Sequence[Layer], times: int) -> Layer:
    """The layers one after the other, all of them `times` times, each time with weights of their own.

    One layer, `jax.lax.scan` over its parameters: those of the layers with a dimension [times] before
    their own, and the number of the layer behind their name (W1 of the second: W11). Its program has the
    size of one block's, so that it compiles in a block's time; a network is cut, and forms on a grid are
    chosen, between such layers. Forms: "batch" and "gathered".

    Args:
      layers: of one block, at most ten, which takes what it gives.
      times: blocks.

    Raises:
      ValueError: no layers or too many, numbers below 1, layers that keep statistics, draw while training
        or take anything but an array of floats, a user's module, whose weights would be the same in all
        blocks (`flax.linen.scan` repeats one within itself); when a network is built, a block that
        changes the shape of its samples.

    Examples:
      >>> from jtssm import nn
      >>> block = [nn.attention(8, 2), nn.perceptron(8, 32)]
      >>> net = nn.sequence([nn.repeated(block, 6), nn.mean_token(8), nn.dense(10)], (5, 8))
      >>> net.parameter_shapes()[0]["W11"].shape
      (6, 8, 32)
    """
    (times,) = checks.count(times=times)
    if not isinstance(layers, (list, tuple)) or not 1 <= len(layers) <= 10:
        raise ValueError(
            f"layers: expected one to ten layers of a block, in a list; got {checks.shown(layers)}"
        )
    for i, layer in enumerate(layers):
        checks.instance(f"layers[{i}]", layer, Layer, "perceptron(64, 256)")
        own = isinstance(layer, Adapted) or layer.integer or layer.trees
        if own or layer.estimated or layer.statistics or layer.random:
            raise ValueError(
                f"layers[{i}]: expected a layer of jtssm or a nn.Layer of yours, of floats, that keeps "
                f"no statistics and draws nothing, e.g. perceptron(64, 256); got {layer.name!r}: let it "
                f"stand in the network by itself"
            )
    return Repeated(tuple(layers), times)


@dataclass(frozen=True, eq=False, repr=False)
class Repeated(Layer):
    """Equal blocks, one after the other; see `repeated`."""

    block: tuple[Layer, ...]
    times: int

    @property
    def name(self) -> str:
        """How often, and the names of the block's layers."""
        return f"{self.times} x ({', '.join(layer.name for layer in self.block)})"

    def shape(self, shape: Shape) -> Shape:
        """That of the inputs."""
        after = self.inputs(shape)[-1]
        if after != tuple(shape):
            raise ValueError(
                f"{self.name}: expected a block that gives what it takes, {tuple(shape)}; got {after}"
            )
        return after

    def inputs(self, shape: Shape) -> list[Shape]:
        """Samples before each layer of the block, and after the last."""
        shapes = [tuple(shape)]
        for layer in self.block:
            shapes.append(tuple(layer.shape(shapes[-1])))
        return shapes

    def init(self, key: Array, shape: Shape, dtype: DTypeLike) -> Tree:
        """Those of the layers, of every block from keys of its own.

        Raises:
          ValueError: parameters of a layer of one's own that have no names.
        """

        def draw(key: Array) -> Tree:
            keys = jax.random.split(key, len(self.block))
            each = zip(self.block, keys, self.inputs(shape), strict=False)
            return numbered([_named(layer, layer.init(k, s, dtype)) for layer, k, s in each])

        return lax.map(draw, jax.random.split(key, self.times))

    def apply(self, params: Tree, x: Array, products: Products) -> Array:
        """What the last block gives."""
        inner = inside(products)

        def run(x: Array, params: Tree) -> tuple[Array, None]:
            return run_layers(self.block, by_part(params, len(self.block)), x, inner), None

        # a loop's carry keeps its type: along which axes of a mesh it differs too
        first = jax.tree.map(lambda a: a[0], params)
        axes = jax.eval_shape(run, x, first)[0].manual_axis_type
        return lax.scan(run, varying(x, tuple(axes.varying)) if axes else x, params)[0]

    def cost(self, shape: Shape) -> int:
        """Of all blocks."""
        each = zip(self.block, self.inputs(shape), strict=False)
        return self.times * sum(layer.cost(s) for layer, s in each)

    @property
    def uncast(self) -> tuple[str, ...]:
        """Of all layers."""
        return tuple(numbered([dict.fromkeys(layer.uncast) for layer in self.block]))


def _named(layer: Layer, params: Tree) -> dict[str, Tree]:
    """The parameters of a layer of the block, by their names."""
    if not isinstance(params, dict):
        raise ValueError(
            f"layers: expected parameters by their names, e.g. {{'W': ...}}, of {layer.name!r}, which is "
            f"repeated; got {type(params).__name__}"
        )
    return params
