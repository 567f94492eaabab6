"""flax linen modules as layers of a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import jax

from jtssm.arrays import Array, Shaped, Tree
from jtssm.nn.adapted import Call, Pure
from jtssm.nn.interop.adapt import chained, dropped, listed, need_flax
from jtssm.nn.interop.functions import of_function
from jtssm.nn.network import Network

if TYPE_CHECKING:
    from flax import linen

# what modules call the argument that tells training from prediction, and its value while training
MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "eval": False,
}
STREAMS = ("params", "dropout")  # of random numbers, unless given
STATE = "batch_stats"


def from_linen(
    modules: Sequence[linen.Module | Callable],
    sample_input: Shaped,
    *,
    streams: Sequence[str] = STREAMS,
) -> Network:
    """A network of flax linen modules, each a layer: what `solvers` train and cut.

    Parameters start from `module.init` with the key of the method. An argument of `__call__` named
    train, training or is_training is True while training, one named deterministic, use_running_average or
    eval is False then. Dropout draws anew in every step; `nn.BatchNorm` trains as `jtssm.nn.adapted`
    says.

    Args:
      modules: linen modules and functions without parameters (jax.nn.relu), called as f(x).
      sample_input: [samples, ...], as for `module.init`; integers (tokens) up to 2^24 reach the first
        module as int32.
      streams: of random numbers that modules draw from.

    Raises:
      ImportError: without flax.
      ValueError: no modules, one that does not take what the one before it gives or has variables other
        than "params" and "batch_stats".
    """
    need_flax("from_linen")
    from flax import linen

    given = listed(modules)
    for i, module in enumerate(given):
        if not isinstance(module, linen.Module) and not callable(module):
            raise ValueError(
                f"modules: expected linen modules or functions; got {module!r} as entry {i}"
            )
    makers: list[Callable[[], Pure]] = [
        lambda m=m: _adapted(m, tuple(streams)) if isinstance(m, linen.Module) else of_function(m)  # type: ignore[misc]
        for m in given
    ]
    return chained(makers, sample_input)


def _adapted(module: linen.Module, streams: tuple[str, ...]) -> Pure:
    from flax import linen

    known = inspect.signature(module.__call__).parameters

    def mode(training: bool) -> dict[str, Any]:
        return {name: MODES[name] == training for name in known if name in MODES}

    def draw(key: Array, x: Array) -> tuple[Tree, Tree]:
        variables = dict(module.init(_keys(key, streams), x, **mode(False)))
        params, state = variables.pop("params", {}), variables.pop(STATE, {})
        if variables:
            raise ValueError(
                f"expected modules with no variables but 'params' and {STATE!r}; got {sorted(variables)}"
            )
        return params, state

    def run(params: Tree, state: Tree, x: Array, call: Call) -> tuple[Array, Tree]:
        variables = {"params": params} | ({STATE: state} if state else {})
        rngs = _keys(jax.random.key(0) if call.key is None else call.key, streams)
        kept = [STATE] if state and call.training else False
        with linen.intercept_methods(_interceptor(call)):
            found: Any = module.apply(variables, x, rngs=rngs, mutable=kept, **mode(call.training))
        y, new = found if kept else (found, {STATE: state})
        return y, new.get(STATE, state)

    whole = lambda params, state: (module, {"params": params} | ({STATE: state} if state else {}))
    return Pure(type(module).__name__, draw, run, whole)


def _keys(key: Array, streams: Sequence[str]) -> dict[str, Array]:
    return {name: jax.random.fold_in(key, i) for i, name in enumerate(streams)}


def _interceptor(call: Call) -> Callable:
    """Means over all devices and samples at hand; without a key no dropout."""
    from flax import linen

    numbers = count()

    def intercept(
        next_fun: Callable, args: tuple, kwargs: dict, context: linen.module.InterceptorContext
    ) -> Any:
        module = context.module
        if context.method_name == "__call__" and isinstance(module, linen.BatchNorm):
            _set(module, axis_name=call.axes or None)
            if call.estimating:
                _set(module, momentum=0.0)
        if context.method_name == "__call__" and isinstance(module, linen.Dropout):
            fixed = kwargs.get("deterministic", args[1] if len(args) > 1 else module.deterministic)
            if fixed or not call.drops:
                return args[0]
            if call.keys is not None:
                return dropped(args[0], call, next(numbers), module.rate, module.broadcast_dims)
        return next_fun(*args, **kwargs)

    return intercept


def _set(module: linen.Module, **attributes: object) -> None:
    """As flax itself sets attributes of its frozen modules."""
    for name, value in attributes.items():
        object.__setattr__(module, name, value)
