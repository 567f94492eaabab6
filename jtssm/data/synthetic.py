"""Small problems with known answers, for tests, benchmarks and notebooks."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike


def separable(
    seed: int, samples: int, features: int, classes: int, dtype: DTypeLike = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """x [samples, features], y [samples]: a linear classifier exists that is right on all of them.

    Class k lies within 0.8 (in the maximum norm) of 2 along axis k, features >= classes: the largest
    of the first `classes` features tells the class.
    """
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, samples).astype(np.int32)
    x = rng.uniform(-0.8, 0.8, (samples, features))
    x[np.arange(samples), y] += 2
    return x.astype(dtype), y


def gratings(
    seed: int, samples: int, size: int = 32, classes: int = 10, noise: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Colour images of CIFAR's shape in which a class is the direction of stripes.

    Width, phase, contrast and colours of the stripes are random, and so is the noise: no pixel tells
    the class by itself, and the mean image of every class is grey; a small convolutional network
    learns it.

    Args:
      seed: of everything.
      size: height and width.
      classes: directions, equally far apart.
      noise: standard deviation of what is added to a pixel.

    Returns:
      x float32 [samples, size, size, 3], about 0, and y int32 [samples], as many of each class.
    """
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(samples) % classes).astype(np.int32)
    row, column = np.mgrid[:size, :size] / size
    of_each = lambda low, high: rng.uniform(low, high, (samples, 1, 1))
    angle = np.pi * y[:, None, None] / classes
    along = np.cos(angle) * row + np.sin(angle) * column
    stripes = np.sin(2 * np.pi * (of_each(3, 6) * along + of_each(0, 1)))
    colours = rng.uniform(-1, 1, (samples, 1, 1, 3))
    colours /= np.linalg.norm(colours, axis=-1, keepdims=True)
    x = (of_each(0.5, 1.5) * stripes)[..., None] * colours
    return (x + noise * rng.normal(size=x.shape)).astype(np.float32), y


def block_graph(
    seed: int,
    nodes: int = 2708,
    classes: int = 7,
    words: int = 500,
    *,
    degree: float = 4.0,
    within: float = 0.8,
    telling: float = 6.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A citation-like graph: a stochastic block model whose nodes have bags of words.

    Nodes of a class are joined more often, and each class uses a tenth of the words more often than
    others do: neither words nor edges tell the class by themselves. By default of Cora's size, degree and
    share of edges within classes.

    Args:
      seed: of everything.
      words: of the dictionary; a node uses some 2 % of them.
      degree: mean number of a node's edges.
      within: share of them that join nodes of one class.
      telling: how much more often a class uses its own words.

    Returns:
      x float32 [nodes, words], 0 or 1; y int32 [nodes], as many of each class; edges int32 [edges, 2].
    """
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(nodes) % classes).astype(np.int32)
    own = rng.random((classes, words)) < 0.1
    x = rng.random((nodes, words)) < 0.02 * np.where(own[y], telling, 1.0)
    same = y[:, None] == y[None, :]
    others = nodes / classes
    chance = degree * np.where(same, within / others, (1 - within) / (nodes - others))
    joined = np.triu(rng.random((nodes, nodes)) < chance, k=1)
    return x.astype(np.float32), y, np.argwhere(joined).astype(np.int32)


def baskets(
    seed: int,
    samples: int,
    items: int = 4096,
    genres: int = 32,
    *,
    bought: int = 20,
    loyalty: float = 0.3,
) -> tuple[np.ndarray, np.ndarray]:
    """A recommendation-like task of wide and sparse inputs: of which genre a customer buys most.

    Every item is of one genre, a few are bought by many (Zipf's law: 1 / (rank + 10)); a customer buys
    from a favourite genre or, more often, whatever is popular. No item tells its genre.

    Args:
      seed: of everything: items of another seed are of other genres.
      samples: customers.
      bought: items of a customer, some of them the same.
      loyalty: share of them that is of the favourite genre; the others are of any.

    Returns:
      x float32 [samples, items], 1 where an item was bought, else 0; y int32 [samples], the favourite.
    """
    rng = np.random.default_rng(seed)
    genre = rng.permutation(np.arange(items) % genres)
    popular = 1 / (rng.permutation(items) + 10)

    def draw(weight: np.ndarray, num: int | tuple[int, ...]) -> np.ndarray:
        return rng.choice(items, num, p=weight / weight.sum())

    y = rng.integers(0, genres, samples).astype(np.int32)
    basket = np.asarray(draw(popular, (samples, bought)))
    loyal = rng.random((samples, bought)) < loyalty
    for k in range(genres):
        own = loyal & (y == k)[:, None]
        basket[own] = draw(popular * (genre == k), own.sum())
    x = np.zeros((samples, items), np.float32)
    x[np.arange(samples)[:, None], basket] = 1
    return x, y
