"""What a run leaves in its folder: the history as it happens."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from jtssm import checks, files
from jtssm.sharding.distributed import is_first
from jtssm.train.hooks import Hook
from jtssm.train.record import plain, without_nan
from jtssm.train.result import Epoch

if TYPE_CHECKING:
    from jtssm.train.trainer import Trainer

FORMATS = ("csv", "jsonl")


class HistoryFile(Hook):
    """One of the callbacks of `fit`: keeps the history in a file as it happens, each epoch once.

    Args:
      path: the file; its suffix, .csv or .jsonl, is the format. An existing file is replaced when the
        training begins, by the lines from before the checkpoint that the run goes on from. Of several
        processes the first writes it.

    Raises:
      ValueError: another suffix, no folder to write it in.
    """

    def __init__(self, path: str | Path):
        self.path = checks.path("path", path)
        checks.one_of("path suffix", self.path.suffix.removeprefix("."), FORMATS)
        if is_first() and (self.path.is_dir() or not self.path.parent.is_dir()):
            raise ValueError(f"path: expected a file in a folder that exists; got {self.path}")
        self._lines = 0  # in the file
        self._names: list[str] = []

    def on_begin(self, trainer: Trainer) -> None:
        """The history so far, at once: of a run that is complete nothing else is told."""
        if is_first():
            self._renew(trainer.history)

    def on_line(self, trainer: Trainer, epoch: Epoch) -> None:
        """Append one line; write all anew where the file is not the history up to it."""
        if not is_first():
            return
        history = epoch.history
        if self._lines == len(history) - 1 and set(epoch.record) <= set(self._names):
            with self.path.open("a", newline="") as file:
                self._write(file, [epoch.record])
            self._lines = len(history)
        else:
            self._renew(history)

    def _renew(self, history: Sequence[dict[str, float]]) -> None:
        """Write all lines anew."""
        self._names = list(dict.fromkeys(name for line in history for name in line))
        with files.replacing(self.path) as new, new.open("w", newline="") as file:
            if self.path.suffix == ".csv" and history:
                csv.DictWriter(file, self._names).writeheader()
            self._write(file, history)
        self._lines = len(history)

    def _write(self, file: IO[str], lines: Sequence[dict[str, float]]) -> None:
        if self.path.suffix == ".jsonl":
            told = (json.dumps(without_nan(line), default=plain) for line in lines)
            file.writelines(line + "\n" for line in told)
        else:
            csv.DictWriter(file, self._names).writerows(lines)
