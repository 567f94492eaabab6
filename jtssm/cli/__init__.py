"""The command line: jtssm train METHOD | plan METHOD | sweep METHOD | demo | methods | data | calibrate.

METHOD is a name, or package.module:function for one of your own (`jtssm.cli.outside`), as --net and
--loss may be. Options of
a method are those of its constructor (`jtssm.cli.constructors`); what all methods share
stands in `jtssm.cli.options`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jtssm
from jtssm import checks, data, solvers
from jtssm.cli import options, outside, parsers, plan, runs, tables
from jtssm.cli.constructors import flag, names, summary
from jtssm.data.fetching import REMOTES
from jtssm.data.folders import SUMS

HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, 1 after a divergence, 2 for bad input or a full disk.

    130 for Ctrl-C, 143 for SIGTERM.
    """
    try:
        arguments = _read(list(sys.argv[1:] if argv is None else argv))
        return arguments.run(arguments)
    except (ValueError, OSError, ImportError) as error:
        # in one line, whatever jax or a module of the user's said in several
        told = " ".join(line.strip() for line in str(error).splitlines())
        print(f"jtssm: error: {told}", file=sys.stderr)
        return 2


def parser() -> parsers.Parser:
    """The parser of all commands."""
    top = parsers.Parser(prog="jtssm", description=jtssm.__doc__)
    top.add_argument("--version", action="version", version=jtssm.__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    options.add_train(commands, runs.run_train)
    options.add_demo(commands, runs.run_demo)
    commands.add_parser("methods", help="the training methods").set_defaults(run=run_methods)
    options.add_data(commands, run_data)
    options.add_plan(commands, plan.run_plan)
    options.add_sweep(commands, plan.run_sweep)
    options.add_calibrate(commands, plan.run_calibrate)
    return top


def _read(argv: list[str]) -> argparse.Namespace:
    """What the words of the command line say.

    Raises:
      ValueError: an option that the command, with its method, does not take.
    """
    arguments, unknown = parser().parse_known_args(_with_method(argv))
    if unknown:
        make = solvers.METHODS.get(getattr(arguments, "method", ""))
        where = arguments.command if make is None else f"{arguments.command} {arguments.method}"
        own = f"{', '.join(map(flag, names(make)))} and what " if make is not None else "what "
        raise ValueError(
            f"{where}: expected no {unknown[0]}, which it does not take; it takes {own}jtssm {where} "
            f"--help lists; got {' '.join(unknown)}"
        )
    return arguments


def _with_method(argv: list[str]) -> list[str]:
    """`train --method NAME ...`, and `train ...` alone, as `train NAME ...`; so of plan and sweep."""
    command, *rest = argv or [""]
    if command not in options.METHOD_OF or (rest and rest[0] in HELP):
        return argv
    if rest and not rest[0].startswith("-"):
        name = outside.known(rest[0])
        checks.one_of("method", name, list(solvers.METHODS))
        return [command, name, *rest[1:]]
    named = parsers.Parser(prog=f"jtssm {command}", add_help=False)
    named.add_argument("--method", default=options.METHOD_OF[command])
    found, rest = named.parse_known_args(rest)
    name = outside.known(found.method)
    checks.one_of("--method", name, list(solvers.METHODS))
    return [command, name, *rest]


def run_methods(_: argparse.Namespace) -> int:
    """A table of the training methods."""
    rows = [
        (name, summary(make), " ".join(map(flag, names(make))))
        for name, make in solvers.METHODS.items()
    ]
    tables.show("Training methods", ("method", "what it is", "options of its own"), rows)
    return 0


def run_data(arguments: argparse.Namespace) -> int:
    """A table of the data sets: which are there, what is missing and how to get it; or fetch one."""
    root = data.default_dir() if arguments.data_dir is None else Path(arguments.data_dir)
    if arguments.action == "get":
        folder = data.get(arguments.name, data_dir=root, through=arguments.through)
        print(f"{arguments.name}: in {folder}, with checksums in {SUMS}")
        return 0
    rows = []
    for name, source in data.sources().items():
        absent = data.missing(name, root)
        rows.append((name, source.title, *_status(name, source, absent)))
    tables.show(f"Data sets in {root}", ("name", "what it is", "status", "how to get it"), rows)
    return 0


def _status(name: str, source: data.Source, absent: list[Path]) -> tuple[str, str]:
    if absent:
        ways = f"jtssm data get {name}. Or: " if name in REMOTES else ""
        return "missing: " + ", ".join(path.name for path in absent), ways + source.obtain
    return ("there" if source.files else "embedded"), ""
