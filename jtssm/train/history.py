"""What a run leaves in its folder: the history as it happens, and the weights."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import jax
import numpy as np

from jtssm import checks
from jtssm.arrays import Tree
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
      path: the file; its suffix, .csv or .jsonl, is the format. An existing file is replaced. Of
        several processes the first writes it.
      keep: leave an existing file until the run begins, which may go on from a checkpoint: then it holds
        that one's lines, at once.

    Raises:
      ValueError: another suffix.
    """

    def __init__(self, path: str | Path, keep: bool = False):
        self.path = Path(path)
        checks.one_of("path suffix", self.path.suffix.removeprefix("."), FORMATS)
        if is_first():
            with self.path.open("a" if keep else "w"):
                pass
        self._lines = -1 if keep else 0  # in the file; -1: unknown
        self._names: list[str] = []

    def on_begin(self, trainer: Trainer) -> None:
        """The lines of a checkpoint, also of a complete run, which writes no others."""
        if is_first() and self._lines < 0:
            self._rewrite(trainer.history)

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
            self._rewrite(history)

    def _rewrite(self, history: Sequence[dict[str, float]]) -> None:
        self._names = list(dict.fromkeys(name for line in history for name in line))
        whole = self.path.with_name(f".{self.path.name}.new")
        with whole.open("w", newline="") as file:
            if self.path.suffix == ".csv" and self._names:
                csv.DictWriter(file, self._names).writeheader()
            self._write(file, history)
        whole.replace(self.path)  # nobody ever sees half of it
        self._lines = len(history)

    def _write(self, file: IO[str], lines: Sequence[dict[str, float]]) -> None:
        if self.path.suffix == ".jsonl":
            told = (json.dumps(without_nan(line), default=plain) for line in lines)
            file.writelines(line + "\n" for line in told)
        else:
            csv.DictWriter(file, self._names).writerows(lines)


def save_params(path: str | Path, params: Sequence[Tree]) -> None:
    """The network's parameters as an .npz of arrays named by layer and path, e.g. `[0]['W']`.

    Of several processes the first writes it.
    """
    if not is_first():
        return
    leaves = jax.tree_util.tree_leaves_with_path(list(params))
    arrays: Any = {jax.tree_util.keystr(name): np.asarray(a) for name, a in leaves}
    np.savez(path, **arrays)
