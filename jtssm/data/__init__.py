"""Data sets in their original files, split into train, valid and test.

A folder (`data_dir`, else the environment variable JTSSM_DATA, else a cache folder) holds one folder
a data set with its original files; spoken digits may also lie in it directly. The handwritten digits
come with scikit-learn and need no file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from jtssm import checks, files
from jtssm.data import archives


class Split(NamedTuple):
    """Samples and their labels."""

    x: np.ndarray  # float32 [n, h, w, c], or [n, features]
    y: np.ndarray  # int32 [n]


class Splits(NamedTuple):
    """The samples to train on, to choose on, and to report on."""

    train: Split
    valid: Split
    test: Split


class Source(NamedTuple):
    """Where a data set comes from."""

    title: str
    files: tuple[str, ...]  # relative to its folder
    obtain: str
    read: Callable[[Path], Splits]
    unpacked: tuple[str, ...] = ()  # files that serve in place of `files`, an archive


def default_dir() -> Path:
    """JTSSM_DATA, or jtssm in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("JTSSM_DATA", cache / "jtssm"))


def load(
    name: str,
    *,
    size: int | None = None,
    flat: bool = False,
    data_dir: str | os.PathLike | None = None,
) -> Splits:
    """A data set by name; `sources()` lists them.

    Args:
      name: "digits", "mnist", "fashion-mnist", "kuzushiji-mnist", "cifar-10" or "spoken-digits".
      size: height and width to zoom square images down to, bilinearly, as the papers do (14 for
        MNIST); None: as they are.
      flat: [n, features] instead of [n, h, w, c].
      data_dir: the folder of data sets; None: `default_dir()`.

    Returns:
      Splits with pixels in [0, 1]. valid is held out of the original training set: of the MNIST
      family and of CIFAR-10 its last 5 000, of spoken digits the takes 5 to 9; the digits are
      dealt out 1 200 / 237 / 360 by a fixed permutation.

    Raises:
      ValueError: an unknown name, a size that does not fit, a file that is truncated or holds
        something else.
      FileNotFoundError: a missing file; the message says what to do.

    Examples:
      >>> from jtssm import data
      >>> splits = data.load("digits", flat=True)
      >>> splits.train.x.shape
      (1200, 64)
    """
    checks.one_of("name", name, list(SOURCES))
    flat = checks.flag("flat", flat)
    root = default_dir() if data_dir is None else checks.path("data_dir", data_dir)
    splits = SOURCES[name].read(root / name)
    if size is not None:
        height, width = splits.train.x.shape[1:3]
        (size,) = checks.count(size=size)
        if height != width or size > height:
            raise ValueError(
                f"size: expected None for {name}, or at most {height} where images are square; "
                f"got {size} for images of {height} x {width}"
            )
        splits = Splits(*(Split(zoomed(s.x, size), s.y) for s in splits))
    if flat:
        splits = Splits(*(Split(s.x.reshape(len(s.x), -1), s.y) for s in splits))
    return splits


def zoomed(images: np.ndarray, size: int) -> np.ndarray:
    """Images [n, h, h, c] zoomed bilinearly to [n, size, size, c]."""
    factor = size / images.shape[1]
    return ndimage.zoom(images, (1, factor, factor, 1), order=1) if factor != 1 else images


def missing(name: str, data_dir: str | os.PathLike | None = None) -> list[Path]:
    """The files of a data set that are not there."""
    folder = (default_dir() if data_dir is None else Path(data_dir)) / name
    return [folder / file for file in _wanted(folder) if _find(folder, file) is None]


def sources() -> dict[str, Source]:
    """The data sets there are, by name."""
    return dict(SOURCES)


def _wanted(folder: Path) -> tuple[str, ...]:
    """The files of a data set, or those unpacked from its archive where only they are there."""
    source = SOURCES[folder.name]
    packed = any(_find(folder, file) for file in source.files)
    loose = any(_find(folder, file) for file in source.unpacked)
    return source.unpacked if loose and not packed else source.files


def _find(folder: Path, file: str) -> Path | None:
    """The file in its folder, unpacked beside it, or (spoken digits) one folder up."""
    beside = folder.parent / file.replace("-", "_") if file.endswith(".npz") else folder / file
    candidates = (folder / file, folder / file.removesuffix(".gz"), beside)
    return next((path for path in candidates if path.is_file()), None)


def _path(folder: Path, file: str) -> Path:
    path = _find(folder, file)
    if path is None:
        raise FileNotFoundError(
            f"{folder / file}: expected this file of {folder.name}; it is not there. "
            f"{SOURCES[folder.name].obtain} Then put it there, or name the folder that holds "
            f"{folder.name}/ with --data-dir or JTSSM_DATA."
        )
    return path


def _digits(folder: Path) -> Splits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the embedded digits need scikit-learn: pip install 'jtssm[data]'"
        ) from error
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = (digits.images[order, :, :, None] / 16).astype(np.float32)
    y = digits.target[order].astype(np.int32)
    return _cut(x, y, 1200, 1437)


def _cut(x: np.ndarray, y: np.ndarray, valid: int, test: int) -> Splits:
    return Splits(
        Split(x[:valid], y[:valid]), Split(x[valid:test], y[valid:test]), Split(x[test:], y[test:])
    )


MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _mnist(folder: Path) -> Splits:
    train_x, train_y, test_x, test_y = (_path(folder, file) for file in MNIST_FILES)
    return _held_out(_images_and_labels(train_x, train_y), _images_and_labels(test_x, test_y))


def _held_out(train: Split, test: Split) -> Splits:
    held = len(train.y) - min(5000, len(train.y) // 2)
    return Splits(
        Split(train.x[:held], train.y[:held]), Split(train.x[held:], train.y[held:]), test
    )


def _images_and_labels(images: Path, labels: Path) -> Split:
    x, y = read_idx(images, 3), read_idx(labels, 1)
    if len(x) != len(y):
        raise ValueError(
            f"{labels}: expected {len(x)} labels, one for each image of {images.name}; got "
            f"{len(y)}: fetch both files again from the same place"
        )
    if y.max(initial=0) > 9:
        raise ValueError(
            f"{labels}: expected labels 0..9; got {y.max()}: the file holds something else"
        )
    return Split((x[..., None] / np.float32(255)).astype(np.float32), y.astype(np.int32))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An array of bytes from an IDX file, gzipped or not.

    Raises:
      ValueError: damaged gzip, another magic number than that of unsigned bytes in `dimensions`
        dimensions, or another length than the header says.
    """
    again, start = "fetch it again", 4 + 4 * dimensions
    with archives.reading(path) as file:
        header = archives.up_to(file, start)
        shape = _idx_shape(path, header, dimensions)
        wanted = prod(shape)  # of Python's integers: numpy's would overflow
        if wanted > archives.MOST:
            raise ValueError(
                f"{path}: expected at most {archives.MOST} bytes; got a header that says {shape}: {again}"
            )
        content = archives.up_to(file, wanted + 1)
    if len(content) != wanted:
        got = len(content) if len(content) < wanted else "more"
        raise ValueError(f"{path}: expected {wanted} bytes for {shape}; got {got}: {again}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _idx_shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    """What the header of an IDX file says, its magic number and sizes of at least 1."""
    magic = 0x0800 + dimensions
    if len(header) < 4 + 4 * dimensions or struct.unpack(">I", header[:4])[0] != magic:
        found = f"got one that begins with {header[:4].hex() or 'nothing'}"
        kind = "images" if dimensions == 3 else "labels"
        raise ValueError(
            f"{path}: expected an IDX file of {kind} (magic number {magic:08x}); {found}: "
            f"fetch it again, or check that images and labels are not exchanged"
        )
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if min(shape) < 1:
        raise ValueError(f"{path}: expected sizes of at least 1; got {shape}: fetch it again")
    return shape


CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR_BATCHES = (
    *(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
    "cifar-10-batches-bin/test_batch.bin",
)
CIFAR_MOST = 2**28  # bytes that its archive may unpack to; it has 184 million


def _cifar(folder: Path) -> Splits:
    if _wanted(folder) == CIFAR_BATCHES:
        paths = [_path(folder, file) for file in CIFAR_BATCHES]
        contents = {path: files.content(path, archives.MOST) for path in paths}
    else:
        contents = archives.members(_path(folder, CIFAR_ARCHIVE), CIFAR_BATCHES, CIFAR_MOST)
    *train, test = (_records(path, content) for path, content in contents.items())
    return _held_out(_pictures(np.concatenate(train)), _pictures(test))


def _records(path: Path, content: bytes) -> np.ndarray:
    if not content or len(content) % 3073:
        raise ValueError(
            f"{path}: expected one or more records of 3073 bytes; got {len(content)} bytes: "
            f"fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    if records[:, 0].max() > 9:
        raise ValueError(f"{path}: expected labels 0..9; got {records[:, 0].max()}: fetch it again")
    return records


def _pictures(records: np.ndarray) -> Split:
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    x = np.divide(planes.transpose(0, 2, 3, 1), 255, dtype=np.float32, order="C")
    return Split(x, records[:, 0].astype(np.int32))


def _spoken_digits(folder: Path) -> Splits:
    path = _path(folder, "spoken-digits.npz")
    expected = "a spoken digits archive with arrays x [n, 4096], y [n] and index [n]"
    x, y, take = archives.arrays(path, ("x", "y", "index"), expected)
    shapes = x.shape, y.shape, take.shape
    if not x.size or x.shape[1:] != (4096,) or not y.shape == take.shape == x.shape[:1]:
        raise ValueError(f"{path}: expected {expected}, n of at least 1; got {shapes}")
    kinds = x.dtype.kind, y.dtype.kind, take.dtype.kind
    if kinds[0] not in "fiu" or not {*kinds[1:]} <= {*"iu"} or not np.isfinite(x).all():
        raise ValueError(
            f"{path}: expected {expected}, x of finite numbers, y and index of integers; got "
            f"{x.dtype}, {y.dtype}, {take.dtype}: fetch it again"
        )
    if y.min() < 0 or y.max() > 9:
        raise ValueError(f"{path}: expected labels 0..9; got {y.min()}..{y.max()}: fetch it again")
    x, y = x.astype(np.float32), y.astype(np.int32)
    x = (x / 80 + 1).reshape(-1, 128, 32, 1)  # dB, -80..0, to 0..1
    parts = (take >= 10, (take >= 5) & (take < 10), take < 5)
    return Splits(*(Split(x[part], y[part]) for part in parts))


def _family(title: str, site: str) -> Source:
    return Source(title, MNIST_FILES, f"Fetch the four IDX files from {site}.", _mnist)


SOURCES = {
    "digits": Source(
        "8 x 8 handwritten digits",
        (),
        "Comes with scikit-learn: pip install 'jtssm[data]'.",
        _digits,
    ),
    "mnist": _family("28 x 28 handwritten digits", "a mirror of yann.lecun.com/exdb/mnist"),
    "fashion-mnist": _family("28 x 28 clothing", "github.com/zalandoresearch/fashion-mnist"),
    "kuzushiji-mnist": _family("28 x 28 Japanese characters", "codh.rois.ac.jp/kmnist"),
    "cifar-10": Source(
        "32 x 32 colour photographs of ten kinds of things",
        (CIFAR_ARCHIVE,),
        "Fetch the binary version from www.cs.toronto.edu/~kriz/cifar.html.",
        _cifar,
        CIFAR_BATCHES,
    ),
    "spoken-digits": Source(
        "128 x 32 log-mel spectrograms of spoken digits",
        ("spoken-digits.npz",),
        "Make it from the Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset): "
        "log-mel 128 x 32, dB relative to the maximum; arrays x [n, 4096], y, index.",
        _spoken_digits,
    ),
}
