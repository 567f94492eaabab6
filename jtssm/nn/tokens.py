"""Layers of tokens [samples, tokens, width]: a transformer's block in two halves, its begin, its ends.

    embedding    numbers of words, and their places, as vectors
    attention    x + attention(norm(x)), one half of a block; of a decoder to what came before
    perceptron   x + perceptron(norm(x)), the other half
    mean_token   the mean over the tokens
    scores       outputs of every token

None of them can be dealt to independent subnets.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.nn.layer import Layer, Shape
from jtssm.nn.norm import EPSILON
from jtssm.nn.ops import Products, in_full

NORM = ("gamma", "beta")  # parameters of the norm, [width] each


def attention(width: int, heads: int, *, causal: bool = False) -> Layer:
    """x + attention(norm(x)) of tokens [tokens, width]: one layer.

    Parameters: gamma, beta [width] of the norm; W1 [width, heads * 3 * width / heads], b1: a head's
    query, key and value side by side, head after head; W2 [width, width], b2. Forms on a grid: "batch",
    "gathered" and "paired", which splits the heads.

    Args:
      causal: whether a token sees itself and those before it alone; False: all. The products are those
        of all pairs in either case.

    Raises:
      ValueError: heads that do not divide the width; when a network is built, other samples.
    """
    (width,) = checks.count(width=width)
    heads = checks.divides("heads", heads, width, "numbers of a token")
    return Attention(width, heads, checks.flag("causal", causal))


def perceptron(width: int, hidden: int) -> Layer:
    """x + W2 gelu(W1 norm(x) + b1) + b2 of every token of [tokens, width]: one layer.

    GELU in its tanh form. Parameters: gamma, beta [width], W1 [width, hidden], b1, W2 [hidden, width],
    b2. Forms on a grid: "batch", "gathered" and "paired", which splits the hidden neurons.

    Raises:
      ValueError: numbers below 1; when a network is built, other samples.
    """
    width, hidden = checks.count(width=width, hidden=hidden)
    return Perceptron(width, hidden)


class Half(Layer):
    """x + between(norm(x) W1 + b1) W2 + b2, of tokens [tokens, width]."""

    width: int

    @property
    @abstractmethod
    def inner(self) -> tuple[int, int]:
        """Columns of W1, and rows of W2."""

    @abstractmethod
    def between(self, z: Array) -> Array:
        """What stands between the products: of [b, tokens, columns] here, [b, tokens, rows] here."""

    def init(self, key: Array, shape: Shape, dtype: DTypeLike) -> Tree:
        """gamma, beta of the norm; W1, W2 from LeCun's normal; b1, b2 from 0."""
        (columns, rows), width = self.inner, self.width
        one, two = jax.random.split(key)
        draw = jax.nn.initializers.lecun_normal()
        first = {"W1": draw(one, (width, columns), dtype), "b1": jnp.zeros(columns, dtype)}
        second = {"W2": draw(two, (rows, width), dtype), "b2": jnp.zeros(width, dtype)}
        return _norm_params(width, dtype) | first | second

    def apply(self, params: Tree, x: Array, products: Products) -> Array:
        """x + between(norm(x) W1 + b1) W2 + b2."""
        h = products.dense(_normed(params, x), params["W1"], params["b1"])
        return x + products.second(self.between(h), params["W2"], params["b2"])

    def shape(self, shape: Shape) -> Shape:
        """That of the inputs."""
        return _tokens(self.name, self.width, shape)

    @property
    def uncast(self) -> tuple[str, ...]:
        """The norm's: computed in float32 at least."""
        return NORM


@dataclass(frozen=True, eq=False, repr=False)
class Attention(Half):
    """x + attention(norm(x)); see `attention`."""

    width: int
    heads: int
    causal: bool = False

    @property
    def name(self) -> str:
        """Width and heads."""
        return f"{'causal ' * self.causal}attention {self.width} / {self.heads}"

    @property
    def inner(self) -> tuple[int, int]:
        """Query, key and value of all heads; their values."""
        return 3 * self.width, self.width

    def between(self, z: Array) -> Array:
        """softmax(q k^T / sqrt(size)) v of every head, over the tokens that a token sees."""
        return _attended(z, self.width // self.heads, self.causal)

    def cost(self, shape: Shape) -> int:
        """Both batched products have tokens x tokens x width multiply-adds."""
        tokens, width = shape[0], self.width
        return tokens * 4 * width**2 + 2 * tokens**2 * width


@dataclass(frozen=True, eq=False, repr=False)
class Perceptron(Half):
    """x + perceptron(norm(x)); see `perceptron`."""

    width: int
    hidden: int

    @property
    def name(self) -> str:
        """Both widths."""
        return f"perceptron {self.width} {self.hidden}"

    @property
    def inner(self) -> tuple[int, int]:
        """The hidden neurons."""
        return self.hidden, self.hidden

    def between(self, z: Array) -> Array:
        """GELU in its tanh form."""
        return jax.nn.gelu(z)

    def cost(self, shape: Shape) -> int:
        """One for each entry of W1 and W2, a token."""
        return shape[0] * 2 * self.width * self.hidden


def _attended(z: Array, size: int, causal: bool) -> Array:
    """softmax(q k^T / sqrt(size)) v of each head: z [b, tokens, heads * 3 * size] -> [.., heads * size].

    The heads are those at hand.
    """
    b, tokens, _ = z.shape
    q, k, v = (z.reshape(b, tokens, -1, 3, size)[..., part, :] for part in range(3))
    scores = jnp.einsum("bqhc,bkhc->bhqk", q, k) / math.sqrt(size)
    if causal:
        before = jnp.tril(jnp.ones((1, 1, tokens, tokens), bool))
        scores = jnp.where(before, scores, -jnp.inf)  # a token sees itself: no row is empty
    seen = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores), v)
    return seen.reshape(b, tokens, -1)


def _norm_params(width: int, dtype: DTypeLike) -> Tree:
    return {"gamma": jnp.ones(width, dtype), "beta": jnp.zeros(width, dtype)}


def _normed(params: Tree, x: Array) -> Array:
    """gamma (x - mean) / sqrt(var + EPSILON) + beta of every token of x [b, tokens, width].

    Computed in float32 at least, as all normalisation; the result is in the dtype of x.
    """
    dtype, x = x.dtype, in_full(x)
    mean = x.mean(axis=-1, keepdims=True)
    var = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    gamma, beta = (params[name][None, None, :] for name in NORM)
    return ((x - mean) * lax.rsqrt(var + EPSILON) * gamma + beta).astype(dtype)


def mean_token(width: int) -> Layer:
    """The mean over the tokens of norm(x): [tokens, width] -> [width]."""
    return MeanToken(width)


@dataclass(frozen=True, eq=False, repr=False)
class MeanToken(Layer):
    """The mean over the tokens of norm(x); see `mean_token`."""

    width: int

    @property
    def name(self) -> str:
        """With its width."""
        return f"mean of tokens {self.width}"

    def init(self, key: Array, shape: Shape, dtype: DTypeLike) -> Tree:
        """gamma, beta of the norm."""
        return _norm_params(self.width, dtype)

    def apply(self, params: Tree, x: Array, products: Products) -> Array:
        """[b, width]."""
        # a grid flattens images where samples of one dimension follow
        tokens = x.reshape(x.shape[0], -1, self.width)
        return _normed(params, tokens).mean(axis=1)

    def shape(self, shape: Shape) -> Shape:
        """(width,)."""
        return _tokens(self.name, self.width, shape)[1:]

    def cost(self, shape: Shape) -> int:
        """No multiply-adds."""
        return 0

    @property
    def uncast(self) -> tuple[str, ...]:
        """The norm's: computed in float32 at least."""
        return NORM


def embedding(vocabulary: int, width: int) -> Layer:
    """Numbers of words [tokens], from 0, as their vectors plus those of their places: [tokens, width].

    Parameters: table [vocabulary, width], places [tokens, width], from normals of deviation 0.02. A
    number that no word has is refused by `init` and `fit`; where nobody can look it makes NaN. Form on a
    grid: "batch".

    Raises:
      ValueError: numbers below 1; when a network is built, samples that are no rows of words.
    """
    vocabulary, width = checks.count(vocabulary=vocabulary, width=width)
    return Embedding(vocabulary, width)


@dataclass(frozen=True, eq=False, repr=False)
class Embedding(Layer):
    """Words and their places as vectors; see `embedding`."""

    vocabulary: int
    width: int

    @property
    def name(self) -> str:
        """How many words, and their width."""
        return f"embedding {self.vocabulary} {self.width}"

    @property
    def integer(self) -> bool:
        """Words are integers."""
        return True

    @property
    def words(self) -> int:
        """Those of its table."""
        return self.vocabulary

    def init(self, key: Array, shape: Shape, dtype: DTypeLike) -> Tree:
        """table, places: normal, of deviation 0.02."""
        draw = jax.nn.initializers.normal(0.02)
        one, two = jax.random.split(key)
        table = draw(one, (self.vocabulary, self.width), dtype)
        return {"table": table, "places": draw(two, (shape[0], self.width), dtype)}

    def apply(self, params: Tree, x: Array, products: Products) -> Array:
        """[b, tokens, width]."""
        words = x.astype(jnp.int32)
        # a negative number would count from the end
        words = jnp.where(words < 0, self.vocabulary, words)
        vectors = jnp.take(params["table"], words, axis=0, mode="fill", fill_value=jnp.nan)
        return vectors + params["places"][None]

    def shape(self, shape: Shape) -> Shape:
        """(tokens, width)."""
        if len(shape) != 1:
            raise ValueError(
                f"{self.name}: expected samples of words (number,); got shape {tuple(shape)}"
            )
        return (*shape, self.width)

    def cost(self, shape: Shape) -> int:
        """No multiply-adds: rows are picked."""
        return 0


def scores(width: int, classes: int) -> Layer:
    """norm(x) W + b of every token: [tokens, width] -> [tokens, classes].

    Parameters: gamma, beta [width], W [width, classes], b. Forms on a grid: "batch", "gathered".

    Raises:
      ValueError: numbers below 1; when a network is built, other samples.
    """
    width, classes = checks.count(width=width, classes=classes)
    return Scores(width, classes)


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Layer):
    """norm(x) W + b of every token; see `scores`."""

    width: int
    classes: int

    @property
    def name(self) -> str:
        """Both widths."""
        return f"scores {self.width} {self.classes}"

    def init(self, key: Array, shape: Shape, dtype: DTypeLike) -> Tree:
        """gamma, beta of the norm; W from LeCun's normal; b from 0."""
        W = jax.nn.initializers.lecun_normal()(key, (self.width, self.classes), dtype)
        return _norm_params(self.width, dtype) | {"W": W, "b": jnp.zeros(self.classes, dtype)}

    def apply(self, params: Tree, x: Array, products: Products) -> Array:
        """[b, tokens, classes]."""
        return products.dense(_normed(params, x), params["W"], params["b"])

    def shape(self, shape: Shape) -> Shape:
        """(tokens, classes)."""
        return (*_tokens(self.name, self.width, shape)[:1], self.classes)

    def cost(self, shape: Shape) -> int:
        """One for each entry of W, a token."""
        return shape[0] * self.width * self.classes

    @property
    def uncast(self) -> tuple[str, ...]:
        """The norm's: computed in float32 at least."""
        return NORM


def _tokens(name: str, width: int, shape: Shape) -> Shape:
    """The shape of samples that are tokens of a width."""
    if len(shape) != 2 or shape[1] != width:
        raise ValueError(
            f"{name}: expected samples of tokens (number, {width}); got shape {tuple(shape)}"
        )
    return tuple(shape)
