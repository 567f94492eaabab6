"""The progress bar of `fit`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from jtssm import checks
from jtssm.protocol.info import Info
from jtssm.sharding.distributed import is_first
from jtssm.train.divergence import Divergence
from jtssm.train.hooks import Hook
from jtssm.train.record import means
from jtssm.train.result import Epoch

if TYPE_CHECKING:
    from jtssm.train.trainer import Trainer


class Bar(Hook):
    """Steps, their rate and the time left, and the newest numbers; quiet where there is no terminal."""

    NAMES = (
        ("loss", "loss"),
        ("primal_residual", "|p-q|"),
        ("coupling", "|q-f|"),
        ("objective", "L"),
        ("c_k", "c_k"),
    )

    def __init__(self, steps: int | None, done: int, progress: bool | None):
        given = None if progress is None else not checks.flag("progress", progress)
        disable = given if is_first() else True
        self.bar = tqdm(total=steps, initial=done, disable=disable, unit="step", dynamic_ncols=True)
        self.scores: dict[str, str] = {}
        self.sizes: dict[str, str] = {}

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def on_chunk(self, trainer: Trainer, infos: Info) -> None:
        self._show(means(infos), len(infos.loss))

    def on_line(self, trainer: Trainer, epoch: Epoch) -> None:
        self._show(epoch.record)

    def on_divergence(self, trainer: Trainer, divergence: Divergence) -> bool:
        """Steps are done again: only so many are."""
        self.bar.n = trainer.at.steps
        self.bar.refresh()
        return False

    def _show(self, record: Mapping[str, float], steps: int = 0) -> None:
        """Count steps done, and show loss, residuals and the accuracies of the composed network."""
        scores = {name: a for name, a in record.items() if name.endswith("_accuracy")}
        self.scores |= {name.removesuffix("_accuracy"): f"{a:.3f}" for name, a in scores.items()}
        self.sizes |= {s: f"{record[name]:.3g}" for name, s in self.NAMES if name in record}
        self.bar.set_postfix(self.scores | self.sizes, refresh=False)
        self.bar.update(steps)
