"""The samples that a command trains on: a data set by its name, or a file of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from jtssm import data
from jtssm.data import Split
from jtssm.data.npz import WORDS, from_npz
from jtssm.protocol.method import Method

Parts = dict[str, Split]  # "train", and "valid" and "test" where there are any


def load(arguments: argparse.Namespace) -> Parts:
    """The samples as the network takes them: flat for a perceptron, which takes MNIST smaller.

    Raises:
      ValueError: an unknown data set, a file that does not hold samples, an option that is not for it.
    """
    flat = arguments.net == "mlp"
    if is_file(arguments.data):
        return _of_file(arguments, flat)
    if arguments.arrays:
        raise ValueError(
            f"--arrays: expected an npz file as --data with it; got --data {arguments.data}"
        )
    size = 14 if arguments.size is None and flat and "mnist" in arguments.data else arguments.size
    found = data.load(arguments.data, size=size, flat=flat, data_dir=arguments.data_dir)
    return found._asdict()


def is_file(word: str) -> bool:
    """Whether --data names a file rather than a data set."""
    return word not in data.SOURCES and (word.endswith(".npz") or Path(word).exists())


def _of_file(arguments: argparse.Namespace, flat: bool) -> Parts:
    for option, value in (("--size", arguments.size), ("--data-dir", arguments.data_dir)):
        if value is not None:
            raise ValueError(
                f"{option}: expected none with a file of your own, {arguments.data}; got {value}"
            )
    found = from_npz(arguments.data, arguments.arrays)
    pairs = {part: Split(*pair) for part, pair in found.items()}
    if not flat:
        return pairs
    return {part: Split(s.x.reshape(len(s.x), -1), s.y) for part, s in pairs.items()}


def check(method: Method, parts: Parts) -> None:
    """All parts fit the method: those that are evaluated last are looked at first, too.

    Raises:
      ValueError: one does not; it says which.
    """
    for part, (x, y) in parts.items():
        try:
            method.program.check(x, y, "values")
        except ValueError as error:
            raise ValueError(f"--data: {part}: {error}") from error


def outputs(split: Split) -> int:
    """How many outputs the samples ask for: the labels there are, or the numbers of a target."""
    if split.y.dtype.kind in "iu":
        return int(split.y.max()) + 1
    return split.y.shape[-1] if split.y.ndim > 1 else 1


def names(text: str) -> dict[str, str]:
    """What a file calls its arrays, "x=tokens,y=next"."""
    pairs = [part.split("=") for part in text.split(",")]
    if any(len(pair) != 2 or pair[0] not in WORDS or not pair[1] for pair in pairs):
        raise argparse.ArgumentTypeError(
            f"expected names in the file of {', '.join(WORDS)}, e.g. x=tokens,y=next; got {text!r}"
        )
    return dict(pairs)
