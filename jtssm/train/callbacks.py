"""Callbacks for daily use: stop early, average weights, look at steps, TensorBoard. `jtssm.callbacks`.

They are given to `jtssm.fit(callbacks=[...])`; what they keep is no part of a checkpoint, but for
`EarlyStopping`, which finds it in the history.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.protocol.info import Info
from jtssm.sharding.distributed import is_first
from jtssm.sharding.placement.on_host import gathered
from jtssm.train.divergence import Divergence
from jtssm.train.evaluation import evaluate
from jtssm.train.hooks import Hook
from jtssm.train.result import Epoch

if TYPE_CHECKING:
    from jtssm.train.trainer import Trainer

__all__ = ["Averaging", "EarlyStopping", "Steps", "TensorBoard"]

MODES = {"min": -1, "max": 1}


class EarlyStopping(Hook):
    """Stops the training when a number of the history no longer improves.

    Args:
      monitor: its name in a line, e.g. "validation_loss", "valid_accuracy".
      patience: how many lines without an improvement stop it.
      least: by how much better than the best so far an improvement is; the unit of the number.
      mode: "min", "max"; None: "max" where the name ends with accuracy, else "min".
      keep_params: whether the weights of the best line are kept, in host memory; then every process
        must have this callback.

    Attributes:
      best: the best number so far.
      best_epoch: the epoch of its line; 0: none was better than nothing.
      params: its weights, one tree a layer of numpy arrays, or None; those of lines from before a
        checkpoint are not known.

    Raises:
      ValueError: bad arguments; at the first line, a number that it does not have.

    A number that is nan is no improvement. A run that goes on from a checkpoint counts the lines before.

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import callbacks, solvers
      >>> from jtssm.data import synthetic
      >>> x, y = synthetic.separable(0, 100, 4, 3)
      >>> method = solvers.sgd(jtssm.mlp([4, 8, 3]), optimizer=optax.sgd(0.0), batch_size=50)
      >>> stop = callbacks.EarlyStopping("validation_loss", patience=2)
      >>> result = jtssm.fit(
      ...     method, (x, y), epochs=9, key=jax.random.key(0), validation=(x, y), callbacks=[stop]
      ... )
      >>> len(result.history), stop.best_epoch
      (3, 1)
    """

    def __init__(
        self,
        monitor: str = "validation_loss",
        *,
        patience: int = 3,
        least: float = 0.0,
        mode: str | None = None,
        keep_params: bool = False,
    ):
        if not isinstance(monitor, str) or not monitor:
            raise ValueError(
                f"monitor: expected a name, e.g. 'validation_loss'; got {checks.shown(monitor)}"
            )
        (self.patience,) = checks.count(patience=patience)
        (self.least,) = checks.not_negative(least=least)
        if mode is not None:
            checks.one_of("mode", mode, list(MODES))
        self.monitor, self.keep_params = monitor, checks.flag("keep_params", keep_params)
        self.mode = mode or ("max" if monitor.endswith("accuracy") else "min")
        self._forget()

    def _forget(self) -> None:
        self.best, self.best_epoch, self._waited = -inf * MODES[self.mode], 0, 0
        self._lines = self._best_line = 0  # seen; the number of the best
        self.params: list[Tree] | None = None

    def on_begin(self, trainer: Trainer) -> None:
        """The lines before the checkpoint count, too."""
        self._forget()
        for line in trainer.history:
            self._see(line)

    def on_line(self, trainer: Trainer, epoch: Epoch) -> bool:
        """Whether it has waited long enough."""
        better = self._see(epoch.record)
        if better and self.keep_params:
            self.params = jax.tree.map(np.array, gathered(epoch.method.params(epoch.state)))
        return self._waited >= self.patience

    def on_divergence(self, trainer: Trainer, divergence: Divergence) -> bool:
        """Of lines that were dropped nothing counts."""
        if len(trainer.history) < self._lines:
            kept = self.params if self._best_line < len(trainer.history) else None
            self.on_begin(trainer)
            self.params = kept
        return False

    def _see(self, line: Mapping[str, float]) -> bool:
        """Whether a line is the best so far."""
        if self.monitor not in line:
            numbers = [name for name, a in line.items() if isinstance(a, float)]
            raise ValueError(
                f"monitor: expected a number of the history's lines, one of {numbers}; got "
                f"{self.monitor!r}: numbers on held-out samples come with fit(validation=...)"
            )
        sign, value = MODES[self.mode], line[self.monitor]
        first = not isfinite(self.best)
        better = isfinite(value) and (first or sign * (value - self.best) > self.least)
        if better:
            self.best, self.best_epoch = value, int(line["epoch"])
            self._best_line = self._lines
        self._lines += 1
        self._waited = 0 if better else self._waited + 1
        return better


class Steps(Hook):
    """Calls a function every `log_every` steps, as `jtssm.fit(log_every=)` says.

    Args:
      function: called with what the steps since the call before have shown: a dict of step, the
        means of loss and accuracy weighted by samples, their number, and what the method shows.

    It is called after the dispatch in which the step was taken, at most 50 steps later; steps that are
    done again after a divergence are told again.

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import callbacks, solvers
      >>> from jtssm.data import synthetic
      >>> x, y = synthetic.separable(0, 120, 4, 3)
      >>> method = solvers.sgd(jtssm.mlp([4, 8, 3]), optimizer=optax.adam(1e-2), batch_size=20)
      >>> told = callbacks.Steps(lambda record: print(record["step"], record["samples"]))
      >>> result = jtssm.fit(
      ...     method, (x, y), epochs=1, key=jax.random.key(0), callbacks=[told], log_every=4
      ... )
      4 80.0
    """

    def __init__(self, function: Callable[[dict[str, float]], object]):
        if not callable(function):
            raise ValueError(
                f"function: expected a function of a dict, e.g. print; got {checks.shown(function)}"
            )
        self.function = function

    def on_steps(self, trainer: Trainer, record: dict[str, float]) -> None:
        self.function(record)


class Averaging(Hook):
    """An exponential moving average of the weights, as they stand between dispatches of steps.

    a <- decay^n a + (1 - decay^n) w after each dispatch of n steps (at most 50; n is 1 with one step an
    epoch, as resident methods have), from the weights at the start on: with steps in between left out,
    the average over the last 1 / (1 - decay) steps or so. Of a mesh it is in host memory. Every
    process must have it.

    Args:
      decay: a step's, from 0 to below 1.
      validation: (x, y), or several by name, on which every line of the history evaluates the average:
        `average_loss`, `average_valid_accuracy`, ...

    Attributes:
      params: the average, one tree a layer, as `Result.params`; `net.apply(params, x)` runs it.

    A run that goes on from a checkpoint, or back after a divergence, begins the average anew.

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import callbacks, solvers
      >>> from jtssm.data import synthetic
      >>> x, y = synthetic.separable(0, 100, 4, 3)
      >>> method = solvers.sgd(jtssm.mlp([4, 8, 3]), optimizer=optax.adam(1e-2), batch_size=50)
      >>> average = callbacks.Averaging(0.9, validation=(x, y))
      >>> result = jtssm.fit(method, (x, y), epochs=2, key=jax.random.key(0), callbacks=[average])
      >>> sorted(name for name in result.history[-1] if name.startswith("average"))
      ['average_accuracy', 'average_loss']
    """

    def __init__(self, decay: float = 0.999, *, validation: Any = None):
        self.decay, self.validation = checks.share("decay", decay, 0.999, whole=False), validation
        self.params: list[Tree] = []
        self._steps = 0

    def on_begin(self, trainer: Trainer) -> None:
        self._anew(trainer)

    def on_chunk(self, trainer: Trainer, infos: Info) -> None:
        kept = self.decay ** (trainer.at.steps - self._steps)
        new = _weights(trainer.method, trainer.state)
        self.params = _mixed(self.params, new, np.float32(kept))
        self._steps = trainer.at.steps

    def on_line(self, trainer: Trainer, epoch: Epoch) -> None:
        if self.validation is not None:
            found = evaluate(
                epoch.method, epoch.state, self.validation, params=lambda _: self.params
            )
            epoch.record.update({f"average_{name}": a for name, a in found.items()})

    def on_divergence(self, trainer: Trainer, divergence: Divergence) -> bool:
        self._anew(trainer)
        return False

    def _anew(self, trainer: Trainer) -> None:
        new = _weights(trainer.method, trainer.state)
        self.params, self._steps = _mixed(new, new, np.float32(1)), trainer.at.steps


def _weights(method: Any, state: Tree) -> list[Tree]:
    """The network's parameters, of a mesh gathered on the host."""
    params = method.params(state)
    return params if method.mesh is None else gathered(params)


@jax.jit
def _mixed(old: Tree, new: Tree, kept: Array) -> Tree:
    """kept * old + (1 - kept) * new of what is counted in floats, never the same memory; else the new."""

    def mix(a: Array, b: Array) -> Array:
        if not np.issubdtype(b.dtype, np.inexact) and b.dtype.name != "bfloat16":
            return b
        share = kept.astype(b.dtype)
        return share * a + (1 - share) * b

    return jax.tree.map(mix, old, new)


class TensorBoard(Hook):
    """Writes the history's numbers, and those of steps with `jtssm.fit(log_every=)`, for TensorBoard.

    Args:
      folder: for its event files; of several processes the first writes them. `tensorboard --logdir
        FOLDER` shows them.

    Numbers of a line stand at its step under their names ("valid_loss" as valid/loss), those of steps
    under steps/. What is nan is left out. A run that goes on writes on.

    Raises:
      ImportError: tensorboardX is not installed.
    """

    def __init__(self, folder: str | Path):
        self.folder = checks.path("folder", folder)
        self._module = _module("tensorboardX", "jtssm[tensorboard]")
        self._writer: Any = None

    def on_begin(self, trainer: Trainer) -> None:
        if is_first():
            self._writer = self._module.SummaryWriter(str(self.folder))

    def on_steps(self, trainer: Trainer, record: dict[str, float]) -> None:
        self._write(record, "steps/")

    def on_line(self, trainer: Trainer, epoch: Epoch) -> None:
        self._write(epoch.record)

    def on_end(self, trainer: Trainer) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write(self, record: Mapping[str, Any], prefix: str = "") -> None:
        """The numbers of a line or of steps, at their step."""
        if self._writer is None:
            return
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)) and isfinite(value):
                tag = prefix + (name if prefix else name.replace("_", "/", 1))
                self._writer.add_scalar(tag, value, int(record["step"]))
        self._writer.flush()


def _module(name: str, wanted: str) -> Any:
    """A module that need not be installed.

    Raises:
      ImportError: it is not.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"callbacks: this one needs {name}: pip install {wanted!r}") from error
