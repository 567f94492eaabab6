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
