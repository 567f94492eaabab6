"""Layers of images [samples, height, width, channels], and networks of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.nn.dropout import dropouts
from jtssm.nn.layer import Activation, Layer, Shape, titled
from jtssm.nn.linear import Linear
from jtssm.nn.network import Network, sequence
from jtssm.nn.norm import find
from jtssm.nn.ops import Products, Window
from jtssm.nn.perceptrons import dense

PADDINGS = ("VALID", "SAME")


def convolution(
    channels: int,
    size: int,
    stride: int = 1,
    padding: str = "SAME",
    activation: Callable[[Array], Array] | None = None,
    normalisation: str | None = None,
    *,
    groups: int = 1,
) -> Layer:
    """activation(x * W + b), W [size, size, in channels / groups, channels], b [channels].

    With a normalisation (`jtssm.nn.norm`) gamma and beta [channels] stand in for b.
    Under an activation W starts from He's normal, without one from LeCun's; b starts at 0.

    Args:
      channels: of the output.
      size: of the square window.
      stride: of the window.
      padding: "VALID", or "SAME": ceil(height / stride) outputs.
      groups: into which channels are divided; those of one do not see the others'.

    Raises:
      ValueError: numbers below 1, an unknown padding or normalisation, groups that do not divide the
        channels; when a network is built, an input that is not an image or smaller than the window.
    """
    (channels,) = checks.count(channels=channels)
    groups = checks.divides("groups", groups, channels, "channels")
    window = _window(size, stride, padding)
    checks.activation(activation)
    find(normalisation)
    return Convolution(channels, *window, activation, normalisation, groups)


@dataclass(frozen=True, eq=False, repr=False)
class Convolution(Linear):
    """activation(x * W + b), W [size, size, in channels / groups, channels]; see `convolution`."""

    channels: int
    size: int
    stride: int = 1
    padding: str = "SAME"
    activation: Activation | None = None
    normalisation: str | None = None
    groups: int = 1

    @property
    def name(self) -> str:
        """Window, channels, activation and normalisation."""
        size = f"{self.size}x{self.size}"
        return titled(f"convolution {size} {self.channels}", self.activation, self.normalisation)

    @property
    def window(self) -> Window:
        """What an output pixel sees."""
        return Window(self.size, self.stride, self.padding)

    @property
    def columns(self) -> int:
        """Its channels."""
        return self.channels

    def kernel(self, shape: Shape) -> Shape:
        """[size, size, in channels / groups, channels]."""
        return self.size, self.size, shape[-1] // self.groups, self.channels

    def sums(self, params: Tree, x: Array, products: Products) -> Array:
        """x * W + b for images x [b, height, width, channels]."""
        W, window = params["W"], self.window
        convolve = lambda rows, *pads: products.convolved(rows, W, window, pads, self.groups)
        z = products.windowed(convolve, x, window, 0.0)
        return z + params["b"][None, None, None, :] if "b" in params else z

    def shape(self, shape: Shape) -> Shape:
        """(height, width, channels) of an image of the outputs."""
        checks.divides("groups", self.groups, shape[-1], "input channels")
        return (*_sides("convolution", self.window, shape), self.channels)

    def cost(self, shape: Shape) -> int:
        """One for each entry of W at each pixel of the outputs."""
        return prod(self.shape(shape)) * self.size**2 * shape[-1] // self.groups


def max_pool(size: int, stride: int | None = None, padding: str = "VALID") -> Layer:
    """The largest of every size x size pixels of a channel; stride: `size` unless given.

    Raises:
      ValueError: as `convolution`.
    """
    return MaxPool(*_window(size, size if stride is None else stride, padding))


def mean_pool(size: int, stride: int | None = None, padding: str = "VALID") -> Layer:
    """The mean of every size x size pixels of a channel, padding counted as zeros; see `max_pool`."""
    return MeanPool(*_window(size, size if stride is None else stride, padding))


class Pool(Layer):
    """One number out of every size x size pixels of a channel."""

    size: int
    stride: int
    padding: str
    title: ClassVar[str]
    fill: ClassVar[float]  # what stands for pixels outside the image

    @abstractmethod
    def pooled(self, x: Array, pads: Sequence[tuple[int, int]]) -> Array:
        """Images x [b, height, width, channels], padded so, pooled."""

    @property
    def name(self) -> str:
        """What it takes, and of how many pixels."""
        return f"{self.title} {self.size}x{self.size}"

    @property
    def window(self) -> Window:
        """What an output pixel sees."""
        return Window(self.size, self.stride, self.padding)

    def init(self, key: Array, shape: Shape, dtype: DTypeLike) -> Tree:
        """No parameters."""
        return {}

    def apply(self, params: Tree, x: Array, products: Products) -> Array:
        """The pooled images [b, height', width', channels]."""
        pool = lambda rows, *pads: self.pooled(rows, pads)
        return products.windowed(pool, x, self.window, self.fill)

    def reduced(
        self,
        x: Array,
        pads: Sequence[tuple[int, int]],
        start: float,
        by: Callable[[Array, Array], Array],
    ) -> Array:
        """The pixels that each output sees, reduced."""
        dims, strides = (1, self.size, self.size, 1), (1, self.stride, self.stride, 1)
        return lax.reduce_window(x, start, by, dims, strides, ((0, 0), *pads, (0, 0)))

    def shape(self, shape: Shape) -> Shape:
        """(height, width, channels) of an image of the outputs."""
        return (*_sides(self.title, self.window, shape), shape[-1])

    def cost(self, shape: Shape) -> int:
        """No multiply-adds."""
        return 0


@dataclass(frozen=True, eq=False, repr=False)
class MaxPool(Pool):
    """The largest of every size x size pixels; see `max_pool`."""

    size: int
    stride: int
    padding: str = "VALID"
    title = "max_pool"
    fill = float("-inf")

    def pooled(self, x: Array, pads: Sequence[tuple[int, int]]) -> Array:
        """Their largest."""
        return self.reduced(x, pads, -jnp.inf, lax.max)


@dataclass(frozen=True, eq=False, repr=False)
class MeanPool(Pool):
    """The mean of every size x size pixels; see `mean_pool`."""

    size: int
    stride: int
    padding: str = "VALID"
    title = "mean_pool"
    fill = 0.0

    def pooled(self, x: Array, pads: Sequence[tuple[int, int]]) -> Array:
        """Their mean."""
        return self.reduced(x, pads, 0.0, lax.add) / self.size**2


def _window(size: int, stride: int, padding: str) -> Window:
    size, stride = checks.count(size=size, stride=stride)
    checks.one_of("padding", padding, PADDINGS)
    return Window(size, stride, padding)


def _sides(name: str, window: Window, shape: Shape) -> tuple[int, int]:
    """Height and width of the output for images of a shape."""
    if len(shape) != 3 or min(window.outputs(n) for n in shape[:2]) < 1:
        raise ValueError(
            f"{name}: expected images (height, width, channels) of at least {window.size} x "
            f"{window.size} pixels; got samples of shape {tuple(shape)}"
        )
    return window.outputs(shape[0]), window.outputs(shape[1])


def convnet(
    in_shape: Shape,
    classes: int,
    *,
    channels: Sequence[int] = (16, 32),
    hidden: Sequence[int] = (128,),
    size: int = 3,
    activation: Callable[[Array], Array] = jax.nn.relu,
    normalisation: str | None = None,
    dropout: float = 0.0,
) -> Network:
    """A small convolutional network: convolution and 2 x 2 max pooling in turns, then a perceptron.

    Args:
      in_shape: (height, width, channels) of an image: (28, 28, 1) for MNIST.
      channels: of the convolutions.
      hidden: widths of the dense layers before the outputs.
      size: of the convolutions' windows.
      normalisation: as in `jtssm.mlp`.
      dropout: as in `jtssm.mlp`.

    Raises:
      ValueError: images too small for the pooling, or as `convolution`.
    """
    channels = checks.counts("channels", channels, "(16, 32)", least=0)
    hidden = checks.counts("hidden", hidden, "(128,)", least=0)
    blocks = [
        layer
        for c in channels
        for layer in (convolution(c, size, 1, "SAME", activation, normalisation), max_pool(2))
    ]
    drop = dropouts(dropout)
    inner = [layer for w in hidden for layer in (dense(w, activation, normalisation), *drop)]
    return sequence([*blocks, *inner, dense(classes)], in_shape)


def alexnet(classes: int = 1000, *, size: int = 227, divide: int = 1) -> Network:
    """AlexNet (Krizhevsky, Sutskever, Hinton 2012) without its normalisation and dropout.

    Eight layers with weights, of the sizes that the integrated paper's simulation rests on (convolutions
    2, 4 and 5 in two groups); three pools.

    Args:
      classes: outputs.
      size: height and width of an image; the paper's 227.
      divide: all widths and channels are divided by this, for small machines: 1, 2, 4, 8, 16 or 32.

    Raises:
      ValueError: a `divide` that does not divide the widths, images too small for the three pools.
    """
    divide = checks.divides("divide", divide, 32, "which divides all of AlexNet's widths but")
    (size,) = checks.count(size=size)
    relu, n = jax.nn.relu, lambda channels: channels // divide
    return sequence(
        [
            convolution(n(96), 11, 4, "VALID", relu),
            max_pool(3, 2),
            convolution(n(256), 5, 1, "SAME", relu, groups=2),
            max_pool(3, 2),
            convolution(n(384), 3, 1, "SAME", relu),
            convolution(n(384), 3, 1, "SAME", relu, groups=2),
            convolution(n(256), 3, 1, "SAME", relu, groups=2),
            max_pool(3, 2),
            dense(n(4096), relu),
            dense(n(4096), relu),
            dense(classes),
        ],
        (size, size, 3),
    )
