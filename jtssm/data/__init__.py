"""Data sets in their original files, split into train, valid and test; samples of one's own.

A folder (`data_dir`, else the environment variable JTSSM_DATA, else a cache folder) holds one folder
a data set with its original files; spoken digits may also lie in it directly. The handwritten digits
come with scikit-learn and need no file. `get` fetches the others.
"""

from __future__ import annotations

import os
from pathlib import Path

from jtssm import checks
from jtssm.data import folders
from jtssm.data.cifar import CIFAR_ARCHIVE, CIFAR_BATCHES
from jtssm.data.dicts import Pairs, pairs
from jtssm.data.fetching import get
from jtssm.data.folders import default_dir
from jtssm.data.idx import MNIST_FILES, read_idx
from jtssm.data.known import SOURCES, Source
from jtssm.data.own import from_arrays
from jtssm.data.splits import Split, Splits, zoomed

__all__ = [
    "CIFAR_ARCHIVE",
    "CIFAR_BATCHES",
    "MNIST_FILES",
    "SOURCES",
    "Pairs",
    "Source",
    "Split",
    "Splits",
    "default_dir",
    "from_arrays",
    "get",
    "load",
    "missing",
    "pairs",
    "read_idx",
    "sources",
]


def load(
    name: str,
    *,
    size: int | None = None,
    flat: bool = False,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    split: str | None = None,
) -> Splits:
    """A data set by name; `sources()` lists them.

    Args:
      name: "digits", "mnist", "fashion-mnist", "kuzushiji-mnist", "cifar-10", "cifar-100" or
        "spoken-digits".
      size: height and width to zoom square images down to, bilinearly, as the papers do (14 for
        MNIST); None: as they are.
      flat: [n, features] instead of [n, h, w, c].
      data_dir: the folder of data sets; None: `default_dir()`.
      download: whether files that are not there are fetched first, by `get`.
      split: of spoken digits "takes", their own (None), or "speakers": the sixth tests, the fifth is held
        out, and neither is heard in training.

    Returns:
      Splits with pixels in [0, 1]. valid is held out of the original training set: of the MNIST
      family and of CIFAR its last 5 000, of spoken digits the takes 5 to 9; the digits are
      dealt out 1 200 / 237 / 360 by a fixed permutation.

    Raises:
      ValueError: an unknown name, a size that does not fit, a file that is truncated, holds
        something else, or is not the one that `get` wrote.
      FileNotFoundError: a missing file; the message says what to do.
      ImportError, OSError: what is missing could not be fetched.

    Examples:
      >>> from jtssm import data
      >>> splits = data.load("digits", flat=True)
      >>> splits.train.x.shape
      (1200, 64)
    """
    checks.one_of("name", name, list(SOURCES))
    flat, download = checks.flag("flat", flat), checks.flag("download", download)
    read = SOURCES[name].read
    if split is not None:
        if not SOURCES[name].others:
            raise ValueError(f"split: expected None for {name}; got {checks.shown(split)}")
        checks.one_of("split", split, list(SOURCES[name].others))
        read = SOURCES[name].others[split]
    root = default_dir() if data_dir is None else checks.path("data_dir", data_dir)
    if missing(name, root):
        _obtain(name, root, download)
    folders.check(root / name, (*SOURCES[name].files, *SOURCES[name].unpacked))
    splits = read(root / name)
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


def _obtain(name: str, root: Path, download: bool) -> None:
    """Fetch what is missing, or say how it is got."""
    if download:
        get(name, data_dir=root)
        return
    raise FileNotFoundError(
        f"{missing(name, root)[0]}: expected this file of {name}; it is not there. "
        f"{SOURCES[name].obtain} Then put it there, or name the folder that holds "
        f"{name}/ with --data-dir or JTSSM_DATA. Or let it be fetched: jtssm data get {name}, "
        f"data.load({name!r}, download=True)."
    )


def missing(name: str, data_dir: str | os.PathLike | None = None) -> list[Path]:
    """The files of a data set that are not there."""
    folder = (default_dir() if data_dir is None else Path(data_dir)) / name
    source = SOURCES[name]
    files = folders.wanted(folder, source.files, source.unpacked)
    return [folder / file for file in files if folders.find(folder, file) is None]


def sources() -> dict[str, Source]:
    """The data sets there are, by name."""
    return dict(SOURCES)
