"""Layers that add their inputs to what they make of them: a block is one layer.

    bottleneck   relu(x + f(x)), f of three convolutions (He et al. 2015, arXiv 1512.03385)
    attention    x + attention(norm(x)), one half of a transformer's block
    perceptron   x + perceptron(norm(x)), the other half

and what ends a transformer. None of them can be dealt to independent subnets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.nn.images import convolution
from jtssm.nn.layer import Layer, Shape
from jtssm.nn.network import estimate_layers, run_layers
from jtssm.nn.norm import EPSILON
from jtssm.nn.ops import PLAIN, Products, in_full

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
    return _residual(f"{name} {normalisation}", path, shortcut, relu)


def _residual(
    name: str, path: list[Layer], shortcut: list[Layer], activation: Callable[[Array], Array]
) -> Layer:
    """activation(path(x) + shortcut(x)) as one layer; parameters bear the number of their part."""
    parts, turn = [*path, *shortcut], len(path)

    def out(shape: Shape) -> Shape:
        ends = [_shapes(run, shape)[-1] for run in (path, shortcut)]
        if ends[0] != ends[1]:
            raise ValueError(
                f"{name}: expected samples whose shape it keeps, {ends[0]}; got {ends[1]}: widen=True "
                f"takes others"
            )
        return ends[0]

    def inputs(shape: Shape) -> list[Shape]:
        return [*_shapes(path, shape)[:-1], *_shapes(shortcut, shape)[:-1]]

    def init(key: Array, shape: Shape, dtype: Any) -> Tree:
        keys = jax.random.split(key, len(parts))
        drawn = zip(parts, keys, inputs(shape), strict=True)
        return _numbered([part.init(k, s, dtype) for part, k, s in drawn])

    def apply(params: Tree, x: Array, products: Products) -> Array:
        trees, inner = _by_part(params, len(parts)), _inside(products)
        y = run_layers(path, trees[:turn], x, inner)
        return activation(y + run_layers(shortcut, trees[turn:], x, inner))

    def estimate(params: Tree, x: Array, products: Products) -> Tree:
        trees, inner = _by_part(params, len(parts)), _inside(products)
        found = estimate_layers(path, trees[:turn], x, inner)
        return _numbered([*found, *estimate_layers(shortcut, trees[turn:], x, inner)])

    estimated = _numbered([dict.fromkeys(part.estimated) for part in parts])
    return Layer(
        name=name,
        init=init,
        apply=apply,
        shape=out,
        cost=lambda shape: sum(p.cost(s) for p, s in zip(parts, inputs(shape), strict=True)),
        splits={"gathered": _numbered([part.splits["gathered"] for part in parts])},
        estimate=estimate if estimated else None,
        estimated=tuple(estimated),
        statistics=tuple(taken for part in parts for taken in part.statistics),
        uncast=tuple(_numbered([dict.fromkeys(part.uncast) for part in parts])),
    )


def _shapes(layers: Sequence[Layer], shape: Shape) -> list[Shape]:
    """Of a sample before the first layer and after each."""
    shapes = [tuple(shape)]
    for layer in layers:
        shapes.append(layer.shape(shapes[-1]))
    return shapes


def _numbered(trees: Sequence[dict]) -> dict:
    """Parameters of the parts of a block, W of the first as W0: one flat dict, as layers have."""
    return {f"{name}{k}": a for k, tree in enumerate(trees) for name, a in tree.items()}


def _by_part(params: dict, parts: int) -> list[dict]:
    """The inverse of `_numbered`, for fewer than ten parts."""
    of = lambda k: {name[:-1]: a for name, a in params.items() if name[-1] == str(k)}
    return [of(k) for k in range(parts)]


def _inside(products: Products) -> Callable[[int], Products]:
    """The products of a block's parts: the block itself has changed the layout of its inputs."""
    inner = products._replace(enter=PLAIN.enter, leave=PLAIN.leave, weights=PLAIN.weights)
    return lambda i: inner


def attention(width: int, heads: int) -> Layer:
    """x + attention(norm(x)) of tokens [tokens, width], each of which sees all: one layer.

    Parameters: gamma, beta [width] of the norm; W1 [width, heads * 3 * width / heads], b1: a head's
    query, key and value side by side, head after head; W2 [width, width], b2. Forms on a grid: "batch",
    "gathered" and "paired", which splits the heads.

    Raises:
      ValueError: heads that do not divide the width; when a network is built, other samples.
    """
    (width,) = checks.count(width=width)
    heads = checks.divides("heads", heads, width, "numbers of a token")
    size = width // heads

    def cost(shape: Shape) -> int:
        """Both batched products have tokens x tokens x width multiply-adds."""
        tokens = shape[0]
        return tokens * 4 * width**2 + 2 * tokens**2 * width

    between = lambda z: _attended(z, size)
    return _half(f"attention {width} / {heads}", width, (3 * width, width), heads, between, cost)


def perceptron(width: int, hidden: int) -> Layer:
    """x + W2 gelu(W1 norm(x) + b1) + b2 of every token of [tokens, width]: one layer.

    GELU in its tanh form. Parameters: gamma, beta [width], W1 [width, hidden], b1, W2 [hidden, width],
    b2. Forms on a grid: "batch", "gathered" and "paired", which splits the hidden neurons.

    Raises:
      ValueError: numbers below 1; when a network is built, other samples.
    """
    width, hidden = checks.count(width=width, hidden=hidden)
    cost = lambda shape: shape[0] * 2 * width * hidden
    return _half(f"perceptron {width} {hidden}", width, (hidden, hidden), hidden, jax.nn.gelu, cost)


def _half(
    name: str, width: int, inner: tuple[int, int], units: int, between: Callable, cost: Callable
) -> Layer:
    """x + between(norm(x) W1 + b1) W2 + b2, W1 [width, inner[0]], W2 [inner[1], width]."""
    columns, rows = inner

    def init(key: Array, shape: Shape, dtype: Any) -> Tree:
        one, two = jax.random.split(key)
        draw = jax.nn.initializers.lecun_normal()
        first = {"W1": draw(one, (width, columns), dtype), "b1": jnp.zeros(columns, dtype)}
        second = {"W2": draw(two, (rows, width), dtype), "b2": jnp.zeros(width, dtype)}
        return _norm_params(width, dtype) | first | second

    def apply(params: Tree, x: Array, products: Products) -> Array:
        b, tokens, _ = x.shape
        h = _normed(params, x).reshape(b * tokens, width)
        z = between(products.dense(h, params["W1"], params["b1"]).reshape(b, tokens, -1))
        z = products.second(z.reshape(b * tokens, -1), params["W2"], params["b2"])
        return x + z.reshape(b, tokens, width)

    whole = dict.fromkeys(("gamma", "beta", "b2"), -1)
    return Layer(
        name=name,
        init=init,
        apply=apply,
        shape=lambda shape: _tokens(name, width, shape),
        cost=cost,
        splits={
            "gathered": whole | {"W1": 1, "b1": -1, "W2": 1},
            "paired": whole | {"W1": 1, "b1": 0, "W2": 0},
        },
        pair=units,
        prepares=True,
        uncast=("gamma", "beta"),
    )


def _attended(z: Array, size: int) -> Array:
    """softmax(q k^T / sqrt(size)) v of each head: z [b, tokens, heads * 3 * size] -> [.., heads * size].

    The heads are those at hand.
    """
    b, tokens, _ = z.shape
    q, k, v = (z.reshape(b, tokens, -1, 3, size)[..., part, :] for part in range(3))
    scores = jnp.einsum("bqhc,bkhc->bhqk", q, k) / math.sqrt(size)
    seen = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores), v)
    return seen.reshape(b, tokens, -1)


def _norm_params(width: int, dtype: Any) -> Tree:
    return {"gamma": jnp.ones(width, dtype), "beta": jnp.zeros(width, dtype)}


def _normed(params: Tree, x: Array) -> Array:
    """gamma (x - mean) / sqrt(var + EPSILON) + beta of every token of x [b, tokens, width].

    Computed in float32 at least, as all normalisation; the result is in the dtype of x.
    """
    dtype, x = x.dtype, in_full(x)
    mean = x.mean(axis=-1, keepdims=True)
    var = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    gamma, beta = (params[name][None, None, :] for name in ("gamma", "beta"))
    return ((x - mean) * lax.rsqrt(var + EPSILON) * gamma + beta).astype(dtype)


def mean_token(width: int) -> Layer:
    """The mean over the tokens of norm(x): [tokens, width] -> [width]."""
    name = f"mean of tokens {width}"

    def apply(params: Tree, x: Array, products: Products) -> Array:
        # a grid flattens images where samples of one dimension follow
        tokens = x.reshape(x.shape[0], -1, width)
        return _normed(params, tokens).mean(axis=1)

    return Layer(
        name=name,
        init=lambda key, shape, dtype: _norm_params(width, dtype),
        apply=apply,
        shape=lambda shape: _tokens(name, width, shape)[1:],
        cost=lambda shape: 0,
        splits={},
        uncast=("gamma", "beta"),
    )


def _tokens(name: str, width: int, shape: Shape) -> Shape:
    """The shape of samples that are tokens of a width."""
    if len(shape) != 2 or shape[1] != width:
        raise ValueError(
            f"{name}: expected samples of tokens (number, {width}); got shape {tuple(shape)}"
        )
    return tuple(shape)
