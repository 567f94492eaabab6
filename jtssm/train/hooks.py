"""What happens beside the training: hooks, which the trainer calls at its moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from jtssm import checks
from jtssm.protocol.info import Info
from jtssm.sharding.agreement import end_all
from jtssm.train.divergence import Divergence
from jtssm.train.result import Epoch

if TYPE_CHECKING:
    from jtssm.train.trainer import Trainer

T = TypeVar("T")


class Hook:
    """What is called when, with what; a hook overrides the moments that it wants.

    The trainer calls all hooks in the order of their list, every process at the same moments; what one
    of them raises ends the training, in every process, and carries its result. A process may have hooks
    that others lack; these must ask nothing that all processes must ask. `fit` has a hook each for
    halving, the bar, the user's callbacks, signals and checkpoints, and takes others among its callbacks.

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import solvers
      >>> from jtssm.data import synthetic
      >>> from jtssm.train.hooks import Hook
      >>> class Steps(Hook):
      ...     def on_chunk(self, trainer, infos):
      ...         print("steps", trainer.at.steps, infos.loss.shape)
      >>> x, y = synthetic.separable(0, 100, 4, 3)
      >>> method = solvers.sgd(jtssm.mlp([4, 8, 3]), optimizer=optax.adam(1e-2), batch_size=50)
      >>> result = jtssm.fit(method, (x, y), epochs=2, key=jax.random.key(0), callbacks=[Steps()])
      steps 2 (2,)
      steps 4 (2,)
    """

    def on_begin(self, trainer: Trainer) -> None:
        """Before the first step, at the start or where the checkpoint stands."""

    def on_chunk(self, trainer: Trainer, infos: Info) -> None:
        """After a chunk of steps that went well, one dispatch; infos: arrays [steps] on the host."""

    def on_steps(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Every `log_every` steps of `fit`: what they have shown, their means, once they are done."""

    def on_line(self, trainer: Trainer, epoch: Epoch) -> object:
        """After a line was added to the history; what it adds to `epoch.record` stands there too.

        Returns:
          A true bool of Python, numpy or jax stops the training, in all processes; nothing else does.
        """

    def on_place(self, trainer: Trainer) -> None:
        """Where the run can be gone on from: after a chunk before a line is due, and after a line.

        `trainer.checkpoint()` gives what that needs, if all processes ask.
        """

    def on_divergence(self, trainer: Trainer, divergence: Divergence) -> bool:
        """After a chunk in which a number stopped being finite; the state is that before the chunk.

        Returns:
          Whether this hook has called `trainer.go_back`, so that training goes on from there; hooks
          after it find the trainer where it then stands. If none has, the training ends.
        """
        return False

    def on_end(self, trainer: Trainer) -> None:
        """After the last line, a stop, a divergence or a signal; not after an exception."""


class Callback(Hook):
    """A user's function of an `Epoch`, called at every line."""

    def __init__(self, function: Callable[[Epoch], object]):
        self.function = function

    def on_line(self, trainer: Trainer, epoch: Epoch) -> object:
        return self.function(epoch)


def as_hooks(callbacks: Sequence[Callable[[Epoch], object] | Hook]) -> Sequence[Hook]:
    """Hooks of functions and hooks.

    Raises:
      ValueError: something else is among them.
    """
    listed = isinstance(callbacks, (list, tuple))
    if not listed or not all(callable(a) or isinstance(a, Hook) for a in callbacks):
        raise ValueError(
            f"callbacks: expected a list of functions, e.g. [print]; got {checks.shown(callbacks)}"
        )
    return [call if isinstance(call, Hook) else Callback(call) for call in callbacks]


def ask(hooks: Sequence[Hook], moment: Callable[[Hook], T]) -> list[T]:
    """What each hook says at a moment.

    What one raises in one of several processes ends all: those after it are still called, for they may
    wait for the other processes, and then every process raises.
    """
    if jax.process_count() == 1:
        return [moment(hook) for hook in hooks]
    said, wrong = [], None
    for hook in hooks:
        try:
            said.append(moment(hook))
        except BaseException as error:
            wrong = wrong or error
    end_all(wrong)
    return said


def is_true(returned: Any) -> bool:
    """Whether a hook returned a true bool: what a function happens to return, a number, is none."""
    if isinstance(returned, bool):
        return returned
    array = hasattr(returned, "dtype") and returned.dtype == np.bool_ and np.size(returned) == 1
    return array and bool(np.asarray(returned).item())
