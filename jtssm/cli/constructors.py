"""Options of a method from its constructor: names, types and defaults of the signature, help texts of
the docstring. Where an argument is a dataclass (a schedule), or one of several, their fields are
options as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

import optax

from jtssm.cli.readers import Reader, either, integer, integers, number, numbers, optimizer
from jtssm.protocol.arguments import NONE, described
from jtssm.protocol.method import Method

Constructor = Callable[..., Method]
Kinds = Mapping[str, type]  # dataclasses by the words that stand for them

NOT_OPTIONS = (
    "net",  # --net, --hidden and their like describe it
    "optimizer",  # made of --optimizer, --learning-rate and --rates
    "loss",  # --loss
)
READERS: dict[object, tuple[Reader, str]] = {
    int: (integer, "N"),
    float: (number, "X"),
    str: (str, "NAME"),
    Any: (str, "NAME"),  # precision and compute_dtype: jax has types for them, and names
    Sequence[int]: (integers, "N,..."),
    Sequence[float]: (numbers, "X,..."),
    optax.GradientTransformation: (optimizer, "NAME(...)"),
}


class Option(NamedTuple):
    """An option of a method: an argument of its constructor, or a field of one."""

    name: str
    hint: object
    default: object  # inspect.Parameter.empty: none
    text: str


def takes(make: Constructor, name: str) -> bool:
    """Whether the constructor has an argument of that name."""
    return name in inspect.signature(make).parameters


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
    """The names of a constructor's options."""
    return [option.name for option in options(make)]


def options(make: Constructor) -> Iterator[Option]:
    """The options of a constructor, fields of an argument behind it."""
    texts, hints = described(make), get_type_hints(make)
    for name, parameter in inspect.signature(make).parameters.items():
        if name in NOT_OPTIONS:
            continue
        bare = type(parameter.default)  # of an argument without a type
        hint = hints.get(name, bare if bare in READERS else Any)
        yield Option(name, hint, parameter.default, texts.get(name, ""))
        yield from _fields(make, _kinds(hint))


def _kinds(hint: object) -> Kinds:
    """The dataclasses of a type, by their names in lower case, which the constructor takes for them."""
    kinds = (a for a in get_args(hint) if isinstance(a, type))
    return {kind.__name__.lower(): kind for kind in kinds if dataclasses.is_dataclass(kind)}


def _own(make: Constructor, kind: Any) -> dict[str, dataclasses.Field]:
    """The fields of a dataclass, but for those that say that they are another constructor's alone."""
    name = make.__name__
    return {f.name: f for f in dataclasses.fields(kind) if f.metadata.get("only", name) == name}


def _fields(make: Constructor, kinds: Kinds) -> Iterator[Option]:
    """The fields of all kinds, each once, with a text that says which kinds have it."""
    owners: dict[str, list[str]] = {}
    for word, kind in kinds.items():
        for name in _own(make, kind):
            owners.setdefault(name, []).append(word)
    for name, words in owners.items():
        first = kinds[words[0]]
        texts = [(word, described(kinds[word]).get(name, "")) for word in words]
        only = " only" if len(words) < len(kinds) else ""
        text = " ".join(f"{word}{only}: {text}" for word, text in texts)
        yield Option(name, get_type_hints(first)[name], _own(make, first)[name].default, text)


def add_options(
    command: argparse.ArgumentParser,
    make: Constructor,
    defaults: Mapping[str, int],
    found: Mapping[str, str] = NONE,
    *,
    but: str = "",
) -> None:
    """Add the options of a constructor to a command's, in a group that bears its name.

    Args:
      defaults: the command's, of arguments that the signature has no default for.
      found: how the command finds an argument that is not given.
      but: an argument that the command makes of options of its own.
    """
    group = command.add_argument_group(make.__name__, "None: where the option is not given.")
    for name, hint, default, told in options(make):
        if name == but:
            continue
        left = found.get(name, defaults.get(name, default))
        text = _help(told, left)
        if hint is bool:
            # None, as everywhere, where it is not given: the constructor's own default
            group.add_argument(flag(name), action="store_true", default=None, help=text)
            continue
        read, shown = _reader(hint)
        group.add_argument(
            flag(name),
            type=read,
            metavar=shown,
            help=text,
            default=defaults.get(name),
            required=left is inspect.Parameter.empty,
        )


def _help(text: str, default: object) -> str:
    """A text and the default behind it, unless the text says what None means."""
    text = text.replace("`", "").replace("%", "%%")
    if default is None or default is False:
        return text
    text = text.removesuffix(".")
    return (
        f"{text}; required" if default is inspect.Parameter.empty else f"{text}; default: {default}"
    )


def _reader(hint: object) -> tuple[Reader, str]:
    """How a type is read, and what stands for it in the help; of a union: its types in turn."""
    kinds = {hint} if hint in READERS else set(get_args(hint)) - {NoneType}
    (read, shown), *others = (READERS[kind] for kind in READERS if kind in kinds)
    for other, word in others:
        read, shown = either(read, other), f"{shown}|{word}"
    return read, shown


def given(arguments: argparse.Namespace, make: Constructor) -> dict[str, Any]:
    """The arguments of a constructor that the command line gives, or its command for it.

    Raises:
      ValueError: a field of a kind that is not the chosen one, or that the kind refuses.
    """
    read = {name: getattr(arguments, name, None) for name in names(make)}
    read = {name: value for name, value in read.items() if value is not None}
    hints = get_type_hints(make)
    for name, parameter in inspect.signature(make).parameters.items():
        kinds = _kinds(hints.get(name))
        fields = {field for kind in kinds.values() for field in _own(make, kind)}
        own = {field: read.pop(field) for field in list(read) if field in fields}
        chosen: Any = read.get(name, parameter.default)
        if own and chosen in kinds:  # what is none of them the constructor refuses
            read[name] = _chosen(make, name, kinds, chosen, own)
    return read


def _chosen(
    make: Constructor, name: str, kinds: Kinds, chosen: str, own: Mapping[str, object]
) -> object:
    """The argument of that name: the chosen kind with the fields that are given."""
    kind = kinds[chosen]
    known = _own(make, kind)
    for strange in [each for each in own if each not in known]:
        raise ValueError(
            f"{flag(strange)}: expected none with {flag(name)} {chosen}, which takes "
            f"{', '.join(map(flag, known))}; got {own[strange]}"
        )
    return kind(**own)
