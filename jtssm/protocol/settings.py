"""What a method was made with, as data: it can be read, compared, written down and used again."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import optax

from jtssm import checks, losses
from jtssm.nn.network import Network
from jtssm.protocol.optimizers import Told, state_names

if TYPE_CHECKING:
    from jtssm.protocol.method import Method

P = ParamSpec("P")
Reader = Callable[[Any], Any]


def _transformations(optimizer: Any) -> Any:
    """An optimizer, or several, with what `optax.MultiSteps` objects do in their place."""
    several = isinstance(optimizer, (list, tuple)) and not hasattr(optimizer, "init")
    return (
        tuple(map(checks.transformation, optimizer))
        if several
        else checks.transformation(optimizer)
    )


# of arguments that mean the same in every constructor: what several values stand for
READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "loss": losses.find,
        "compute_dtype": checks.compute_dtype,
        "optimizer": _transformations,
        "outer_optimizer": _transformations,
    }
)


@dataclass(frozen=True, eq=False, repr=False)
class Settings:
    """What a method was made with: its constructor and the arguments of it, but for the network.

    Two are equal where their documents are: where no argument that can be told differs. Of an
    optimizer of optax only the structure of its state can be told, unless it bears its words
    (`jtssm.solvers.optimizer`); of a loss its name.
    """

    constructor: str
    arguments: Mapping[str, Any]  # by name, defaults among them
    defaults: Mapping[str, Any]  # of the constructor's signature
    make: Callable[..., Method]

    def document(self) -> dict[str, Any]:
        """The settings as JSON holds them: {"method": name, "arguments": {name: value}}."""
        arguments = {name: plain(value) for name, value in self.arguments.items()}
        return {"method": self.constructor, "arguments": arguments}

    def closures(self) -> dict[str, Callable | optax.GradientTransformation]:
        """Functions and further optimizers among the arguments, whose numbers no document tells.

        The optimizer of the method and its loss are its program's.
        """
        kinds = optax.GradientTransformation
        found: dict[str, Callable | optax.GradientTransformation] = {}
        for name, value in self.arguments.items():
            if name in ("optimizer", "loss"):
                continue
            if isinstance(value, kinds) or (callable(value) and not isinstance(value, type)):
                found[name] = value
            elif isinstance(value, tuple):  # one optimizer a subnetwork
                own = {f"{name}[{i}]": a for i, a in enumerate(value) if isinstance(a, kinds)}
                found |= own
        return found

    def remade(self, net: Network) -> Method:
        """The method with the same arguments on another network.

        Raises:
          ValueError: what the constructor refuses of that network.
        """
        return self.make(net, **self.arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self.document() == other.document()

    def __hash__(self) -> int:
        return hash(self.constructor)

    def __repr__(self) -> str:
        """The call that makes the method, but for the network and what is left at its default."""
        own = {
            name: value
            for name, value in self.arguments.items()
            if name not in self.defaults or plain(value) != plain(self.defaults[name])
        }
        return _call(self.constructor, own)


def recorded(**readers: Reader) -> Callable[[Callable[P, Method]], Callable[P, Method]]:
    """A decorator that gives the methods of a constructor their `settings`.

    Args:
      readers: by argument, what finds the value that a given one stands for (a schedule by its name).
    """
    read = {**READERS, **readers}

    def keep(make: Callable[P, Method]) -> Callable[P, Method]:
        signature = inspect.signature(make)
        defaults = _defaults(signature, read)

        @functools.wraps(make)
        def made(*args: P.args, **kwargs: P.kwargs) -> Method:
            method = make(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            arguments = _kept(bound.arguments, read)
            settings = Settings(make.__name__, arguments, defaults, made)
            return method._replace(program=dataclasses.replace(method.program, settings=settings))

        return made

    return keep


def _defaults(signature: inspect.Signature, read: Mapping[str, Reader]) -> dict[str, Any]:
    """The arguments that a signature has defaults for."""
    left = {name: parameter.default for name, parameter in signature.parameters.items()}
    empty = inspect.Parameter.empty
    return _kept({name: value for name, value in left.items() if value is not empty}, read)


def _kept(arguments: Mapping[str, Any], read: Mapping[str, Reader]) -> dict[str, Any]:
    """All but the network, as the values they stand for, which nobody changes afterwards."""
    as_it_is: Reader = lambda value: value
    given = {name: value for name, value in arguments.items() if name != "net"}
    return {name: _fixed(read.get(name, as_it_is)(value)) for name, value in given.items()}


def _fixed(value: Any) -> Any:
    """A list or an array as a tuple."""
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    return tuple(value) if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """A value as JSON holds it: numbers, texts, lists and dicts, without addresses."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case np.generic():
            return value.item()
        case np.dtype() | Enum() | losses.Loss():
            return value.name
        case Told():
            return {"name": value.name} | plain(value.arguments)
        case optax.GradientTransformation():
            return {"state": state_names(value)}
        case Mapping():
            return {str(name): plain(each) for name, each in value.items()}
        case Sequence():
            return [plain(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__} | plain(dataclasses.asdict(value))
    # a function of optax that makes schedules returns one without a name of its own
    return getattr(value, "__qualname__", type(value).__name__).split(".<locals>")[0]


def _shown(value: object) -> str:
    """A value as a person reads it."""
    match value:
        case Told():
            return _call(value.name, value.arguments)
        case optax.GradientTransformation():
            return f"<{', '.join(state_names(value)) or 'an optimizer'}>"
        case tuple() if value and all(isinstance(a, optax.GradientTransformation) for a in value):
            return f"[{', '.join(map(_shown, value))}]"
    if dataclasses.is_dataclass(value):
        return repr(value)
    return checks.shown(plain(value))


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    """The call of a function."""
    return f"{name}({', '.join(f'{n}={_shown(value)}' for n, value in arguments.items())})"
