"""What an optimizer can be told by: its name and arguments, or else the structure of its state."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from jtssm import checks
from jtssm.arrays import Tree


class Told(optax.GradientTransformationExtraArgs):
    """An optax optimizer that bears the words it was made with; it does what the optimizer does."""

    name: str
    arguments: Mapping[str, Any]


def told(optimizer: optax.GradientTransformation, name: str, arguments: Mapping[str, Any]) -> Told:
    """The optimizer with a name and arguments, by which `method.settings` tells it from others."""
    found = Told(*optax.with_extra_args_support(optimizer))
    found.name, found.arguments = name, dict(arguments)
    return found


def optimizer(name: str, /, *values: Any, **arguments: Any) -> Told:
    """An optimizer of optax by its name, which says what it was made with.

    Of a function of optax nothing can be read but the structure of its state: two rates look alike.
    `method.settings` shows and compares one from here by its name and arguments.

    Args:
      name: of a function of optax, e.g. "adam".
      *values: its arguments by place.
      **arguments: its arguments by name.

    Raises:
      ValueError: no optimizer of optax, or one that is not made of such arguments.

    Examples:
      >>> import jtssm
      >>> from jtssm import solvers
      >>> adam = solvers.optimizer("adam", 1e-3, b1=0.8)
      >>> solvers.sgd(jtssm.mlp([4, 8, 3]), optimizer=adam, batch_size=20).settings
      sgd(optimizer=adam(learning_rate=0.001, b1=0.8), batch_size=20)
    """
    make = getattr(optax, name, None) if isinstance(name, str) else None
    if not callable(make):
        raise ValueError(
            f"name: expected a function of optax, e.g. 'adam'; got {checks.shown(name)}"
        )
    try:
        bound = inspect.signature(make).bind(*values, **arguments)
        made = make(*bound.args, **bound.kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"arguments: expected those of optax.{name}; got {checks.shown(arguments)}: {error}"
        ) from error
    if not isinstance(made, optax.GradientTransformation):
        raise ValueError(f"name: expected an optimizer of optax, e.g. 'adam'; got {name!r}")
    return told(made, name, _flat(bound))


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Arguments by name, those of a **kwargs too."""
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        many = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        found |= value if many else {name: value}
    return found


def state_names(optimizer: optax.GradientTransformation) -> list[str]:
    """Of an optimizer that bears no words: the names of the NamedTuples of its state, outer first."""
    toy = {
        "W": jax.ShapeDtypeStruct((8, 8), np.float32),
        "b": jax.ShapeDtypeStruct((8,), np.float32),
    }
    try:
        state = jax.eval_shape(optimizer.init, [toy])
    except Exception:  # of one made for a certain network
        return []
    return _names(state)


def accumulates(optimizer: optax.GradientTransformation, params: Tree) -> bool:
    """Whether it adds up gradients over steps, as `optax.MultiSteps` does; params: arrays or shapes."""
    return "MultiStepsState" in _names(jax.eval_shape(optimizer.init, params))


def words(optimizer: optax.GradientTransformation) -> str:
    """How a message calls an optimizer: by its words, else by the names of its states."""
    if isinstance(optimizer, Told):
        return f"optax.{optimizer.name}"
    names = ", ".join(state_names(optimizer))
    return f"an optimizer with the states {names}" if names else checks.shown(optimizer)


def _names(node: Tree) -> list[str]:
    """The names of the NamedTuples of a tree."""
    if isinstance(node, Mapping):
        return [name for value in node.values() for name in _names(value)]
    if not isinstance(node, (list, tuple)):
        return []
    own = [type(node).__name__] if hasattr(node, "_fields") else []
    return own + [name for value in node for name in _names(value)]
