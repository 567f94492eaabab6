"""Spectrograms of spoken digits, split by the number of the take or by who speaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jtssm.data import archives
from jtssm.data.folders import path_of
from jtssm.data.splits import Split, Splits

EXPECTED = "a spoken digits archive with arrays x [n, 4096], y [n] and {} [n]"


def by_take(folder: Path) -> Splits:
    """The data set's own split: takes 0 to 4 of every speaker test, 5 to 9 are held out."""
    x, y, take = _read(folder, "index")
    return _parts(x, y, take >= 10, (take >= 5) & (take < 10), take < 5)


def by_speaker(folder: Path) -> Splits:
    """The last speaker tests, the last but one is held out: nobody is heard in two parts."""
    x, y, speaker = _read(folder, "speaker")
    known = np.unique(speaker)
    if len(known) < 3:
        path = path_of(folder, "spoken-digits.npz")
        raise ValueError(f"{path}: expected three speakers or more; got {len(known)}")
    *_, held, test = known
    return _parts(x, y, speaker < held, speaker == held, speaker == test)


def _parts(x: np.ndarray, y: np.ndarray, *parts: np.ndarray) -> Splits:
    return Splits(*(Split(x[part], y[part]) for part in parts))


def _read(folder: Path, told: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images 0 to 1, labels, and what tells their part."""
    path = path_of(folder, "spoken-digits.npz")
    expected = EXPECTED.format(told)
    x, y, part = archives.arrays(path, ("x", "y", told), expected)
    shapes = x.shape, y.shape, part.shape
    if not x.size or x.shape[1:] != (4096,) or not y.shape == part.shape == x.shape[:1]:
        raise ValueError(f"{path}: expected {expected}, n of at least 1; got {shapes}")
    kinds = x.dtype.kind, y.dtype.kind, part.dtype.kind
    if kinds[0] not in "fiu" or not {*kinds[1:]} <= {*"iu"} or not np.isfinite(x).all():
        raise ValueError(
            f"{path}: expected {expected}, x of finite numbers, y and {told} of integers; got "
            f"{x.dtype}, {y.dtype}, {part.dtype}: fetch it again"
        )
    if y.min() < 0 or y.max() > 9:
        raise ValueError(f"{path}: expected labels 0..9; got {y.min()}..{y.max()}: fetch it again")
    x, y = x.astype(np.float32), y.astype(np.int32)
    x = (x / 80 + 1).reshape(-1, 128, 32, 1)  # dB, -80..0, to 0..1
    return x, y, part
