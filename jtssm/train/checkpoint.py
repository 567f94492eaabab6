"""Checkpoints of `fit`: what a run needs to go on, in a folder that one run uses at a time.

    jtssm.json     what wrote the folder
    lock           who uses it (`jtssm.train.lock`)
    journal.jsonl  the history and each step's `Info`, added to (`jtssm.train.journal`)
    steps/N        a checkpoint: arrays by their path in the state, a document (`jtssm.train.document`)

A checkpoint holds the state as it lies on the mesh (no device or host gathers it) and a document: where
the run stands, the end of its history in the journal, what it is (`jtssm.train.fingerprint`) and a
checksum of every array. orbax reads an array straight onto another mesh; rows that are packed otherwise
there pass through the host. Checkpoints bear the number of steps done, or the next number where steps
are done again.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from jtssm import checks
from jtssm.arrays import Tree
from jtssm.protocol.method import Method
from jtssm.sharding.agreement import ending_all
from jtssm.sharding.distributed import is_first, told_by_all
from jtssm.train import document as documents
from jtssm.train.checksums import checksums
from jtssm.train.fingerprint import NEEDED, differences
from jtssm.train.journal import Journal
from jtssm.train.lock import Lock
from jtssm.train.position import Checkpoint
from jtssm.train.recipes import recipes
from jtssm.train.record import Document
from jtssm.train.stored import Stored, arrays_of, names, need_orbax, quiet, states_of

ANYWAY = "anyway"  # `resume` of a run that differs from the one in the folder
STEPS, ABOUT, LOCK, JOURNAL = "steps", "jtssm.json", "lock", "journal.jsonl"


class Folder:
    """The checkpoints of a run, locked until it is closed.

    Args:
      path: made if it is not there.
      keep: how many of the newest stay.
      run: the fingerprint of the run that wants them.

    Raises:
      ImportError: orbax is not installed.  OSError: the folder cannot be written.
      ValueError: an address, a folder of another format, or one that another run uses.
    """

    def __init__(self, path: str | Path, keep: int, run: Document):
        need_orbax()
        self.path, self.run = local(path), told_by_all(run)[0]  # one word for all processes
        self.begun: int | None = None  # the `resume` that the run began with
        self.anothers = False  # whether what it goes on from is another run's
        self._recipes: list[Any] | None = None
        with ExitStack() as stack:
            stack.enter_context(quiet())
            with ending_all(), _writable(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.path) as file:
                    file.write(b"there is room")
                check_folder(self.path)
            with _writable(self.path):
                lock = Lock(self.path / LOCK)
            stack.callback(lock.release)
            with ending_all(), _writable(self.path):
                if is_first():
                    (self.path / ABOUT).write_text(json.dumps({"format": documents.FORMAT}) + "\n")
            self._stored, self._lock = Stored(self.path / STEPS, keep), lock
            stack.callback(self._stored.close)
            self._open = stack.pop_all()
        self._journal = Journal(self.path / JOURNAL)

    def steps(self) -> list[int]:
        """The checkpoints there are, the newest last."""
        return self._stored.steps()

    def save(self, checkpoint: Checkpoint, method: Method) -> None:
        """Write in the background; what went wrong with the one before is raised here.

        Raises:
          OSError: it could not be written, or another run has taken the folder.
        """
        with ending_all():
            self._lock.check()
        number = max([checkpoint.position.steps, *(n + 1 for n in self.steps())])
        states = {"state": checkpoint.state}
        if checkpoint.sound is not None and checkpoint.sound.state is not checkpoint.state:
            states["sound"] = checkpoint.sound.state
        with self._writing(number):
            arrays = arrays_of(states)
            told = dict(zip(arrays, checksums(list(arrays.values())), strict=True))
            with ending_all():
                kept = documents.written(
                    checkpoint,
                    method,
                    run=self.run,
                    begun=self.begun,
                    journal=self._journal.write(
                        checkpoint.history, checkpoint.position.infos or ()
                    ),
                    checksums=told,
                    weights=self._weights(method, checkpoint.state),
                )
            self._stored.save(number, arrays, kept)

    def _weights(self, method: Method, state: Tree) -> list[Any] | None:
        """How the network's parameters are read from the state's arrays, the same all along a run."""
        if self._recipes is None:
            named = jax.tree.unflatten(jax.tree.structure(state), names(state))
            self._recipes = recipes(method.params, state, named)
        return self._recipes

    def wait(self) -> None:
        """Until everything is written.

        Raises:
          OSError: it could not be.
        """
        with self._writing(max(self.steps(), default=0)):
            self._stored.wait()

    def tell_complete(self) -> None:
        """Say that the run had come to its end before it began.

        Raises:
          ValueError: it is another run's end.
        """
        if self.anothers:
            raise ValueError(
                f"resume: expected, with {ANYWAY!r}, a run that is not complete, or more epochs than it "
                f"has; got the one in {self.path}: nothing would be trained"
            )
        checks.warn(f"checkpoint: complete in {self.path}, nothing trained")

    def close(self) -> None:
        """Let the background work end, and others have the folder."""
        self._open.close()

    def load(self, method: Method, state: Tree, resume: int | str | None) -> Checkpoint | None:
        """The newest checkpoint, or that of a step, on the method's mesh; None: there is none.

        A step says where the first start begins: what that start has written since is gone on from.

        Args:
          state: shapes of the unplaced state.
          resume: a step, "anyway", or None.

        Raises:
          ValueError: there is no such step, it is damaged, or of another run.
        """
        self.begun = None if resume is None or resume == ANYWAY else int(resume)
        with ending_all():
            chosen = self._chosen(self.begun)
        step = told_by_all(chosen)[0]
        if step is None:
            return None
        with ending_all(), self._reading(step):
            document = documents.read(self._stored.document(step))
        self._compare(document, step, anyway=resume == ANYWAY)
        with ending_all(), self._reading(step):
            history, infos = self._journal.read(document["journal"])
            states = states_of(self._stored, step, document, method, state)
            found = documents.checkpoint_of(document, states, history, infos)
        _check_cores(document["cores"])
        return found

    def _chosen(self, resume: int | None) -> int | None:
        """The step that is gone on from."""
        steps = self.steps()
        if resume is None:
            return steps[-1] if steps else None
        if steps and self._begun(steps[-1]) == resume:
            return steps[-1]
        if resume not in steps:
            raise ValueError(
                f"resume: expected one of {steps}, the steps in {self.path}; got {resume!r}"
            )
        return resume

    def _begun(self, step: int) -> int | None:
        """Where the start that wrote a step was told to begin; None: nowhere, or it is damaged."""
        try:
            return documents.read(self._stored.document(step))["begun"]
        except Exception:  # orbax and tensorstore have many
            return None

    def _compare(self, document: Document, step: int, anyway: bool) -> None:
        """The checkpoint is of this run, or of one that is gone on from regardless."""
        differs = differences(document["run"], json.loads(json.dumps(self.run)))
        needed = [name for name in differs if name in NEEDED]
        text = "; ".join(f"{name}: {told}" for name, told in differs.items())
        if differs and (needed or not anyway):
            way = (
                f", without the same {' and '.join(needed)} nothing can be gone on from"
                if needed
                else "; resume='anyway' goes on regardless"
            )
            raise ValueError(
                f"checkpoint: expected an empty folder or one of the same run; got {self.path}, whose "
                f"step {step} is of another: {text}{way}"
            )
        self.anothers = bool(differs)
        if differs:
            checks.warn(
                f"checkpoint: going on from step {step} in {self.path}, of another run: {text}"
            )

    @contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except TypeError:  # a line of the history holds what JSON does not
            raise
        except Exception as error:  # orbax and tensorstore have many
            raise OSError(
                f"checkpoint: could not be written to {self.path}, at step {step} or the one before: "
                f"{_line(error)}; the state is in this error's attribute result.state"
            ) from error

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            before = [n for n in self.steps() if n < step]
            raise ValueError(
                f"checkpoint: step {step} in {self.path} is damaged ({_line(error)}); {_offer(before)}"
            ) from error


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"checkpoint: expected a folder that can be written; got {path}: {error}"
        ) from error


def local(path: str | Path, argument: str = "checkpoint") -> Path:
    """A folder of this file system, given as that argument.

    Raises:
      ValueError: an address elsewhere, gs://... or s3://...
    """
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):  # a Path has one slash of two left
        raise ValueError(
            f"{argument}: expected a folder of this machine, or one that is mounted there, e.g. "
            f"'run/kept'; got {str(path)!r}, an address"
        )
    return Path(path).absolute()


def check_folder(path: Path) -> None:
    """A folder is empty of checkpoints, or its checkpoints are of our format.

    Raises:
      ValueError: those of another format, or a folder `steps` of somebody else's.
    """
    about = path / ABOUT
    if about.exists():
        try:
            documents.check_format(json.loads(about.read_text())["format"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"checkpoint: expected checkpoints of this jtssm's format; got {about}: {_line(error)}"
            ) from error
        return
    old = [p for p in path.glob("*/run/metadata") if p.parents[1].name.isdigit()]
    if old:
        raise ValueError(
            f"checkpoint: expected an empty folder, or checkpoints of format {documents.FORMAT}; got "
            f"{path}, with those of format 3: name another folder, or take the jtssm that wrote them"
        )
    if any((path / STEPS).glob("*")):
        raise ValueError(
            f"checkpoint: expected a folder without {STEPS!r}, which checkpoints go into; got {path}, "
            f"whose {STEPS!r} jtssm has not made: name another folder"
        )


def _offer(before: Sequence[int]) -> str:
    if before:
        return f"the one before it is gone on from with resume={before[-1]}"
    return "there is none before it: name another folder"


def _check_cores(there: int) -> None:
    """Warns of another number of cores where XLA divides its work among them."""
    if jax.default_backend() == "cpu" and there != documents.cores():
        checks.warn(
            f"checkpoint: expected {there} cores, as before the checkpoint; got {documents.cores()}: the "
            f"last bits of what follows may differ from those of a run that was not interrupted"
        )


def _line(error: Exception) -> str:
    """An error's first line, which names its kind."""
    return f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]
