"""Layers that add their inputs to what they make of them: a block is one layer.

    bottleneck   relu(x + f(x)), f of three convolutions (He et al. 2015, arXiv 1512.03385)

The halves of a transformer's block: `jtssm.nn.tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.nn.images import convolution
from jtssm.nn.layer import Activation, Layer, Shape
from jtssm.nn.network import estimate_layers, run_layers
from jtssm.nn.norm import Statistics
from jtssm.nn.ops import Hops, Products

EXPANSION = 4  # a bottleneck block's outputs over its inner channels


def bottleneck(
    channels: int, stride: int = 1, normalisation: str = "batch", *, widen: bool = False
) -> Layer:
    """relu(x + f(x)), f of convolutions 1 x 1, 3 x 3 and 1 x 1, each normalised: one layer.

    Forms on a grid: "batch" and "gathered".

    Args:
      channels: of the first two convolutions; the third and the block have 4 times as many.
      stride: of the 3 x 3 convolution.
      widen: x goes through a normalised 1 x 1 convolution of the same stride; otherwise it is added
        as it is: it has 4 * channels already, and the stride is 1.

    Raises:
      ValueError: as `nn.convolution`; when a network is built, x of a shape that cannot be added.
    """
    (channels,), widen = checks.count(channels=channels), checks.flag("widen", widen)
    wide, relu = EXPANSION * channels, jax.nn.relu
    path = [
        convolution(channels, 1, 1, "SAME", relu, normalisation),
        convolution(channels, 3, stride, "SAME", relu, normalisation),
        convolution(wide, 1, 1, "SAME", None, normalisation),
    ]
    shortcut = [convolution(wide, 1, stride, "SAME", None, normalisation)] if widen else []
    name = f"bottleneck {channels} {wide}" + (f" /{stride}" if stride > 1 else "")
    return Residual(f"{name} {normalisation}", tuple(path), tuple(shortcut), relu)


@dataclass(frozen=True, eq=False, repr=False)
class Residual(Layer):
    """activation(path(x) + shortcut(x)) as one layer; parameters bear the number of their part."""

    title: str
    path: tuple[Layer, ...]
    shortcut: tuple[Layer, ...]  # none: x itself
    activation: Activation

    @property
    def name(self) -> str:
        """Its title."""
        return self.title

    @property
    def parts(self) -> tuple[Layer, ...]:
        """The layers of the path, then those of the shortcut."""
        return (*self.path, *self.shortcut)

    def shape(self, shape: Shape) -> Shape:
        """That of the path's outputs, which is the shortcut's."""
        ends = [_shapes(run, shape)[-1] for run in (self.path, self.shortcut)]
        if ends[0] != ends[1]:
            raise ValueError(
                f"{self.name}: expected samples whose shape it keeps, {ends[0]}; got {ends[1]}: "
                f"widen=True takes others"
            )
        return ends[0]

    def inputs(self, shape: Shape) -> list[Shape]:
        """What each part takes."""
        return [*_shapes(self.path, shape)[:-1], *_shapes(self.shortcut, shape)[:-1]]

    def init(self, key: Array, shape: Shape, dtype: DTypeLike) -> Tree:
        """Those of the parts, each from a key of its own."""
        keys = jax.random.split(key, len(self.parts))
        drawn = zip(self.parts, keys, self.inputs(shape), strict=True)
        return numbered([part.init(k, s, dtype) for part, k, s in drawn])

    def _trees(self, params: Tree) -> tuple[list[Tree], list[Tree]]:
        """The parameters of the path's parts, and of the shortcut's."""
        trees, turn = by_part(params, len(self.parts)), len(self.path)
        return trees[:turn], trees[turn:]

    def apply(self, params: Tree, x: Array, products: Products) -> Array:
        """activation(path(x) + shortcut(x))."""
        (path, shortcut), inner = self._trees(params), inside(products)
        y = run_layers(self.path, path, x, inner)
        return self.activation(y + run_layers(self.shortcut, shortcut, x, inner))

    def cost(self, shape: Shape) -> int:
        """Of all parts."""
        return sum(p.cost(s) for p, s in zip(self.parts, self.inputs(shape), strict=True))

    def estimate(self, params: Tree, x: Array, products: Products) -> Tree:
        """The parameters with the statistics of every part."""
        (path, shortcut), inner = self._trees(params), inside(products)
        found = estimate_layers(self.path, path, x, inner)
        return numbered([*found, *estimate_layers(self.shortcut, shortcut, x, inner)])

    def moving(self, params: Tree) -> Tree:
        """Of all parts."""
        trees = by_part(params, len(self.parts))
        return numbered([part.moving(p) for part, p in zip(self.parts, trees, strict=True)])

    @property
    def estimated(self) -> tuple[str, ...]:
        """Of all parts."""
        return tuple(numbered([dict.fromkeys(part.estimated) for part in self.parts]))

    @property
    def statistics(self) -> tuple[Statistics, ...]:
        """Of all parts."""
        return tuple(taken for part in self.parts for taken in part.statistics)

    @property
    def uncast(self) -> tuple[str, ...]:
        """Of all parts."""
        return tuple(numbered([dict.fromkeys(part.uncast) for part in self.parts]))


def _shapes(layers: Sequence[Layer], shape: Shape) -> list[Shape]:
    """Of a sample before the first layer and after each."""
    shapes = [tuple(shape)]
    for layer in layers:
        shapes.append(layer.shape(shapes[-1]))
    return shapes


def numbered(trees: Sequence[dict[str, Tree]]) -> dict[str, Tree]:
    """Parameters of the parts of a block, W of the first as W0: one flat dict, as layers have."""
    return {f"{name}{k}": a for k, tree in enumerate(trees) for name, a in tree.items()}


def by_part(params: dict[str, Tree], parts: int) -> list[dict[str, Tree]]:
    """The inverse of `numbered`, for ten parts at most."""
    of = lambda k: {name[:-1]: a for name, a in params.items() if name[-1] == str(k)}
    return [of(k) for k in range(parts)]


def inside(products: Products) -> Callable[[int], Products]:
    """The products of a block's parts: the block itself has changed the layout of its inputs."""
    inner = products._replace(hops=Hops(narrowed=products.hops.narrowed))
    return lambda i: inner
