"""How a flax module is told whether it trains: by arguments and attributes of names that are known.

Words of one's own are told by `mode`. A boolean argument that nobody speaks of is refused: the module
would train as it predicts, without dropout and with old statistics, and nothing would show it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from jtssm import checks
from jtssm.arrays import Array
from jtssm.nn.adapted import Call

# what modules call the argument that tells training from prediction, and its value while training
MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "eval": False,
}
FREEZING = "use_running_average"  # of batch normalisation, in linen and in nnx
DROPPING = "deterministic"  # of dropout, in both
OFF = (
    "expected dropout that is on while training; got a module whose dropout stays off: if a flag of "
    "another name tells it to train, say so by mode={name: True}; if it is to stay off, by "
    "mode={'deterministic': (True, True)}"
)
BOOLEAN = re.compile(r"(\w+\.)?(Optional\[)?(<class 'bool'>|bool)\]?( \| None)?")

# arguments by which random numbers come at call time
RANDOM = re.compile(r"(\w+_)?rng|((dropout|prng|rng)_)?key")

Words = dict[str, tuple[Any, Any]]  # name -> its value while training, in prediction


def told(mode: Mapping[str, Any] | None) -> Words:
    """What a user says of arguments: True or False while training, or a pair with prediction's.

    Raises:
      ValueError: something else.
    """
    if mode is None:
        return {}
    if not isinstance(mode, Mapping) or not all(isinstance(name, str) for name in mode):
        raise ValueError(
            f"mode: expected names of arguments and their values while training, e.g. "
            f"{{'is_train': True}}; got {checks.shown(mode)}"
        )
    return {name: _pair(name, value) for name, value in mode.items()}


def _pair(name: str, value: Any) -> tuple[Any, Any]:
    if isinstance(value, bool):
        return value, not MODES.get(name, value)
    if isinstance(value, tuple) and len(value) == 2:
        return value
    raise ValueError(
        f"mode[{name!r}]: expected True or False while training, or a pair of values, while training "
        f"and in prediction; got {checks.shown(value)}"
    )


def kept_off(said: Words) -> bool:
    """Whether the user speaks of something that does not change with training, as of what is frozen."""
    return any(training == prediction for training, prediction in said.values())


def all_taken(said: Words, taken: Iterable[str]) -> None:
    """Some module takes each word that was said.

    Raises:
      ValueError: a word that none takes.
    """
    if strange := sorted(set(said) - set(taken)):
        raise ValueError(
            f"mode: expected names of arguments or attributes of the modules; got {strange}, which none "
            f"of them has"
        )


def of_flax(module: object) -> bool:
    """Whether flax itself wrote how a module is called."""
    calls = (vars(kind).get("__call__") for kind in type(module).__mro__)
    call = next((call for call in calls if call is not None), type(module))
    return str(getattr(inspect.unwrap(call), "__module__", "")).startswith("flax.")


def words(i: int, module: Any, said: Words) -> Words:
    """The arguments of a module's call that tell whether it trains.

    Raises:
      ValueError: a boolean argument whose meaning is not known.
    """
    found = {}
    for name, argument in _arguments(module).items():
        if name in said:
            found[name] = said[name]
        elif name in MODES:
            found[name] = MODES[name], not MODES[name]
        elif _boolean(argument) and not of_flax(module):
            raise ValueError(
                f"mode: expected the value while training of {name!r}, an argument of module {i}, "
                f"{type(module).__name__}, e.g. mode={{{name!r}: True}}, or {name!r}: (False, False) for "
                f"one that is always False; got nothing"
            )
    return found


def _arguments(module: Any) -> dict[str, inspect.Parameter]:
    """Those of the module's call, but for the first: the samples."""
    known = list(inspect.signature(module.__call__).parameters.items())[1:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: a for name, a in known if a.kind not in variadic}


def _boolean(argument: inspect.Parameter) -> bool:
    return isinstance(argument.default, bool) or bool(BOOLEAN.fullmatch(str(argument.annotation)))


def _keyed(arguments: Mapping[str, inspect.Parameter]) -> dict[str, bool]:
    """Arguments that take a key of random numbers: whether they must be given.

    One called key beside a value is not of random numbers but of attention.
    """
    bare = {name: a.default is a.empty for name, a in arguments.items()}
    return {
        name: must
        for name, must in bare.items()
        if RANDOM.fullmatch(name)
        and (must or arguments[name].default is None)
        and not (name == "key" and "value" in arguments)
    }


def calling(module: Any, found: Words) -> Callable[[Call], tuple[list[Any], dict[str, Any]]]:
    """A call -> positional and keyword arguments, after the samples.

    An argument of random numbers gets a key wherever something may be dropped, else None if it may be.
    By position where that is possible: `linen.remat` takes static arguments in no other way.
    """
    arguments = _arguments(module)
    placed = list(_by_position(arguments, found))
    keyed = {} if of_flax(module) else _keyed(arguments)

    def given(call: Call) -> tuple[list[Any], dict[str, Any]]:
        values: dict[str, Any] = {name: pair[not call.training] for name, pair in found.items()}
        key: Array = jax.random.key(0) if call.key is None else call.key
        values |= {name: key for name, must in keyed.items() if must or call.drops}
        positional = [values.pop(name, arguments[name].default) for name in placed]
        return positional, values

    return given


def _by_position(arguments: Mapping[str, inspect.Parameter], found: Words) -> Sequence[str]:
    """The arguments up to the last word that can all be given by position."""
    names = []
    for name, a in arguments.items():
        if a.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            break
        if name not in found and a.default is inspect.Parameter.empty:
            break
        names.append(name)
    while names and names[-1] not in found:
        names.pop()
    return names
