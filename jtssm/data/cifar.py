"""The binary files of CIFAR-10 and CIFAR-100: records of labels and 3072 bytes, colour by colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jtssm import files
from jtssm.data import archives
from jtssm.data.folders import path_of, wanted
from jtssm.data.splits import Split, Splits, held_out

CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR_BATCHES = (
    *(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
    "cifar-10-batches-bin/test_batch.bin",
)
CIFAR_100_ARCHIVE = "cifar-100-binary.tar.gz"
CIFAR_100_FILES = ("cifar-100-binary/train.bin", "cifar-100-binary/test.bin")
MOST = 2**28  # bytes that an archive may unpack to; each of theirs has 184 million
PIXELS = 3072  # bytes of an image


def cifar_10(folder: Path) -> Splits:
    """CIFAR-10, from its archive or from its files."""
    return _splits(folder, CIFAR_ARCHIVE, CIFAR_BATCHES, labels=1, classes=10)


def cifar_100(folder: Path) -> Splits:
    """CIFAR-100 with its 100 fine labels, from its archive or from its files."""
    return _splits(folder, CIFAR_100_ARCHIVE, CIFAR_100_FILES, labels=2, classes=100)


def _splits(
    folder: Path, archive: str, names: Sequence[str], *, labels: int, classes: int
) -> Splits:
    """labels: bytes of them before the pixels, of which the last counts."""
    if wanted(folder, (archive,), names) == names:
        contents = {
            path: files.content(path, archives.MOST)
            for path in (path_of(folder, name) for name in names)
        }
    else:
        contents = archives.members(path_of(folder, archive), names, MOST)
    *train, test = (_records(path, a, labels, classes) for path, a in contents.items())
    return held_out(_pictures(np.concatenate(train), labels), _pictures(test, labels))


def _records(path: Path, content: bytes, labels: int, classes: int) -> np.ndarray:
    size = labels + PIXELS
    if not content or len(content) % size:
        raise ValueError(
            f"{path}: expected one or more records of {size} bytes; got {len(content)} bytes: "
            f"fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    largest = records[:, labels - 1].max()
    if largest >= classes:
        raise ValueError(f"{path}: expected labels 0..{classes - 1}; got {largest}: fetch it again")
    return records


def _pictures(records: np.ndarray, labels: int) -> Split:
    planes = records[:, labels:].reshape(-1, 3, 32, 32)
    x = np.divide(planes.transpose(0, 2, 3, 1), 255, dtype=np.float32, order="C")
    return Split(x, records[:, labels - 1].astype(np.int32))


def records(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Images [n, 32, 32, 3] and labels [n, 1 or 2], of bytes, as their files hold them."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), PIXELS)
    return np.concatenate([labels, planes], axis=1).astype(np.uint8).tobytes()
