"""The data sets there are: their files, where they come from, what reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jtssm.data.cifar import (
    CIFAR_100_ARCHIVE,
    CIFAR_100_FILES,
    CIFAR_ARCHIVE,
    CIFAR_BATCHES,
    cifar_10,
    cifar_100,
)
from jtssm.data.idx import MNIST_FILES, mnist
from jtssm.data.splits import Splits, cut
from jtssm.data.spoken import by_speaker, by_take


class Source(NamedTuple):
    """Where a data set comes from."""

    title: str
    files: tuple[str, ...]  # relative to its folder
    obtain: str
    read: Callable[[Path], Splits]
    unpacked: tuple[str, ...] = ()  # files that serve in place of `files`, an archive
    others: Mapping[str, Callable[[Path], Splits]] = {}  # of splits that have names


def digits(folder: Path) -> Splits:
    """The digits that come with scikit-learn, dealt out by a fixed permutation."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the embedded digits need scikit-learn: pip install 'jtssm[data]'"
        ) from error
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    x = (found.images[order, :, :, None] / 16).astype(np.float32)
    y = found.target[order].astype(np.int32)
    return cut(x, y, 1200, 1437)


def _family(title: str, site: str) -> Source:
    return Source(title, MNIST_FILES, f"Fetch the four IDX files from {site}.", mnist)


SOURCES = {
    "digits": Source(
        "8 x 8 handwritten digits",
        (),
        "Comes with scikit-learn: pip install 'jtssm[data]'.",
        digits,
    ),
    "mnist": _family("28 x 28 handwritten digits", "a mirror of yann.lecun.com/exdb/mnist"),
    "fashion-mnist": _family("28 x 28 clothing", "github.com/zalandoresearch/fashion-mnist"),
    "kuzushiji-mnist": _family("28 x 28 Japanese characters", "codh.rois.ac.jp/kmnist"),
    "cifar-10": Source(
        "32 x 32 colour photographs of ten kinds of things",
        (CIFAR_ARCHIVE,),
        "Fetch the binary version from www.cs.toronto.edu/~kriz/cifar.html.",
        cifar_10,
        CIFAR_BATCHES,
    ),
    "cifar-100": Source(
        "32 x 32 colour photographs of a hundred kinds of things",
        (CIFAR_100_ARCHIVE,),
        "Fetch the binary version from www.cs.toronto.edu/~kriz/cifar.html.",
        cifar_100,
        CIFAR_100_FILES,
    ),
    "spoken-digits": Source(
        "128 x 32 log-mel spectrograms of spoken digits",
        ("spoken-digits.npz",),
        "Make it from the recordings of the Free Spoken Digit Dataset "
        "(github.com/Jakobovski/free-spoken-digit-dataset): "
        "python -m benchmarks.make_spoken_digits RECORDINGS FILE.",
        by_take,
        others={"takes": by_take, "speakers": by_speaker},
    ),
}
