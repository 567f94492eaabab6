"""What grows with a run, its history and each step's `Info`, in one file that is only ever added to.

A record is a line of JSON that says where the one before it stands and bears a crc32 of all its chain
up to itself. A checkpoint keeps but the end of a chain: it is small however long the run is, and a run
that goes back, or on from an older checkpoint, begins a branch; what a killed run left behind its last
checkpoint is passed over.
"""

from __future__ import annotations

import base64
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jtssm.protocol.info import Info
from jtssm.sharding.distributed import is_first
from jtssm.train.record import Document, plain


class End(NamedTuple):
    """The last record of a chain."""

    start: int  # byte of the file where it begins, -1 for a chain of none
    length: int  # records
    crc: int  # of the whole chain


NONE = End(-1, 0, 0)
RECORD = re.compile(rb'{"before": (-?\d+), "crc32": (\d+), "told": (.*)}\n')


class Chain:
    """Objects that a run keeps in a list, which only its end changes, and the records that tell them."""

    def __init__(self, objects: Sequence[Any] = (), ends: Sequence[End] = ()):
        self._objects, self._ends = list(objects), list(ends)

    def end(self) -> End:
        """The last record."""
        return self._ends[-1] if self._ends else NONE

    def new(self, objects: Sequence[Any]) -> Sequence[Any]:
        """Those at the end of a list that no record tells; records of what left the list are dropped."""
        kept = min(len(objects), len(self._objects))
        while kept and objects[kept - 1] is not self._objects[kept - 1]:
            kept -= 1
        del self._objects[kept:], self._ends[kept:]
        return objects[kept:]

    def add(self, told: Any, end: End) -> None:
        """A record that was written of an object."""
        self._objects.append(told)
        self._ends.append(end)


class Journal:
    """The file; of several processes the first writes it, all read it.

    Args:
      path: made when there is something to write.
    """

    def __init__(self, path: Path):
        self.path = path
        self._history, self._infos = Chain(), Chain()

    def write(self, history: Sequence[Mapping[str, Any]], infos: Sequence[Info]) -> Document:
        """Add what is new, and wait until the disk has it; returns what a checkpoint keeps of it.

        Raises:
          OSError: it could not be written.  TypeError: a line holds what JSON does not.
        """
        self._add(self._history, history, lambda line: line)
        self._add(self._infos, infos, _told)
        return {"history": list(self._history.end()), "infos": list(self._infos.end())}

    def read(self, kept: Document) -> tuple[list[dict[str, float]], tuple[Info, ...]]:
        """The history, and the infos since its last line, that a checkpoint kept.

        Raises:
          ValueError: they are not there any more, or others.
        """
        text = self.path.read_bytes() if self.path.exists() else b""
        lines, ends = _followed(text, End(*kept["history"]), self.path)
        self._history = Chain(lines, ends)
        told, ends = _followed(text, End(*kept["infos"]), self.path)
        infos = tuple(map(_info, told))
        self._infos = Chain(infos, ends)
        return lines, infos

    def _add(self, chain: Chain, objects: Sequence[Any], tell: Any) -> None:
        new = chain.new(objects)
        if not new or not is_first():
            return
        with self.path.open("ab") as file:
            if file.tell() and not _ends_whole(self.path):
                file.write(b"\n")  # behind half a record of a run that was killed
            for each in new:
                text, end = _record(tell(each), chain.end(), file.tell())
                file.write(text)
                chain.add(each, end)
            file.flush()
            os.fsync(file.fileno())


def _record(told: Any, before: End, start: int) -> tuple[bytes, End]:
    """A record behind another, and the end that it is."""
    text = json.dumps(told, default=plain).encode()
    end = End(start, before.length + 1, zlib.crc32(text, before.crc))
    return b'{"before": %d, "crc32": %d, "told": %s}\n' % (before.start, end.crc, text), end


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _followed(text: bytes, end: End, path: Path) -> tuple[list[Any], list[End]]:
    """What the records of a chain tell, from the first on, and the end that each is."""
    found: list[tuple[int, re.Match[bytes]]] = []
    start = end.start
    while start >= 0 and (record := RECORD.match(text, start)) is not None:
        found.append((start, record))
        before = int(record[1])
        start = before if before < start else -1
    found.reverse()
    last, ends, sound = NONE, [], True
    for start, record in found:
        last = End(start, last.length + 1, zlib.crc32(record[3], last.crc))
        sound &= last.crc == int(record[2])
        ends.append(last)
    if last != end or not sound:
        raise ValueError(
            f"its history is lost: expected {end.length} records of it in {path.name}; got "
            f"{len(found)}, or others"
        )
    return [json.loads(record[3]) for _, record in found], ends


def _told(infos: Info) -> Document:
    """Infos of some steps as JSON holds them, every bit of their numbers."""
    tell = lambda a: [str(a.dtype), base64.b64encode(np.ascontiguousarray(a).tobytes()).decode()]
    return jax.tree.map(tell, infos._asdict())


def _info(told: Mapping[str, Any]) -> Info:
    """What `_told` tells."""

    def read(dtype: str, numbers: str) -> Any:  # Info is of jax's arrays, here of numpy's
        return np.frombuffer(base64.b64decode(numbers), dtype)

    measured = {name: read(*a) for name, a in told.items() if name != "shown"}
    return Info(**measured, shown={name: read(*a) for name, a in told["shown"].items()})
