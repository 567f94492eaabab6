"""Tables and lines on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, but for columns in which every row is empty; without rich in plain text."""
    kept = [i for i in range(len(columns)) if not rows or any(row[i] for row in rows)]
    try:
        from rich.table import Table
    except ImportError:
        print(_plain(title, [[row[i] for i in kept] for row in (columns, *rows)]), flush=True)
        return
    # texts are shown as they are: rich would take [n, 4096] for markup
    table = Table(*(columns[i] for i in kept), title=title, title_justify="left")
    for row in rows:
        table.add_row(*(row[i] for i in kept))
    _console().print(table)


def say(text: str) -> None:
    """Print lines as they are, however long: they may be copied."""
    print(text, flush=True)


def _plain(title: str, rows: Sequence[Sequence[str]]) -> str:
    """A title and rows, columns side by side."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    told = ("  ".join(f"{a:<{n}}" for a, n in zip(row, wide, strict=True)) for row in rows)
    return "\n".join([title, *(line.rstrip() for line in told)])


def _console() -> Console:
    from rich.console import Console

    # a file takes lines of any length
    width = None if sys.stdout.isatty() else 200
    return Console(markup=False, emoji=False, highlight=False, width=width)
