"""What training comes to: the result of `fit`, and the composed network's loss and accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from signal import Signals
from typing import Any, NamedTuple

import numpy as np

from jtssm import checks
from jtssm.arrays import Tree
from jtssm.protocol.method import Method
from jtssm.train.divergence import Divergence
from jtssm.train.evaluation import evaluate, outputs
from jtssm.train.written import saved


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

    def to_pandas(self) -> Any:
        """The history as a DataFrame of pandas, a row a line, with the epoch as its index.

        Raises:
          ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.history).set_index("epoch")

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write history.jsonl, params.npz and params.json; every process must ask, the first writes.

        `jtssm.load_params(folder)` reads the weights; the state, to go on from, is what
        `jtssm.fit(checkpoint=)` keeps.

        Args:
          folder: is made where it is not there.
          overwrite: whether files of these names in it are replaced.

        Raises:
          ValueError: files of these names are there.
          OSError: they cannot be written.
        """
        saved(self.history, self.params, checks.path("folder", folder), overwrite)

    def module(self) -> list:
        """The user's own modules, trained; see `jtssm.nn.Network.modules`."""
        return self.method.network.modules(self.params)


def _told(record: Mapping[str, float]) -> str:
    """The numbers of a line, as a person reads them."""
    tell = lambda a: f"{a:.4g}" if isinstance(a, float) else str(a)
    return ", ".join(f"{name} {tell(a)}" for name, a in record.items() if name != "epoch")
