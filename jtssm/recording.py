"""What a run leaves in its folder: the history as it happens, and the weights."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jtssm import checks
from jtssm.loop import Epoch
from jtssm.sharding.processes import is_first

FORMATS = ("csv", "jsonl")


class HistoryFile:
    """A callback for `fit` that appends each epoch's line to a file, and flushes it.

    Args:
      path: the file; its suffix, .csv or .jsonl, is the format. An existing file is replaced. Of
        several processes the first writes it.

    Raises:
      ValueError: another suffix.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        checks.one_of("path suffix", self.path.suffix.removeprefix("."), FORMATS)
        if is_first():
            self.path.write_text("")

    def __call__(self, epoch: Epoch) -> None:
        """Append one line."""
        if not is_first():
            return
        new = self.path.stat().st_size == 0
        with self.path.open("a", newline="") as file:
            if self.path.suffix == ".jsonl":
                file.write(json.dumps(epoch.record) + "\n")
                return
            writer = csv.DictWriter(file, epoch.record)
            if new:
                writer.writeheader()
            writer.writerow(epoch.record)


def save_params(path: str | Path, params: Sequence[Any]) -> None:
    """The network's parameters as an .npz of arrays named by layer and path, e.g. "[0]['W']".

    Of several processes the first writes it.
    """
    if not is_first():
        return
    leaves = jax.tree_util.tree_leaves_with_path(list(params))
    arrays: dict[str, Any] = {jax.tree_util.keystr(name): np.asarray(a) for name, a in leaves}
    np.savez(path, **arrays)
