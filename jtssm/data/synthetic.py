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
