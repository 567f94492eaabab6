"""The content of gzip files, tar and npz archives, unpacked in memory: nothing is written to disk.

What a file says of its sizes is checked against what is there, and against what a data set of ours may
have, before memory is taken for it; archives are read as streams, of which only what is wanted is kept.
Damage and pickles are refused by the standard library and numpy themselves.
"""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from numpy.lib import format as npy

from jtssm import files

PIECE = 2**20  # bytes that are read at once
MOST = (
    2**28
)  # bytes of a file, and of what is kept of one; the largest data set of ours has 184 million
MEMBERS = 1000  # most files in a tar archive
INFLATION = 1100  # deflate makes at most 1032 bytes of one, but for a few of a short file
Header = tuple[tuple[int, ...], bool, np.dtype]  # shape, whether columns come first, dtype
HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], Header]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """The file, gzipped or not, open for reading.

    Raises:
      ValueError: damaged gzip, no regular file, over 256 MiB.
    """
    with files.reading(path, MOST) as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            yield gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[misc]
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path}: expected a whole gzip file; got {error}: fetch it again"
            ) from error


def up_to(file: BinaryIO, size: int) -> bytes:
    """So many bytes, or what there is; memory is taken as they come."""
    pieces = []
    while size and (piece := file.read(min(size, PIECE))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def arrays(
    path: Path,
    names: Sequence[str],
    expected: str,
    hint: str = "fetch it again",
    most: int | None = None,
) -> list[np.ndarray]:
    """Arrays of an npz archive, by name.

    most: bytes of the file, and of an array; None: of a data set of ours.

    Raises:
      ValueError: no such archive, damaged, or without one of them; arrays of Python objects, which would
        be unpickled; an array of another size than its header says. `expected` says what should be there.
    """
    most = MOST if most is None else most
    with _archive(path, expected, hint, most) as archive:
        return [_array(archive, f"{name}.npy", most) for name in names]


def sizes(path: Path, expected: str, hint: str, most: int) -> dict[str, int]:
    """Bytes that each member of an npz archive says it unpacks to, by name.

    Raises:
      ValueError: no such archive, or damaged.
    """
    with _archive(path, expected, hint, most) as archive:
        return {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}


@contextmanager
def _archive(path: Path, expected: str, hint: str, most: int) -> Iterator[zipfile.ZipFile]:
    try:
        with files.reading(path, most) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except Exception as error:  # whatever zipfile, zlib and numpy raise over damaged bytes
        raise ValueError(
            f"{path}: expected {expected}; got {type(error).__name__}: {error}: {hint}"
        ) from error


def _array(archive: zipfile.ZipFile, name: str, most: int) -> np.ndarray:
    """One array, once its header agrees with its member's size, and that with the compressed size."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # as numpy writes
        raise ValueError(f"{name} packed in way {info.compress_type}")
    with archive.open(info) as member:
        shape, _, dtype = HEADERS[npy.read_magic(member)](member)
        size = info.file_size - member.tell()
        if prod(shape) * dtype.itemsize != size or info.file_size > INFLATION * info.compress_size:
            raise ValueError(f"{name} of {dtype} {shape} in {info.compress_size} bytes")
        if size > most:
            raise ValueError(f"{name} of {size} bytes, more than {most}")
        member.seek(0)
        return npy.read_array(member, allow_pickle=False)


class Refused(ValueError):
    """Of an archive, with its path."""


class Limited:
    """A file of which no more than so many bytes are read.

    Raises:
      Refused: while reading, where there are more.
    """

    def __init__(self, path: Path, file: BinaryIO, most: int):
        self.path, self.file, self.most, self.left = path, file, most, most

    def read(self, size: int) -> bytes:
        """At most `size` of the bytes to come."""
        piece = self.file.read(min(size, PIECE))
        self.left -= len(piece)
        if self.left < 0:
            raise Refused(
                f"{self.path}: expected at most {self.most} bytes unpacked; got more: fetch it again"
            )
        return piece


def members(archive: Path, names: Sequence[str], most: int) -> dict[Path, bytes]:
    """Regular files of a tar archive, gzipped or not, each by its path below the archive's.

    most: bytes that the archive may unpack to.

    Raises:
      ValueError: damaged gzip or tar, more bytes, a member that is missing or not a regular file.
    """
    with reading(archive) as file:
        stream = Limited(archive, file, most)
        found = _wanted(archive, stream, names)
        while stream.read(PIECE):  # to the end, where the checksum of gzip stands
            pass
    for name in names:
        if name not in found:
            raise ValueError(
                f"{archive / name}: expected this file in the archive; got none: fetch it again"
            )
    return {archive / name: found[name] for name in names}


def _wanted(archive: Path, stream: Limited, names: Sequence[str]) -> dict[str, bytes]:
    """The members of these names, as they come; of two of one name the last."""
    found = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
            for number, member in enumerate(tar):
                if number == MEMBERS:
                    raise tarfile.ReadError(f"more than {MEMBERS} files")
                if member.name in names:
                    found[member.name] = _member(archive / member.name, tar, member)
    except Refused:
        raise
    # tarfile lets the last three through for some damaged headers
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{archive}: expected a whole tar archive; got {error}: fetch it again"
        ) from error
    return found


def _member(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    # not sparse files, which say how large they are: their bytes do not lie in one piece
    content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if content is None:
        raise Refused(
            f"{path}: expected a regular file in the archive; got a member of type "
            f"{member.type.decode('latin-1')!r}: fetch it again"
        )
    return content.read()
