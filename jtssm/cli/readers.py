"""What a word of the command line says: a number, a list, the sizes of a mesh, forms of layers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection

from jtssm.sharding.mesh import AXES

Reader = Callable[[str], object]


def integer(text: str) -> int:
    """An integer, "4"."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, e.g. 4; got {text!r}") from None


def number(text: str) -> float:
    """A number, "0.5"."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, e.g. 0.5; got {text!r}") from None


def integers(text: str) -> list[int]:
    """Integers with commas between, "2,3"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected integers with commas between, e.g. 2,3; got {text!r}"
        ) from None


def numbers(text: str) -> list[float]:
    """Numbers with commas between, "0,0.5,1"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number, or several with commas between, e.g. 8; got {text!r}"
        ) from None


def either(first: Reader, second: Reader) -> Reader:
    """What the first reader makes of a text, or the second, where the first refuses it."""

    def read(text: str) -> object:
        try:
            return first(text)
        except argparse.ArgumentTypeError:
            return second(text)

    return read


def one_of(known: Collection[str]) -> Callable[[str], str]:
    """A reader of one of the known words."""

    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"expected one of {sorted(known)}; got {text!r}")
        return text

    return read


def one_of_or_own(known: Collection[str]) -> Callable[[str], str]:
    """A reader of one of the known words, or of package.module:function."""

    def read(text: str) -> str:
        if text not in known and ":" not in text:
            raise argparse.ArgumentTypeError(
                f"expected one of {sorted(known)}, or package.module:function; got {text!r}"
            )
        return text

    return read


def forms(text: str) -> str | list[str]:
    """ "auto", or a form a layer with commas between, "batch,model"."""
    return text if text == "auto" else text.split(",")


def mesh(text: str) -> dict[str, int]:
    """Sizes of axes, "subnet=2,pc=2"."""
    pairs = (part.split("=") for part in text.split(","))
    try:
        sizes = {name: int(size) for name, size in pairs}
    except ValueError:
        sizes = {"": 0}
    if not set(sizes) <= set(AXES) or min(sizes.values()) < 1:
        raise argparse.ArgumentTypeError(
            f"expected sizes of subnet, pr and pc, e.g. subnet=2,pc=2; got {text!r}"
        )
    return sizes
