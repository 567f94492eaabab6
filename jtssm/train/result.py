"""What training comes to: the result of `fit`, and the composed network's loss and accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from signal import Signals
from typing import Any, NamedTuple

import numpy as np

from jtssm.arrays import Tree
from jtssm.protocol.method import Method
from jtssm.train.divergence import Divergence
from jtssm.train.evaluation import evaluate, outputs


class Epoch(NamedTuple):
    """What a callback is given at every line; a true bool that it returns stops the training."""

    record: dict[str, float]  # the line just added to the history
    state: Tree
    method: Method  # as placed
    history: list[dict[str, float]]  # all lines, also those from before a checkpoint

    def __repr__(self) -> str:
        return f"epoch {self.record.get('epoch')} of {self.method.name}: {_told(self.record)}"


class Result(NamedTuple):
    """What `fit` returns, also after a divergence or an interruption."""

    history: list[dict[str, float]]  # a line each `evaluate_every` epochs
    state: Tree  # the last finite one
    method: Method  # as placed on the mesh
    divergence: Divergence | None  # that ended the training
    interrupted: bool  # by a signal, or by an exception that carries this result
    halvings: tuple[Divergence, ...] = ()  # those after which training went on with halved steps
    signal: int | None = None  # which interrupted it

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        lines = [f"{self.method.name}, {last.get('epoch', 0)} epochs, {last.get('step', 0)} steps"]
        lines += [_told(last)] if last else []
        lines += [halving.message for halving in self.halvings]
        lines += [self.divergence.message] if self.divergence else []
        by = "an exception or Ctrl-C" if self.signal is None else Signals(self.signal).name
        lines += [f"interrupted by {by}"] if self.interrupted else []
        return "\n  ".join(lines)

    def predict(self, x: Tree) -> np.ndarray:
        """Outputs [samples, ...] of the composed network, on the host; every process must ask."""
        return outputs(self.method, self.state, x)

    def evaluate(self, data: Any, **ways: Any) -> dict[str, float]:
        """As `jtssm.evaluate`, of the state reached."""
        return evaluate(self.method, self.state, data, **ways)

    @property
    def params(self) -> list[Tree]:
        """The whole network's parameters, one tree a layer; every process must ask."""
        return self.method.params(self.state)

    def module(self) -> list:
        """The user's own modules, trained; see `jtssm.nn.Network.modules`."""
        return self.method.network.modules(self.params)


def _told(record: Mapping[str, float]) -> str:
    """The numbers of a line, as a person reads them."""
    tell = lambda a: f"{a:.4g}" if isinstance(a, float) else str(a)
    return ", ".join(f"{name} {tell(a)}" for name, a in record.items() if name != "epoch")
