"""The content of gzip files and tar archives, unpacked in memory: nothing is written to disk."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path


def gunzipped(path: Path) -> bytes:
    """The content of a file, gzipped or not.

    Raises:
      ValueError: damaged gzip.
    """
    raw = path.read_bytes()
    try:
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: expected a whole gzip file; got {error}: fetch it again"
        ) from error


def members(archive: Path, names: Sequence[str]) -> dict[Path, bytes]:
    """Regular files of a tar archive, gzipped or not, each by its path below the archive's.

    Raises:
      ValueError: damaged gzip or tar, a member that is missing or not a regular file.
    """
    content = gunzipped(archive)
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
    # Not links, which lead elsewhere, nor sparse files, whose bytes do not lie in one piece.
    if not member.isreg() or member.issparse():
        raise ValueError(
            f"{path}: expected a regular file in the archive; got a member of type "
            f"{member.type.decode('latin-1')!r}: fetch it again"
        )
    return content[member.offset_data : member.offset_data + member.size]
