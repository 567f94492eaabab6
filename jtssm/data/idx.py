"""The IDX files of MNIST and its family."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path

import numpy as np

from jtssm.data import archives
from jtssm.data.folders import path_of
from jtssm.data.splits import Split, Splits, held_out

MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def mnist(folder: Path) -> Splits:
    """MNIST and its like, from the four files in the folder."""
    train_x, train_y, test_x, test_y = (path_of(folder, file) for file in MNIST_FILES)
    return held_out(_images_and_labels(train_x, train_y), _images_and_labels(test_x, test_y))


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


def idx_file(array: np.ndarray) -> bytes:
    """An array of bytes as an IDX file holds it, not packed: what `read_idx` reads."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return struct.pack(">I", 0x0800 + array.ndim) + sizes + array.astype(np.uint8).tobytes()
