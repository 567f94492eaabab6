"""Options of a method from its constructor: names, types and defaults of the signature, help texts of
the docstring.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType, NoneType
from typing import Any, get_args, get_type_hints

from jtssm.cli.readers import Reader, either, integer, integers, number, numbers
from jtssm.protocol.method import Method

Constructor = Callable[..., Method]

NOT_OPTIONS = (
    "net",  # --net, --hidden and their like describe it
    "optimizer",  # made of --optimizer, --learning-rate and --rates
    "loss",  # the data sets have labels: cross entropy
)
READERS: dict[Any, tuple[Reader, str]] = {
    int: (integer, "N"),
    float: (number, "X"),
    str: (str, "NAME"),
    Any: (str, "NAME"),  # precision and compute_dtype: jax has types for them, and names
    Sequence[int]: (integers, "N,..."),
    Sequence[float]: (numbers, "X,..."),
}
NONE: Mapping[str, str] = MappingProxyType({})
# a new argument, or the next one behind a full stop and two spaces
ENTRY = re.compile(r"\n  (?=\S)|(?<=\.)  (?=\w+(?:, \w+)*: )")


def takes(make: Constructor, name: str) -> bool:
    """Whether the constructor has an argument of that name."""
    return name in inspect.signature(make).parameters


def described(make: Constructor) -> dict[str, str]:
    """The text of each argument in the section Args of a constructor's docstring.

    Several may stand on one line, "rho: a text.  alpha: another.", or share a text, "rho, nu: both."
    """
    _, _, section = (inspect.getdoc(make) or "").partition("\nArgs:")
    lines = takewhile(lambda line: line.startswith("  "), section.splitlines()[1:])
    texts: dict[str, str] = {}
    for entry in ENTRY.split("\n".join(["", *lines]))[1:]:
        names, _, text = entry.partition(": ")
        texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return texts


def summary(make: Constructor) -> str:
    """The first line of a constructor's docstring."""
    return (inspect.getdoc(make) or "").split("\n")[0]


def prose(make: Constructor) -> str:
    """A constructor's docstring but for its sections."""
    text = re.split(r"\n(?:Args|Raises|Returns):\n", inspect.getdoc(make) or "")[0]
    return text.replace("`", "")


def flag(name: str) -> str:
    """The option of an argument."""
    return "--" + name.replace("_", "-")


def names(make: Constructor) -> list[str]:
    """The arguments that are options."""
    return [name for name in inspect.signature(make).parameters if name not in NOT_OPTIONS]


def add_options(
    command: argparse.ArgumentParser, make: Constructor, defaults: Mapping[str, int],
    found: Mapping[str, str] = NONE, *, but: str = "",
) -> None:  # fmt: skip
    """Add the options of a constructor to a command's, in a group that bears its name.

    Args:
      defaults: the command's, of arguments that the signature has no default for.
      found: how the command finds an argument that is not given.
      but: an argument that the command makes of options of its own.
    """
    group = command.add_argument_group(make.__name__, "None: where the option is not given.")
    texts, hints = described(make), get_type_hints(make)
    parameters = inspect.signature(make).parameters
    for name in names(make):
        if name == but:
            continue
        left = found.get(name, defaults.get(name, parameters[name].default))
        text = _help(texts.get(name, ""), left)
        if hints[name] is bool:
            # None, as everywhere, where it is not given: the constructor's own default
            group.add_argument(flag(name), action="store_true", default=None, help=text)
            continue
        read, shown = _reader(hints[name])
        group.add_argument(
            flag(name), type=read, metavar=shown, help=text, default=defaults.get(name),
            required=left is inspect.Parameter.empty,
        )  # fmt: skip


def _help(text: str, default: object) -> str:
    """A text and the default behind it, unless the text says what None means."""
    text = text.replace("`", "").replace("%", "%%")
    if default is None or default is False:
        return text
    text = text.removesuffix(".")
    return (
        f"{text}; required" if default is inspect.Parameter.empty else f"{text}; default: {default}"
    )


def _reader(hint: Any) -> tuple[Reader, str]:
    """How a type is read, and what stands for it in the help; of a union: its types in turn."""
    kinds = {hint} if hint in READERS else set(get_args(hint)) - {NoneType}
    (read, shown), *others = (READERS[kind] for kind in READERS if kind in kinds)
    for other, word in others:
        read, shown = either(read, other), f"{shown}|{word}"
    return read, shown


def given(arguments: argparse.Namespace, make: Constructor) -> dict[str, Any]:
    """The arguments of a constructor that the command line gives, or its command for it."""
    read = {name: getattr(arguments, name, None) for name in names(make)}
    return {name: value for name, value in read.items() if value is not None}
