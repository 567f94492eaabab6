"""SIGTERM and Ctrl-C as a wish to stop at the next good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from jtssm.protocol.info import Info
from jtssm.sharding.distributed import largest
from jtssm.train.hooks import Hook
from jtssm.train.result import Epoch

if TYPE_CHECKING:
    from jtssm.train.trainer import Trainer


class Wish(Hook):
    """Which signal came; None: none did. One to one process ends the run of all, at the same place."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def on_chunk(self, trainer: Trainer, infos: Info) -> None:
        self._tell(trainer)

    def on_line(self, trainer: Trainer, epoch: Epoch) -> None:
        self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        trainer.signal = largest(self.signal or 0) or None

    def note(self, number: int, _: FrameType | None) -> None:
        """The handler. A second Ctrl-C gives up at once."""
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def noted() -> Iterator[Wish]:
    """Signals that end a program are noted, within the main thread; the old handlers come back after."""
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    old = {s: signal.signal(s, wish.note) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield wish
    finally:
        for number, handler in old.items():
            # None: not set from Python, and not to be had back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
