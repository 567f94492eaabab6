"""Puts what the code says of itself where a page has a marker; a hook of mkdocs.

    <!-- docstring: jtssm/solvers/tssm/__init__.py -->     a module's docstring, without its first line
    <!-- docstring indented: PATH -->                      the same, inside an admonition
    <!-- api: jtssm.nn -->                                 mkdocstrings of its public names, but for
                                                           those that its parent hands on

So the equations and the "Departs from the paper" of a method's page are those of its code.
"""

from __future__ import annotations

import ast
import importlib
import re
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
DOCSTRING = re.compile(r"<!-- docstring( indented)?: (\S+) -->")
API = re.compile(r"<!-- api: (\S+) -->")


def on_page_markdown(text: str, **_: Any) -> str:
    """mkdocs calls this for every page."""
    text = API.sub(lambda found: reference(found[1]), text)
    return DOCSTRING.sub(lambda found: shown(found[2], "    " * bool(found[1])), text)


def shown(module: str, indent: str = "") -> str:
    """A module's docstring as markdown, lists set apart from what stands before.

    Raises:
      ValueError: a module that is not there or says nothing.
    """
    path = ROOT / module
    found = path.is_file() and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not found:
        raise ValueError(f"<!-- docstring: {module} -->: expected a module with a docstring")
    lines: list[str] = []
    for line in found.splitlines()[1:]:
        if re.match(r" *- ", line) and lines and lines[-1].endswith(":"):
            lines.append("")
        lines.append(line)
    return textwrap.indent(departures("\n".join(lines)), indent)


def departures(text: str) -> str:
    """The heading of departures in bold, its list at the margin."""
    before, heading, after = text.partition("Departs from the paper:")
    return before + f"**{heading}**" + textwrap.dedent(after) if heading else text


def reference(module: str) -> str:
    """mkdocstrings' directives for the public names of a module that are no modules themselves."""
    found = importlib.import_module(module)
    parent = importlib.import_module(module.rpartition(".")[0] or module)
    names = getattr(found, "__all__", None) or [n for n in vars(found) if own(found, n)]
    kept = [n for n in names if not isinstance(getattr(found, n), ModuleType)]
    if parent.__name__ != "jtssm":  # whose own faces show all that they have
        kept = [n for n in kept if not has(parent, n, found)]
    return "\n\n".join(f"::: {module}.{name}" for name in kept)


def has(parent: ModuleType, name: str, module: ModuleType) -> bool:
    """Whether the parent hands on the same thing under the same name."""
    return getattr(parent, name, None) is getattr(module, name)


def own(module: ModuleType, name: str) -> bool:
    """Whether a public function or class is defined in the module."""
    return name[0] != "_" and getattr(getattr(module, name), "__module__", "") == module.__name__
