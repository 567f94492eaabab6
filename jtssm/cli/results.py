"""The folder of results: what a command writes there, and what it may replace.

A run that has begun leaves its mark there, and takes it away when all is written. Whoever finds files
under the names that a command writes refuses to replace them, unless they are told to, or the mark is
that of a run which goes on from the same checkpoints.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jtssm import files, plot
from jtssm.sharding.distributed import is_first, told_by_all
from jtssm.train.hooks import Hook

if TYPE_CHECKING:
    from jtssm.train.trainer import Trainer

RESULT, FIGURE = "result.json", "history.png"
MARK = "run.json"  # of a run that is not complete
MARK_BYTES = 2**16


def folder(
    out: Path,
    names: Sequence[str],
    *,
    overwrite: bool,
    goes_on: Callable[[Path], bool],
    what: str = "run",
) -> Path:
    """The folder for results, which the first process makes; every process must ask.

    Args:
      names: of the files that will be written there.
      overwrite: whether files of these names are replaced.
      goes_on: (the folder) -> whether they are those of the very run that goes on.
      what: wrote such files.

    Raises:
      ValueError: it cannot be written, or holds such files.
    """
    why = None
    if is_first():
        why = _kept(out, names, what) if not (overwrite or goes_on(out)) else None
        why = why or _in_the_way(out, names, overwrite) or _unwritable(out)
    if why := told_by_all(why)[0]:
        raise ValueError(f"--out: {why}")
    return out


def _kept(out: Path, names: Sequence[str], what: str) -> str | None:
    """Why files that are there stay."""
    there = [name for name in names if os.path.lexists(out / name)]
    if not there:
        return None
    if {RESULT, "records.jsonl"} & {*there}:
        holds = "one"
    else:
        holds = f"{', '.join(there)}, perhaps of one that is not complete"
    ways = ["name another", "add --overwrite"]
    ways += ["--resume"] if what == "sweep" else []
    ways += [f"--checkpoint {kept}, with which it goes on"] if (kept := _marked(out)) else []
    return f"expected a folder without an earlier {what}; {out} holds {holds}: {', or '.join(ways)}"


def _in_the_way(out: Path, names: Sequence[str], overwrite: bool) -> str | None:
    """What stands there that is no file of a run: folders, links."""
    for at in (out / name for name in names):
        if at.is_symlink() and not overwrite:
            return (
                f"expected files of its own; {at} is a link to {os.readlink(at)}: name another folder, "
                f"or add --overwrite, which replaces the link"
            )
        if at.is_dir() and not at.is_symlink():
            return f"expected a folder where {at.name} can be a file; {at} is a folder"
    return None


def _unwritable(out: Path) -> str | None:
    """Why nothing can be written there; makes the folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as file:
            file.write(b"there is room")
    except OSError as error:
        return f"expected a folder that can be written; got {out}: {error.strerror}"
    return None


class Mark(Hook):
    """Says in a folder, once training begins, that a run is on its way there.

    checkpoint: the folder of its checkpoints, if it has any.
    """

    def __init__(self, out: Path, checkpoint: Path | None):
        self.path, self.checkpoint = out / MARK, _told(checkpoint)

    def on_begin(self, trainer: Trainer) -> None:
        if is_first():
            with files.replacing(self.path) as new:
                new.write_text(json.dumps({"checkpoint": self.checkpoint}) + "\n")


def unfinished(out: Path, checkpoint: Path | None) -> bool:
    """Whether the run that left its mark there is not complete and has the same checkpoints."""
    if os.path.lexists(out / RESULT):
        return False
    return checkpoint is not None and _marked(out) == _told(checkpoint)


def _marked(out: Path) -> str | None:
    """The checkpoints of the run that left its mark there."""
    try:
        mark = json.loads(files.content(out / MARK, MARK_BYTES))
    except (OSError, ValueError, RecursionError):  # none, or one of somebody else's
        return None
    return mark.get("checkpoint") if isinstance(mark, dict) else None


def _told(checkpoint: Path | None) -> str | None:
    return None if checkpoint is None else str(checkpoint.absolute())


def drawn(path: Path, draw: Callable[[Path], None]) -> None:
    """A figure in all formats; where it cannot be drawn a note: the numbers stand in other files."""
    for name in figures(path.name):
        try:
            with files.replacing(path.with_name(name)) as new:
                draw(new)
        except Exception as error:  # of matplotlib, if it is there at all
            print(f"jtssm: no {path}: {type(error).__name__}: {error}", file=sys.stderr)
            return


def figures(name: str) -> list[str]:
    """The files of a figure, history.png and so on."""
    return [Path(name).with_suffix(suffix).name for suffix in plot.FORMATS]
