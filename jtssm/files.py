"""Files as they are read and replaced: regular ones of a sane size, and none elsewhere through a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def reading(path: Path, most: int) -> Iterator[BinaryIO]:
    """A regular file, open for reading bytes.

    Args:
      most: bytes that it may have.

    Raises:
      ValueError: a pipe, which would be waited for, a device, which may not end, a folder; more bytes.
      OSError: it cannot be read.
    """
    _check(path, path.stat(), most)
    with path.open("rb") as file:
        _check(path, os.fstat(file.fileno()), most)  # in case it was exchanged since
        yield file


def content(path: Path, most: int) -> bytes:
    """What a regular file holds; see `reading`."""
    with reading(path, most) as file:
        found = file.read(most + 1)
    if len(found) > most:  # one that grows, or that says it has nothing, as those of /proc do
        raise ValueError(f"{path}: expected at most {most} bytes; got more")
    return found


def _check(path: Path, about: os.stat_result, most: int) -> None:
    kind = KINDS.get(stat.S_IFMT(about.st_mode))
    if kind is not None:
        raise ValueError(f"{path}: expected a regular file; got {kind}")
    if about.st_size > most:
        raise ValueError(f"{path}: expected at most {most} bytes; got {about.st_size}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what takes the place of a file once it is whole: nobody ever sees half of it.

    What stands there under that name is replaced; of a link the link, not what it leads to.
    """
    new = path.with_name(f".{path.stem}.{os.getpid()}.new{path.suffix}")
    new.unlink(missing_ok=True)  # what a process of this number left, or a link
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield new
        new.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say where
        raise
    finally:
        new.unlink(missing_ok=True)
