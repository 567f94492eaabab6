"""Samples of one's own: an npz file with x and y, and what is held out of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jtssm import checks
from jtssm.data import archives

PAIRS = {"train": ("x", "y"), "valid": ("x_valid", "y_valid"), "test": ("x_test", "y_test")}
WORDS = tuple(word for pair in PAIRS.values() for word in pair)
EXPECTED = "an npz file of arrays of numbers"
AGAIN = "write it again, e.g. numpy.savez(path, x=x, y=y)"


def from_npz(
    path: str | os.PathLike, names: Mapping[str, str] | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Samples from an npz file: x and y, and if they are there x_valid, y_valid, x_test and y_test.

    Args:
      path: the file, as `numpy.savez` or `savez_compressed` writes it.
      names: what the file calls them, {"x": "tokens", "y": "next"}; only these are read. None: x, y and
        so on, and the file holds nothing else.

    Returns:
      {"train": (x, y)}, and "valid" and "test" if they are there: arrays [samples, ...] of the dtypes of
      the file, integers among them.

    Raises:
      ValueError: no regular file, no such archive, damaged or pickled; arrays that lack, that nobody
        asked for, of no numbers, without samples, of unequal numbers of them, or larger than the memory.
      FileNotFoundError: no such file.
    """
    path, memory = checks.path("path", path), _memory()
    _regular(path)
    _fits(path, path.stat().st_size, memory)
    sizes = archives.sizes(path, EXPECTED, AGAIN, memory)
    chosen = _chosen(path, names, list(sizes))
    _fits(path, sum(sizes[name] for name in chosen.values()), memory)
    read = archives.arrays(path, list(chosen.values()), EXPECTED, AGAIN, memory)
    arrays = dict(zip(chosen, read, strict=True))
    for word, a in arrays.items():
        _numbers(path, chosen[word], a)
    pairs = {part: pair for part, pair in PAIRS.items() if pair[0] in arrays}
    return {part: _pair(path, arrays[x], arrays[y], (x, y)) for part, (x, y) in pairs.items()}


def _chosen(path: Path, names: Mapping[str, str] | None, there: Sequence[str]) -> dict[str, str]:
    """The names in the file by the words of this module, x and y among them, none alone."""
    for word in names or {}:
        checks.one_of("names", word, WORDS)
    chosen = dict(names or {word: word for word in WORDS if word in there})
    lacking = [word for pair in PAIRS.values() for word in pair if word not in chosen]
    alone = [word for word in lacking if word in "xy" or _other(word) in chosen]
    if alone:
        raise ValueError(
            f"{path}: expected arrays x and y, y_valid beside x_valid, y_test beside x_test; got no "
            f"{', no '.join(alone)} among the arrays {sorted(there)}: name them, e.g. x=tokens,y=next"
        )
    strange = sorted(set(chosen.values()) - set(there))
    if strange:
        raise ValueError(f"{path}: expected arrays {strange}; got {sorted(there)}")
    unread = sorted(set(there) - set(chosen.values())) if names is None else []
    if unread:
        raise ValueError(
            f"{path}: expected only {', '.join(WORDS)}; got {unread} too: leave them out, or name what "
            f"is to be read, e.g. x=x,y=y"
        )
    return chosen


def _other(word: str) -> str:
    """x_test of y_test, and the other way round."""
    return {"x": "y", "y": "x"}[word[0]] + word[1:]


def _regular(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected an npz file with x and y; it is not there")
    if not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path}: expected an npz file with x and y; got no regular file")


def _memory() -> int:
    """Bytes of this machine's memory, where they can be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not of every system
        return sys.maxsize


def _fits(path: Path, size: int, memory: int) -> None:
    """The arrays together are smaller than the memory."""
    if size > memory:
        raise ValueError(
            f"{path}: expected arrays of at most {memory} bytes, this machine's memory; got {size}: "
            f"write fewer samples, or train from a stream with jtssm.fit"
        )


def _numbers(path: Path, name: str, a: np.ndarray) -> None:
    if a.dtype.kind not in "iuf" or not a.ndim or not a.shape[0]:
        raise ValueError(
            f"{path}: {name}: expected integers or floats, [samples, ...]; got {a.dtype} {a.shape}"
        )
    checks.array(f"{path}: {name}", a)


def _pair(
    path: Path, x: np.ndarray, y: np.ndarray, words: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    if len(x) != len(y):
        raise ValueError(
            f"{path}: expected as many samples in {words[0]} as in {words[1]}; got {len(x)} and {len(y)}"
        )
    return x, y
