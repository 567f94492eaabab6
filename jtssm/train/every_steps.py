"""Every so many steps: what they have shown, for hooks that want it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np

from jtssm.protocol.info import Info
from jtssm.train.divergence import Divergence
from jtssm.train.hooks import Hook, ask
from jtssm.train.record import joined, means

if TYPE_CHECKING:
    from jtssm.train.trainer import Trainer


class EverySteps(Hook):
    """Tells hooks the means of every `num` steps of the run, counted from its start.

    Steps of before a checkpoint, or of before a divergence, that a first group would have are not in
    its means.
    """

    def __init__(self, num: int, hooks: Sequence[Hook]):
        self.num, self.hooks = num, hooks
        self._seen: list[Info] = []  # of the group that is not yet whole

    def on_chunk(self, trainer: Trainer, infos: Info) -> None:
        steps = len(infos.loss)
        first = trainer.at.steps - steps
        ends = [i for i in range(1, steps + 1) if (first + i) % self.num == 0]
        for start, end in zip([0, *ends], [*ends, steps], strict=True):
            self._seen.append(jax.tree.map(lambda a, s=start, e=end: np.asarray(a)[s:e], infos))
            if end in ends and end > start:
                record = {"step": first + end} | means(joined(self._seen))
                self._seen = []
                ask(self.hooks, partial(_tell, trainer=trainer, record=record))

    def on_divergence(self, trainer: Trainer, divergence: Divergence) -> bool:
        self._seen = []
        return False


def _tell(hook: Hook, trainer: Trainer, record: Mapping[str, float]) -> None:
    hook.on_steps(trainer, dict(record))
