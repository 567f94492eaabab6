"""Layers of images [samples, height, width, channels], and networks of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jtssm import checks
from jtssm.arrays import Array
from jtssm.nn.dropout import dropouts
from jtssm.nn.layer import Layer, Shape
from jtssm.nn.network import Network, sequence
from jtssm.nn.norm import find
from jtssm.nn.ops import Window
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
    size = window.size
    checks.activation(activation)
    norm = find(normalisation)
    scale = jax.nn.initializers.he_normal if activation else jax.nn.initializers.lecun_normal

    def init(key: Array, shape: Shape, dtype: Any) -> dict:
        kernel = (size, size, shape[-1] // groups, channels)
        W = {"W": scale(in_axis=(0, 1, 2))(key, kernel, dtype)}
        return W | (norm.init(channels, True, dtype) if norm else {"b": jnp.zeros(channels, dtype)})

    def product(params, x, products):
        convolve = lambda rows, *pads: products.convolved(rows, params["W"], window, pads, groups)
        z = products.windowed(convolve, x, window, 0.0)
        return z + params["b"][None, None, None, :] if "b" in params else z

    def apply(params, x, products):
        z = product(params, x, products)
        z = norm.apply(params, z, products) if norm else z
        return z if activation is None else activation(z)

    def out(shape: Shape) -> Shape:
        checks.divides("groups", groups, shape[-1], "input channels")
        return (*_sides("convolution", window, shape), channels)

    estimate = norm and norm.estimated and (
        lambda params, x, products: norm.estimate(params, product(params, x, products), products)
    )  # fmt: skip
    names = norm.init(1, True, jnp.float32) if norm else ("b",)
    title = (f"convolution {size}x{size} {channels}", _named(activation), normalisation)
    return Layer(
        name=" ".join(word for word in title if word),
        init=init,
        apply=apply,
        shape=out,
        cost=lambda shape: prod(out(shape)) * size * size * shape[-1] // groups,
        splits={
            "gathered": {"W": 3} | dict.fromkeys(names, -1),
            "model": {"W": 3} | dict.fromkeys(names, 0),
        }
        | ({"row": {"W": 2} | dict.fromkeys(names, -1)} if groups == 1 else {}),
        activation=activation,
        estimate=estimate or None,
        estimated=norm.estimated if norm else (),
        statistics=(norm.statistics(channels),) if norm else (),
        uncast=tuple(names) if norm else (),
        window=window,
        groups=groups,
    )  # fmt: skip


def max_pool(size: int, stride: int | None = None, padding: str = "VALID") -> Layer:
    """The largest of every size x size pixels of a channel; stride: `size` unless given.

    Raises:
      ValueError: as `convolution`.
    """

    def largest(x, window, pads):
        dims, strides = (1, window.size, window.size, 1), (1, window.stride, window.stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, dims, strides, ((0, 0), *pads, (0, 0)))

    return _pool("max_pool", size, stride, padding, largest, float("-inf"))


def mean_pool(size: int, stride: int | None = None, padding: str = "VALID") -> Layer:
    """The mean of every size x size pixels of a channel, padding counted as zeros; see `max_pool`."""

    def mean(x, window, pads):
        dims, strides = (1, window.size, window.size, 1), (1, window.stride, window.stride, 1)
        sums = lax.reduce_window(x, 0.0, lax.add, dims, strides, ((0, 0), *pads, (0, 0)))
        return sums / window.size**2

    return _pool("mean_pool", size, stride, padding, mean, 0.0)


def _pool(name: str, size: int, stride: int | None, padding: str, pool: Callable, fill) -> Layer:
    window = _window(size, size if stride is None else stride, padding)

    def apply(_, x, products):
        return products.windowed(lambda rows, *pads: pool(rows, window, pads), x, window, fill)

    return Layer(
        name=f"{name} {size}x{size}",
        init=lambda key, shape, dtype: {},
        apply=apply,
        shape=lambda shape: (*_sides(name, window, shape), shape[-1]),
        cost=lambda shape: 0,
        splits={"model": {}},
        window=window,
        mixes=False,
    )


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


def _named(activation: Callable | None) -> str:
    return "" if activation is None else getattr(activation, "__name__", str(activation))


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
