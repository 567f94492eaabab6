"""Fetching a data set by a library that knows it: Hugging Face's datasets or tensorflow-datasets.

What comes is written into the data set's folder in its original format (IDX files, binary records), with
checksums beside it, so that it is read as the original files are. The libraries check what they download
by checksums of their own; here the numbers of samples and of each label are held against the data set's,
and MNIST's samples against a digest of the originals', whatever their order. A library need not keep the
order of the original files: which samples are the last 5 000, `valid`, may then be others.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jtssm import checks
from jtssm.data import folders
from jtssm.data.cifar import CIFAR_100_FILES, CIFAR_BATCHES, records
from jtssm.data.idx import MNIST_FILES, idx_file
from jtssm.data.known import SOURCES

ROWS = 1000  # images that are decoded at once
CACHE = ".fetched"  # where the libraries keep what they downloaded, in the folder of data sets


class Part(NamedTuple):
    """The training or the test set, as it came."""

    images: np.ndarray  # uint8 [n, h, w, c]
    labels: np.ndarray  # integers [n, labels a sample]


class Remote(NamedTuple):
    """A data set as the libraries know it, and what it must be."""

    tfds: str  # its name in tensorflow-datasets
    hub: str | None  # in datasets; None: not there
    columns: tuple[str, ...]  # in datasets: the image, then the labels
    shape: tuple[int, int, int]  # of an image
    classes: tuple[int, ...]  # of each of its labels
    samples: tuple[int, int]  # of training, of test
    files: Callable[[Part, Part], dict[str, bytes]]
    equal: bool = True  # whether every label is on as many samples
    digests: tuple[str, str] | None = None  # of the samples in any order, `digest`


def _idx(train: Part, test: Part) -> dict[str, bytes]:
    arrays = (a for part in (train, test) for a in (part.images[..., 0], part.labels[:, -1]))
    names = (name.removesuffix(".gz") for name in MNIST_FILES)
    return {name: idx_file(a) for name, a in zip(names, arrays, strict=True)}


def _cifar_10(train: Part, test: Part) -> dict[str, bytes]:
    rows = np.array_split(np.arange(len(train.labels)), 5)
    parts = [*(Part(train.images[r], train.labels[r]) for r in rows), test]
    return {name: records(*part) for name, part in zip(CIFAR_BATCHES, parts, strict=True)}


def _cifar_100(train: Part, test: Part) -> dict[str, bytes]:
    return {name: records(*part) for name, part in zip(CIFAR_100_FILES, (train, test), strict=True)}


GREY, COLOUR = (28, 28, 1), (32, 32, 3)
REMOTES = {
    "mnist": Remote(
        "mnist",
        "ylecun/mnist",
        ("image", "label"),
        GREY,
        (10,),
        (60_000, 10_000),
        _idx,
        equal=False,
        digests=(
            "9d8eeba6bf9c8b67238f298efb7b4969b9a114a57d5a1965da59bfa8dde274b6",
            "b95ed1a0c48880c2c7e38b95f5accd69208dd0debd35518bac49cdbcd676aab9",
        ),
    ),
    "fashion-mnist": Remote(
        "fashion_mnist",
        "zalando-datasets/fashion_mnist",
        ("image", "label"),
        GREY,
        (10,),
        (60_000, 10_000),
        _idx,
    ),
    "kuzushiji-mnist": Remote(
        "kmnist", None, ("image", "label"), GREY, (10,), (60_000, 10_000), _idx
    ),
    "cifar-10": Remote(
        "cifar10", "uoft-cs/cifar10", ("img", "label"), COLOUR, (10,), (50_000, 10_000), _cifar_10
    ),
    "cifar-100": Remote(
        "cifar100",
        "uoft-cs/cifar100",
        ("img", "coarse_label", "fine_label"),
        COLOUR,
        (20, 100),
        (50_000, 10_000),
        _cifar_100,
    ),
}
LIBRARIES = {"datasets": "datasets", "tensorflow-datasets": "tensorflow_datasets"}

PIP = {
    "datasets": "'jtssm[fetch]'",
    "tensorflow-datasets": "tensorflow-datasets tensorflow",
}


def get(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    through: str | None = None,
) -> Path:
    """Fetch a data set into its folder, in its original format; `jtssm data get NAME` in a shell.

    Args:
      name: "mnist", "fashion-mnist", "kuzushiji-mnist", "cifar-10" or "cifar-100".
      data_dir: the folder of data sets; None: `default_dir()`. What the library downloads stays in its
        folder `.fetched`, which may be removed.
      through: "datasets" or "tensorflow-datasets" (which also needs tensorflow, to prepare what it
        downloads); None: the first of them that is installed and knows the data set.

    Returns:
      The folder that `load` reads.

    Raises:
      ValueError: an unknown name, a library that does not know it, or what came is not the data set.
      ImportError: no such library is installed; it says what to install.
      OSError: it could not be fetched, or written.
    """
    checks.one_of("name", name, list(SOURCES))
    root = folders.default_dir() if data_dir is None else checks.path("data_dir", data_dir)
    if name not in REMOTES:
        raise ValueError(
            f"name: expected one of {sorted(REMOTES)}, which can be fetched; got {name!r}: "
            f"{SOURCES[name].obtain}"
        )
    library = _library(name, through)
    parts = _fetched(name, library, root / CACHE)
    for part, came in zip(("train", "test"), parts, strict=True):
        _check(name, part, came)
    train, test = (Part(came.images, came.labels.astype(np.uint8)) for came in parts)
    folders.write(root / name, REMOTES[name].files(train, test))
    return root / name


def _library(name: str, through: str | None) -> str:
    """The library to ask."""
    known = [a for a in LIBRARIES if a == "tensorflow-datasets" or REMOTES[name].hub is not None]
    if through is not None:
        checks.one_of("through", through, known)
    asked = known if through is None else [through]
    for library in asked:
        if find_spec(LIBRARIES[library]) is not None:
            return library
    raise ImportError(
        f"{name}: expected {' or '.join(asked)} to fetch it with; got none: pip install "
        f"{PIP[asked[0]]}, or get it by hand: {SOURCES[name].obtain}"
    )


def _fetched(name: str, library: str, cache: Path) -> tuple[Part, Part]:
    """The training and the test set, by a library."""
    read = {"tensorflow-datasets": _by_tfds, "datasets": _by_hub}[library]
    module = importlib.import_module(LIBRARIES[library])
    try:
        return (
            read(module, REMOTES[name], "train", cache),
            read(module, REMOTES[name], "test", cache),
        )
    except Exception as error:  # the libraries have many
        line = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        raise OSError(
            f"{name}: expected to fetch it through {library}; got {line}: try again, or get it by hand: "
            f"{SOURCES[name].obtain}"
        ) from error


def _by_tfds(tfds: Any, remote: Remote, split: str, cache: Path) -> Part:
    """A part by tensorflow-datasets, which checks what it downloads."""
    source = tfds.data_source(remote.tfds, split=split, data_dir=cache)
    labels = ("coarse_label", "label")[-len(remote.classes) :]
    images, told = [], []
    for sample in source:
        images.append(sample["image"])
        told.append([sample[each] for each in labels])
    return Part(np.asarray(images), np.asarray(told))


def _by_hub(datasets: Any, remote: Remote, split: str, cache: Path) -> Part:
    """A part by Hugging Face's datasets, which checks what it downloads."""
    found = datasets.load_dataset(
        remote.hub, split=split, cache_dir=str(cache), verification_mode="all_checks"
    ).with_format("numpy")
    image, *labels = remote.columns
    images, told = [], []
    for start in range(0, len(found), ROWS):
        rows = found[start : start + ROWS]
        images += [np.asarray(a).reshape(remote.shape) for a in rows[image]]
        told.append(np.stack([rows[each] for each in labels], axis=1))
    return Part(np.asarray(images), np.concatenate(told))


def _check(name: str, part: str, came: Part) -> None:
    """It is the data set: its shapes, numbers of samples and labels, and its samples where known.

    Raises:
      ValueError: it is not.
    """
    remote = REMOTES[name]
    num = remote.samples[("train", "test").index(part)]
    wanted = (num, *remote.shape), (num, len(remote.classes))
    got = came.images.shape, came.labels.shape
    if got != wanted or came.images.dtype != np.uint8:
        raise ValueError(
            f"{name}: {part}: expected uint8 images and labels of shapes {wanted}; got "
            f"{came.images.dtype} of {got}: fetch it again"
        )
    for labels, classes in zip(came.labels.T, remote.classes, strict=True):
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"{name}: {part}: expected labels 0..{classes - 1}; got {labels.min()}..{labels.max()}"
            )
        counts = np.bincount(labels, minlength=classes)
        if remote.equal and counts.min() != counts.max():
            raise ValueError(
                f"{name}: {part}: expected {num // classes} samples of each label; got {counts.min()} "
                f"to {counts.max()}: fetch it again"
            )
    told = None if remote.digests is None else remote.digests[("train", "test").index(part)]
    if told is not None and digest(came) != told:
        raise ValueError(
            f"{name}: {part}: expected its samples; got others, or some twice: fetch it again"
        )


def digest(part: Part) -> str:
    """The sum of SHA-256 over samples (labels, then pixels): the same in every order."""
    rows = np.concatenate([part.labels, part.images.reshape(len(part.images), -1)], axis=1)
    numbers = (hashlib.sha256(row.tobytes()).digest() for row in rows.astype(np.uint8))
    return f"{sum(int.from_bytes(a) for a in numbers) % 2**256:064x}"
