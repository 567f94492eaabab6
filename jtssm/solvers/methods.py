"""The methods by name: ours, and those that are registered from outside."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from jtssm import checks
from jtssm.protocol.method import Method
from jtssm.protocol.settings import recorded
from jtssm.solvers.descent import sgd
from jtssm.solvers.layerwise import pdadmm
from jtssm.solvers.pipelines import pipeline
from jtssm.solvers.tssm import gsadmm, gsam
from jtssm.solvers.workers.averaging import ensemble, local_sgd
from jtssm.solvers.workers.ist import ist

METHODS: dict[str, Callable[..., Method]] = {
    "ensemble": ensemble,
    "gsadmm": gsadmm,
    "gsam": gsam,
    "ist": ist,
    "local_sgd": local_sgd,
    "pdadmm": pdadmm,
    "pipeline": pipeline,
    "sgd": sgd,
}


def register(name: str, constructor: Callable[..., Method]) -> None:
    """Make a method of one's own known by name to `plan`, `sweep` and the command line.

    Args:
      name: a Python identifier that no other method bears. The same constructor may be registered again.
      constructor: (net, *, ...) -> Method. An argument `batch_size` is given the samples of a gradient;
        `subnets` or `cuts` say into how many pieces the network is cut; with `local_steps`, unless its
        default is None, it is a method of workers, whose number is the one other argument without a
        default. Options of the command line are its other arguments: their types are read from the
        signature, their texts from the section "Args:" of the docstring.

    Raises:
      ValueError: another name, a name that is taken, or another constructor.

    Examples:
      >>> import jtssm
      >>> from jtssm import solvers
      >>> def slow_sgd(net, *, optimizer, batch_size):
      ...     return solvers.sgd(net, optimizer=optimizer, batch_size=batch_size)
      >>> solvers.register("slow_sgd", slow_sgd)
      >>> net = jtssm.mlp([4, 8, 3])
      >>> adam = solvers.optimizer("adam", 1e-3)
      >>> solvers.METHODS.pop("slow_sgd")(net, optimizer=adam, batch_size=20).settings
      slow_sgd(optimizer=adam(learning_rate=0.001), batch_size=20)
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name: expected an identifier, e.g. 'diloco'; got {checks.shown(name)}")
    known = METHODS.get(name, constructor)
    if inspect.unwrap(known) is not inspect.unwrap(constructor):
        raise ValueError(
            f"name: expected one that is not taken, not of {list(METHODS)}; got {name!r}"
        )
    if not callable(constructor):
        raise ValueError(
            f"constructor: expected a function (net, *, ...) -> Method; got {checks.shown(constructor)}"
        )
    first, *others = inspect.signature(constructor).parameters.values()
    named = all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in others)
    if first.name != "net" or not named:
        raise ValueError(
            f"constructor: expected arguments (net, *, ...), all but net by name; got "
            f"{inspect.signature(constructor)}"
        )
    METHODS[name] = recorded()(inspect.unwrap(constructor))
