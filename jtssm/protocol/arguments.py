"""What docstrings say of arguments: those that several constructors share are written once.

A constructor's own docstring says of an argument what is its own; `documented` adds the rest, in the
order of the signature, so that help(), the site and the command line's help show every argument.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from itertools import takewhile
from types import MappingProxyType
from typing import TypeVar

WIDTH = 100
SHARED: Mapping[str, str] = MappingProxyType(
    {
        "loss": '"cross_entropy" (integer labels), "squared_error", or a `losses.Loss`.',
        "precision": (
            "of the products, a name `jax.default_matmul_precision` takes; None: jax's default."
        ),
        "compute_dtype": (
            '"bfloat16": layers compute and send in it, while parameters, state, sums, losses and what '
            "crosses boundaries keep the dtype of the samples (normalisation's statistics: float32); "
            "None: that dtype throughout."
        ),
    }
)
NONE: Mapping[str, str] = MappingProxyType({})
# a new argument, or the next one behind a full stop and two spaces
ENTRY = re.compile(r"\n  (?=\S)|(?<=\.)  (?=\w+(?:, \w+)*: )")
HEADING = "\nArgs:"
Made = TypeVar("Made", bound=Callable)


def described(make: Callable) -> dict[str, str]:
    """The text of each argument in the section Args of a docstring, of a function or a class.

    Several may stand on one line, "rho: a text.  alpha: another.", or share a text, "rho, nu: both."
    """
    _, _, section = (inspect.getdoc(make) or "").partition(HEADING)
    texts: dict[str, str] = {}
    for entry in ENTRY.split("\n".join(["", *_lines(section)]))[1:]:
        names, _, text = entry.partition(": ")
        texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return texts


def documented(texts: Mapping[str, str] = NONE) -> Callable[[Made], Made]:
    """A decorator that completes a docstring's section Args from the texts of shared arguments.

    Args:
      texts: of arguments that some constructors share, beside those of `SHARED`.

    Raises:
      ValueError: an argument that neither the docstring nor the texts describe.
    """

    def complete(make: Made) -> Made:
        if make.__doc__:  # python -OO leaves none
            make.__doc__ = _completed(make, {**SHARED, **texts})
        return make

    return complete


def _completed(make: Callable, texts: Mapping[str, str]) -> str:
    """The docstring with all arguments of the signature in its section Args."""
    before, heading, section = (inspect.getdoc(make) or "").partition(HEADING)
    known, names = {**texts, **described(make)}, inspect.signature(make).parameters
    if lacking := [name for name in names if name not in known]:
        raise ValueError(
            f"{make.__name__}: expected a text of every argument; got none of {lacking}"
        )
    rest = section.splitlines()[1 + len(_lines(section)) :]
    return "\n".join([before + heading, *(_entry(name, known[name]) for name in names), *rest])


def _lines(section: str) -> list[str]:
    """The lines of a section, up to the next one."""
    return list(takewhile(lambda line: line.startswith("  "), section.splitlines()[1:]))


def _entry(name: str, text: str) -> str:
    """An argument and its text, in lines."""
    return textwrap.fill(
        f"{name}: {text}",
        WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
