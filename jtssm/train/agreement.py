"""What several processes agree on before `fit` draws anything, and what one of them may have alone."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from jtssm.arrays import Array, Tree
from jtssm.losses import Metric
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method
from jtssm.protocol.settings import plain
from jtssm.sharding.agreement import alone, ending_all, same_in_all
from jtssm.sharding.distributed import ProcessBatches, ProcessSamples, told_by_all
from jtssm.sharding.meeting import versions
from jtssm.sharding.placement.comparing import (
    arrays_of,
    key_words,
    method_words,
    shape,
    tree_words,
    words,
)
from jtssm.train.divergence import Divergence
from jtssm.train.hooks import Callback, Hook
from jtssm.train.result import Epoch
from jtssm.train.samples import Pair

if TYPE_CHECKING:
    from jtssm.train.trainer import Trainer

SEEN_WITHIN = 5.0  # seconds in which a shared file system shows what another machine wrote


class Ways(NamedTuple):
    """Arguments of `fit` that are numbers and words."""

    epochs: int
    evaluate_every: int
    steps_per_epoch: int | None
    checkpoint: bool  # whether there is one
    every: int | None
    keep: int
    resume: int | str | None
    on_divergence: str
    halvings: int
    estimate: bool | None


def agree(
    method: Method,
    train: Pair | ProcessSamples | Iterable | ProcessBatches,
    key: Array,
    ways: Ways,
    sets: Mapping[str, Pair],
    metrics: Mapping[str, Metric],
    start: tuple[Sequence[Tree] | None, Tree],
    hooks: Sequence[Hook],
) -> Sequence[Hook]:
    """Compare what processes were given; returns the hooks, of which those that others lack are `Alone`.

    Args:
      train: in memory, or a stream as given.
      sets: that every line evaluates.
      start: weights and state that were given.

    Raises:
      ValueError: in every process: what differs.
    """
    if jax.process_count() == 1:
        return hooks
    with ending_all():
        told = method_words(method) | {
            "key": key_words(key),
            "train": _train_words(train),
            "validation": {name: list(map(words, arrays_of(pair))) for name, pair in sets.items()},
            "metrics": list(metrics),
            "params": tree_words(start[0]),
            "state": tree_words(start[1]),
            **ways._asdict(),
        }
        if ways.checkpoint:
            told["versions"] |= versions("orbax-checkpoint")
    same_in_all(plain(told))
    return _some_alone(hooks)


def _train_words(train: Pair | ProcessSamples | Iterable | ProcessBatches) -> list[str]:
    """What training samples are; those of a share, or of a stream, are compared where they are read."""
    if isinstance(train, ProcessBatches):
        return ["ProcessBatches"]
    if isinstance(train, ProcessSamples):
        return ["ProcessSamples", *map(shape, arrays_of(tuple(train)))]
    if isinstance(train, tuple):
        return list(map(words, arrays_of(train)))
    return ["a stream"]


def _some_alone(hooks: Sequence[Hook]) -> Sequence[Hook]:
    """The hooks, those alone that some process does not have, by their names."""
    mine = list(map(_name, hooks))
    said = told_by_all(mine)
    shared = Counter(mine)
    for names in said:
        shared &= Counter(names)
    found: list[Hook] = []
    for name, hook in zip(mine, hooks, strict=True):
        have = [p for p, names in enumerate(said) if name in names]
        found.append(hook if shared[name] else Alone(hook, name, have))
        shared[name] -= 1 if shared[name] else 0
    return found


def _name(hook: Hook) -> str:
    """What a hook is called, the same in every process."""
    called = hook.function if isinstance(hook, Callback) else type(hook)
    return str(getattr(called, "__qualname__", type(called).__qualname__))


class Alone(Hook):
    """A hook of some processes only: what all must ask it may not ask."""

    def __init__(self, hook: Hook, name: str, processes: Sequence[int]):
        self.hook = hook
        self.why = f"the callback {name} of processes {', '.join(map(str, processes))} alone"

    def on_begin(self, trainer: Trainer) -> None:
        with self._alone():
            self.hook.on_begin(trainer)

    def on_chunk(self, trainer: Trainer, infos: Info) -> None:
        with self._alone():
            self.hook.on_chunk(trainer, infos)

    def on_line(self, trainer: Trainer, epoch: Epoch) -> object:
        with self._alone():
            return self.hook.on_line(trainer, epoch)

    def on_place(self, trainer: Trainer) -> None:
        with self._alone():
            self.hook.on_place(trainer)

    def on_divergence(self, trainer: Trainer, divergence: Divergence) -> bool:
        with self._alone():
            return self.hook.on_divergence(trainer, divergence)

    def on_end(self, trainer: Trainer) -> None:
        with self._alone():
            self.hook.on_end(trainer)

    def _alone(self) -> AbstractContextManager[None]:
        return alone(self.why)


def share(path: str | Path | None) -> None:
    """A folder for checkpoints is one and the same in all processes; made if it is not there.

    Each process writes a file there, and all look for all of them.

    Raises:
      ValueError: in every process: not all see the same folder.
      OSError: in every process: one cannot write there.
    """
    if path is None or jax.process_count() == 1:
        return
    folder = Path(path).absolute()
    token = told_by_all(secrets.token_hex(8))[0]
    files = [folder / f".jtssm-{token}-{p}" for p in range(jax.process_count())]
    mine = files[jax.process_index()]
    try:
        with ending_all():
            _write(mine)
        unseen = told_by_all(_unseen(files))
        with ending_all():  # nobody takes its file away before all have looked
            if any(unseen):
                raise ValueError(
                    f"checkpoint: expected a folder on a file system that all processes share; got "
                    f"{folder}, {_who(unseen)}"
                )
    finally:
        mine.unlink(missing_ok=True)


def _who(unseen: Sequence[list[int]]) -> str:
    pairs = [(p, missing) for p, missing in enumerate(unseen) if missing]
    return "; ".join(f"where process {p} does not see what {a} wrote" for p, a in pairs)


def _write(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise OSError(
            f"checkpoint: expected a folder that can be written; got {file.parent}: {error}"
        ) from error


def _unseen(files: Sequence[Path]) -> list[int]:
    """The processes whose file does not come up."""
    end = time.monotonic() + SEEN_WITHIN
    missing: Any = range(len(files))
    while (missing := [p for p in missing if not files[p].exists()]) and time.monotonic() < end:
        time.sleep(0.1)
    return missing
