"""`on_divergence="halve"`: back to the last sound line, and on from there with half the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jtssm import checks
from jtssm.train.divergence import Divergence
from jtssm.train.hooks import Hook
from jtssm.train.position import Sound
from jtssm.train.result import Epoch

if TYPE_CHECKING:
    from jtssm.train.trainer import Trainer


class Halving(Hook):
    """Halves the pace of a state after a divergence; lines say how often that was.

    Args:
      most: times that steps are halved.
      sound: where a checkpoint's run goes back to; None: where it begins.
    """

    def __init__(self, most: int, sound: Sound | None):
        self.most, self.sound = most, sound

    def on_begin(self, trainer: Trainer) -> None:
        trainer.sound = self.sound or Sound(trainer.state, trainer.at)

    def on_line(self, trainer: Trainer, epoch: Epoch) -> None:
        epoch.record["halvings"] = len(trainer.halvings)
        if epoch.record["samples"] and _is_sound(trainer, epoch.record):
            trainer.sound = Sound(trainer.state, trainer.at)

    def on_divergence(self, trainer: Trainer, divergence: Divergence) -> bool:
        """Go back with halved steps, unless that was done often enough."""
        done = len(trainer.halvings) + 1
        if done > self.most or trainer.sound is None:
            return False
        state, at = trainer.sound
        message = (
            f"step {divergence.step}: {divergence.variable} is not finite; going on from epoch "
            f"{at.start} with halved steps, {done} of {self.most} times"
        )
        checks.warn(message, RuntimeWarning)
        trainer.halvings += (divergence._replace(message=message),)
        trainer.go_back(Sound(state._replace(pace=state.pace * 0.5), at))
        return True


def _is_sound(trainer: Trainer, record: Mapping[str, float]) -> bool:
    """Whether a line is a place to go back to: no, if its loss says that a blow-up begins.

    That is: if it is over twice the least line's, or twice that of its own first step.
    """
    infos = trainer.infos
    first = float(infos.loss[infos.samples > 0][0])
    least = min(first, *(line["loss"] for line in trainer.history if line["samples"]))
    return record["loss"] <= least + abs(least)
