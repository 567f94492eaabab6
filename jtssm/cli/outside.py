"""What is named as package.module:function: methods, networks and losses from outside the package."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jtssm import checks, losses, solvers
from jtssm.losses import Loss
from jtssm.nn.network import Network

NETWORK = "examples.language_model:network"


def known(word: str) -> str:
    """The name of a method; one given as package.module:function is registered by its own name.

    Raises:
      ValueError: no such module or function, or a name that another method bears.
    """
    if ":" not in word:
        return word
    name = word.partition(":")[2]
    solvers.register(name, loaded("method", word, "examples.diloco:diloco"))
    return name


def network(word: str, samples: Mapping[str, np.ndarray]) -> Network:
    """The network that a function makes, which may take arguments x and y, the training samples.

    samples: "x" and "y", or none where the command has none.

    Raises:
      ValueError: no such function, one that asks for something else, fails, or gives no network.
    """
    make = loaded("--net", word, NETWORK)
    given = {name: samples[name] for name in _asked(word, make, samples)}
    found = _called("--net", word, make, given)
    if not isinstance(found, Network):
        raise ValueError(
            f"--net: expected a function that returns a network, e.g. of nn.from_linen or jtssm.mlp; got "
            f"{type(found).__name__} of {word}"
        )
    return found


def loss(word: str) -> Callable | str | Loss:
    """A loss by its name, or a function or `losses.Loss` as package.module:name.

    Raises:
      ValueError: neither.
    """
    given = loaded("--loss", word, "my_module:my_loss") if ":" in word else word
    try:
        losses.find(given)
    except ValueError as error:
        raise ValueError(f"--{error}") from error
    return given


def loaded(option: str, word: str, example: str) -> Any:
    """What package.module:name names; modules are also looked for in the folder at hand.

    Raises:
      ValueError: no such module or name, a module that fails.
    """
    module, _, name = word.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a module of the user's raises
        raise ValueError(
            f"{option}: expected package.module:function, e.g. {example}; got {checks.shown(word)}: "
            f"{_told(error)}"
        ) from error


def _asked(word: str, make: Any, samples: Mapping[str, np.ndarray]) -> list[str]:
    """Which of the samples a function wants."""
    if not callable(make):
        raise ValueError(f"--net: expected a function; got {checks.shown(make)} of {word}")
    parameters = inspect.signature(make).parameters.values()
    empty = inspect.Parameter.empty
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    strange = [
        p.name
        for p in parameters
        if p.name not in samples and p.default is empty and p.kind not in variadic
    ]
    if strange:
        takes = "x and y, the training samples" if samples else "none here, where no samples are"
        raise ValueError(
            f"--net: expected a function whose arguments without a default are, if any, {takes}; got "
            f"{word}{inspect.signature(make)}"
        )
    return [p.name for p in parameters if p.name in samples]


def _called(option: str, word: str, function: Callable, given: Mapping[str, np.ndarray]) -> object:
    try:
        return function(**given)
    except Exception as error:  # whatever a function of the user's raises
        raise ValueError(f"{option}: {word} raised {_told(error)}") from error


def _told(error: Exception) -> str:
    """An error in one line, with its type where it is not one of our own kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
