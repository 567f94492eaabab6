"""Samples in three parts: to train on, to choose on, and to report on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage


class Split(NamedTuple):
    """Samples and their labels."""

    x: np.ndarray  # float32 [n, h, w, c], or [n, features]
    y: np.ndarray  # int32 [n]


class Splits(NamedTuple):
    """The samples to train on, to choose on, and to report on."""

    train: Split
    valid: Split
    test: Split


def cut(x: np.ndarray, y: np.ndarray, valid: int, test: int) -> Splits:
    """Splits of samples in order: valid begins at that one, test at the other."""
    return Splits(
        Split(x[:valid], y[:valid]), Split(x[valid:test], y[valid:test]), Split(x[test:], y[test:])
    )


def held_out(train: Split, test: Split) -> Splits:
    """valid: the last 5000 of the original training set, of a small one its second half."""
    held = len(train.y) - min(5000, len(train.y) // 2)
    return Splits(
        Split(train.x[:held], train.y[:held]), Split(train.x[held:], train.y[held:]), test
    )


def zoomed(images: np.ndarray, size: int) -> np.ndarray:
    """Images [n, h, h, c] zoomed bilinearly to [n, size, size, c]."""
    factor = size / images.shape[1]
    return ndimage.zoom(images, (1, factor, factor, 1), order=1) if factor != 1 else images
