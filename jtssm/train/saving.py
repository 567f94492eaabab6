"""When a run's checkpoints are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jtssm.train.checkpoint import Folder
from jtssm.train.divergence import Divergence
from jtssm.train.hooks import Hook

if TYPE_CHECKING:
    from jtssm.train.trainer import Trainer


class Saving(Hook):
    """Checkpoints where they are due, at the end of the run, and where a signal ends it.

    Args:
      folder: where they go.
      every: least number of steps between two; None: one at every line.
    """

    def __init__(self, folder: Folder, every: int | None):
        self.folder, self.every = folder, every
        self._saved: tuple[int, ...] = ()  # where the newest stands
        self._steps = 0  # that it has

    def on_begin(self, trainer: Trainer) -> None:
        self._saved, self._steps = trainer.place, trainer.at.steps

    def on_place(self, trainer: Trainer) -> None:
        if self._due(trainer) or trainer.complete or trainer.signal is not None:
            self._save(trainer)

    def on_divergence(self, trainer: Trainer, divergence: Divergence) -> bool:
        """Steps are done again."""
        self._steps = min(self._steps, trainer.at.steps)
        return False

    def on_end(self, trainer: Trainer) -> None:
        self.folder.wait()

    def _due(self, trainer: Trainer) -> bool:
        if self.every is None:
            return not trainer.at.chunks
        return trainer.at.steps - self._steps >= self.every

    def _save(self, trainer: Trainer) -> None:
        """A checkpoint of where the run stands, unless the newest is of just that."""
        if trainer.place != self._saved:
            self.folder.save(trainer.checkpoint(), trainer.method)
            self._saved, self._steps = trainer.place, trainer.at.steps
