"""Parsers of the commands: errors in one line, groups of options that commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection
from typing import Any, NoReturn

# of what a command needs; where nothing stands here, a number
EXAMPLES = {"--machine": "--machine tpu-v5e", "file": "here.json", "command": "train"}


class Parser(argparse.ArgumentParser):
    """One that raises what it refuses, as all checks do, and knows no abbreviations."""

    def __init__(self, **settings: Any):
        super().__init__(**{"allow_abbrev": False} | settings)

    def error(self, message: str) -> NoReturn:
        """Raise ValueError: the command, the option and what is wrong with it."""
        where = self.prog.removeprefix("jtssm").strip()
        raise ValueError(": ".join(filter(None, (where, _plainly(message)))))


def _plainly(message: str) -> str:
    """What argparse says, as the checks of the package say it."""
    if lacking := re.fullmatch("the following arguments are required: (.*)", message):
        names = lacking[1].split(", ")
        example = " ".join(EXAMPLES.get(name, f"{name} 4") for name in names)
        return f"expected {lacking[1]}, which it needs, e.g. {example}; got none"
    message = message.removeprefix("argument ")
    message = message.replace("expected one argument", "expected a value; got none")
    unknown = r"invalid choice: (.*) \(choose from (.*)\)"
    return re.sub(unknown, r"expected one of \2; got \1", message)


def group(title: str, told: str | None = None) -> tuple[Parser, Callable[..., argparse.Action]]:
    """A parser for others to share, and what adds an option to its only group."""
    shared = Parser(add_help=False)
    return shared, shared.add_argument_group(title, told).add_argument


def words(known: Collection[str]) -> str:
    """What a help text says of known words."""
    return "one of: " + ", ".join(known)
