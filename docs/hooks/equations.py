"""Puts the docstring of a module where a page has a marker; a hook of mkdocs.

    <!-- docstring: jtssm/solvers/tssm/__init__.py -->

So the equations and the "Departs from the paper" of a method's page are those of its code.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MARKER = re.compile(r"<!-- docstring: (\S+) -->")


def on_page_markdown(text: str, **_: Any) -> str:
    """mkdocs calls this for every page."""
    return MARKER.sub(lambda found: shown(found[1]), text)


def shown(module: str) -> str:
    """A module's docstring as markdown, without its first line, lists set apart from what stands before.

    Raises:
      ValueError: a module that is not there or says nothing.
    """
    path = ROOT / module
    found = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else None
    if not found:
        raise ValueError(f"<!-- docstring: {module} -->: expected a module with a docstring")
    lines: list[str] = []
    for line in found.splitlines()[1:]:
        item = re.match(r" *- ", line)
        if item and lines and lines[-1].strip() and not re.match(r" *(- |  \S)", lines[-1]):
            lines.append("")
        lines.append(line.lstrip() if item else line)
    return "\n".join(lines)
