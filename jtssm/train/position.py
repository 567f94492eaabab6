"""Where a run of `fit` stands, and what is kept of it: all that another process needs to go on."""

from __future__ import annotations

from typing import NamedTuple

from jtssm.arrays import Tree
from jtssm.protocol.info import Info
from jtssm.train.divergence import Divergence
from jtssm.train.record import Document


class Lines(NamedTuple):
    """The epochs after which a line of the history is due: every so many, and the last."""

    every: int
    last: int

    def after(self, epoch: int) -> int:
        """Of the next line; the epoch itself where the last is behind it."""
        return max(min((epoch // self.every + 1) * self.every, self.last), epoch)


class Position(NamedTuple):
    """Where a run stands: between two chunks of steps, on the way to the next line of the history."""

    start: int  # epoch of the line before
    end: int  # epoch of the next one
    chunks: int  # done since the line before
    steps: int  # of the run done
    lines: int  # of the history written
    order: Document  # of samples, as it was at the line before: `feeding`
    # of every step since the line before, on the host, chunk by chunk; None: at a line
    infos: tuple[Info, ...] | None = None
    seconds: float = 0.0  # since the line before

    def document(self) -> Document:
        """As JSON holds it, but for the infos, which `jtssm.train.journal` keeps."""
        return self._asdict() | {"infos": self.infos is not None}

    @classmethod
    def of(cls, document: Document, infos: tuple[Info, ...]) -> Position:
        """The position that a document tells of."""
        return cls(**{**document, "infos": infos if document["infos"] else None})


class Sound(NamedTuple):
    """Where a run goes back to when it diverges."""

    state: Tree
    position: Position


class Checkpoint(NamedTuple):
    """What is kept of a run."""

    state: Tree  # placed or not
    position: Position
    sound: Sound | None  # None: not kept
    history: list[dict[str, float]]
    halvings: tuple[Divergence, ...]
    odd: int  # numbers of the state that were not finite from the start
    stopped: int  # epochs asked for when a callback stopped the run; 0: none did
