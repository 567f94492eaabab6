"""Files of a data set in its folder: where they lie, and that they are what was written.

A folder that `jtssm.data.get` filled has a list of checksums beside the files, as `sha256sum` writes and
checks it (`sha256sum --check SHA256SUMS`); `load` holds the files against it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jtssm import files

SUMS = "SHA256SUMS"
LONGEST = 2**16  # bytes of such a list
READ = 2**20  # bytes that are read at once


def default_dir() -> Path:
    """JTSSM_DATA, or jtssm in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("JTSSM_DATA", cache / "jtssm"))


def find(folder: Path, file: str) -> Path | None:
    """The file in its folder, unpacked beside it, or (spoken digits) one folder up."""
    beside = folder.parent / file.replace("-", "_") if file.endswith(".npz") else folder / file
    candidates = (folder / file, folder / file.removesuffix(".gz"), beside)
    return next((path for path in candidates if path.is_file()), None)


def path_of(folder: Path, file: str) -> Path:
    """Where the file is.

    Raises:
      FileNotFoundError: nowhere.
    """
    path = find(folder, file)
    if path is None:
        raise FileNotFoundError(f"{folder / file}: expected this file of {folder.name}; none there")
    return path


def wanted(folder: Path, packed: Sequence[str], loose: Sequence[str]) -> Sequence[str]:
    """The files of a data set, or those unpacked from its archive where only they are there."""
    some = lambda names: any(find(folder, file) for file in names)
    return loose if some(loose) and not some(packed) else packed


def write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """The files, each at once as a whole, and the list of their checksums behind them."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as new:
            new.write_bytes(content)
    lines = [f"{hashlib.sha256(a).hexdigest()}  {name}\n" for name, a in contents.items()]
    with files.replacing(folder / SUMS) as new:
        new.write_text("".join(lines))


def check(folder: Path, names: Sequence[str]) -> None:
    """Those of the files that a list of checksums knows are what it says.

    Raises:
      ValueError: one is not; the list is none.
    """
    for name, told in _sums(folder).items():
        path = folder / name
        if (name in names or f"{name}.gz" in names) and path.is_file() and _sum(path) != told:
            raise ValueError(
                f"{path}: expected the file that {SUMS} beside it tells of; got another: fetch it again "
                f"(jtssm data get {folder.name}), or remove {SUMS} if it was exchanged on purpose"
            )


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 by the name of a file, where there is a list of them."""
    path = folder / SUMS
    if not path.is_file():
        return {}
    text = files.content(path, LONGEST).decode("utf-8", "replace")
    pairs = [line.split(maxsplit=1) for line in text.splitlines()]
    if any(len(pair) != 2 or len(pair[0]) != 64 for pair in pairs):
        raise ValueError(f"{path}: expected lines of a SHA-256 and a name; got something else")
    return {name.removeprefix("*"): told for told, name in pairs}


def _sum(path: Path) -> str:
    """SHA-256 of a file, some of it at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(READ):
            digest.update(piece)
    return digest.hexdigest()
