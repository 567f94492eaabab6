"""What a word of the command line says: a number, a list, the sizes of a mesh, forms of layers."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Collection
from pathlib import Path

from jtssm.checks import shown
from jtssm.protocol import optimizers
from jtssm.sharding.mesh import AXES

Reader = Callable[[str], object]


def integer(text: str) -> int:
    """An integer, "4"."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected an integer, e.g. 4; got {shown(text)}"
        ) from None


def seed(text: str) -> int:
    """A seed: as many bits as jax makes a key of, or two of them would give the same numbers."""
    number = integer(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(
            f"expected an integer from 0 to {2**32 - 1}, of 32 bits; got {shown(text)}"
        )
    return number


def path(text: str) -> Path:
    """A path: "run"."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path, e.g. run; got {shown(text)}")
    return Path(text)


def number(text: str) -> float:
    """A number, "0.5"."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number, e.g. 0.5; got {shown(text)}"
        ) from None


def integers(text: str) -> list[int]:
    """Integers with commas between, "2,3"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected integers with commas between, e.g. 2,3; got {shown(text)}"
        ) from None


def numbers(text: str) -> list[float]:
    """Numbers with commas between, "0,0.5,1"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number, or several with commas between, e.g. 8; got {shown(text)}"
        ) from None


def optimizer(text: str) -> optimizers.Told:
    """An optimizer of optax as Python calls it, "sgd(0.7, momentum=0.9, nesterov=True)"."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("no call of a function")
        values = map(ast.literal_eval, call.args)
        named = {str(a.arg): ast.literal_eval(a.value) for a in call.keywords}
        return optimizers.optimizer(call.func.id, *values, **named)
    except (ValueError, SyntaxError) as error:
        raise argparse.ArgumentTypeError(
            f"expected an optimizer of optax, e.g. sgd(0.7, momentum=0.9, nesterov=True); got "
            f"{shown(text)}: {error}"
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
            raise argparse.ArgumentTypeError(f"expected one of {sorted(known)}; got {shown(text)}")
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
    parts = [part.split("=") for part in text.split(",")]
    try:
        sizes = {name: int(size) for name, size in parts}
    except ValueError:
        sizes = {"": 0}
    if not set(sizes) <= set(AXES) or min(sizes.values()) < 1 or len(sizes) < len(parts):
        raise argparse.ArgumentTypeError(
            f"expected sizes of subnet, pr and pc, each once, e.g. subnet=2,pc=2; got {shown(text)}"
        )
    return sizes
