"""The content of gzip files, tar and npz archives, unpacked in memory: nothing is written to disk.

What a file says of its sizes is checked against what is there before memory is taken for it; damage and
pickles are refused by the standard library and numpy themselves.
"""

from __future__ import annotations

import gzip
import io
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

PIECE = 2**20  # bytes that are read at once
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
      ValueError: damaged gzip.
    """
    with path.open("rb") as raw:
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
    path: Path, names: Sequence[str], expected: str, hint: str = "fetch it again"
) -> list[np.ndarray]:
    """Arrays of an npz archive, by name.

    Raises:
      ValueError: no such archive, damaged, or without one of them; arrays of Python objects, which would
        be unpickled; an array of another size than its header says. `expected` says what should be there.
    """
    with _archive(path, expected, hint) as archive:
        return [_array(archive, f"{name}.npy") for name in names]


def sizes(path: Path, expected: str, hint: str = "fetch it again") -> dict[str, int]:
    """Bytes that each member of an npz archive says it unpacks to, by name.

    Raises:
      ValueError: no such archive, or damaged.
    """
    with _archive(path, expected, hint) as archive:
        return {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}


@contextmanager
def _archive(path: Path, expected: str, hint: str) -> Iterator[zipfile.ZipFile]:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            yield archive
    except Exception as error:  # whatever zipfile, zlib and numpy raise over damaged bytes
        raise ValueError(
            f"{path}: expected {expected}; got {type(error).__name__}: {error}: {hint}"
        ) from error


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array, once its header agrees with its member's size, and that with the compressed size."""
    info = archive.getinfo(name)
    with archive.open(info) as member:
        shape, _, dtype = HEADERS[npy.read_magic(member)](member)
        size = info.file_size - member.tell()
        if prod(shape) * dtype.itemsize != size or info.file_size > INFLATION * info.compress_size:
            raise ValueError(f"{name} of {dtype} {shape} in {info.compress_size} bytes")
        member.seek(0)
        return npy.read_array(member, allow_pickle=False)


def members(archive: Path, names: Sequence[str], most: int) -> dict[Path, bytes]:
    """Regular files of a tar archive, gzipped or not, each by its path below the archive's.

    most: bytes that the archive may unpack to.

    Raises:
      ValueError: damaged gzip or tar, more bytes, a member that is missing or not a regular file.
    """
    with reading(archive) as file:
        content = up_to(file, most + 1)
    if len(content) > most:
        raise ValueError(
            f"{archive}: expected at most {most} bytes unpacked; got more: fetch it again"
        )
    listed = _listed(archive, content)
    return {archive / name: _member(archive / name, content, listed.get(name)) for name in names}


def _listed(archive: Path, content: bytes) -> dict[str, tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            return {member.name: member for member in tar.getmembers()}
    # tarfile lets the other two through for some damaged headers.
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{archive}: expected a whole tar archive; got {error}: fetch it again"
        ) from error


def _member(path: Path, content: bytes, member: tarfile.TarInfo | None) -> bytes:
    if member is None:
        raise ValueError(f"{path}: expected this file in the archive; got none: fetch it again")
    # not sparse files, which say how large they are: their bytes do not lie in one piece
    if not member.isreg() or member.issparse():
        raise ValueError(
            f"{path}: expected a regular file in the archive; got a member of type "
            f"{member.type.decode('latin-1')!r}: fetch it again"
        )
    return content[member.offset_data : member.offset_data + member.size]
