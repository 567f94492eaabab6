"""Tables and lines on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, but for columns in which every row is empty.

    Raises:
      ImportError: rich is not there.
    """
    try:
        from rich.table import Table
    except ImportError as error:
        raise ImportError("the command line needs rich: pip install 'jtssm[cli]'") from error
    kept = [i for i in range(len(columns)) if not rows or any(row[i] for row in rows)]
    # texts are shown as they are: rich would take [n, 4096] for markup
    table = Table(*(columns[i] for i in kept), title=title, title_justify="left")
    for row in rows:
        table.add_row(*(row[i] for i in kept))
    _console().print(table)


def say(text: str) -> None:
    """Print lines as they are, however long: they may be copied."""
    _console().print(text, soft_wrap=True)


def _console() -> Console:
    from rich.console import Console

    # a file takes lines of any length
    width = None if sys.stdout.isatty() else 200
    return Console(markup=False, emoji=False, highlight=False, width=width)
