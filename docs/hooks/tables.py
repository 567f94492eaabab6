"""Puts tables of results where a page has a marker; a hook of mkdocs.

<!-- table: tssm_tradeoff -->      the table of that name in `result_tables.TABLES`
<!-- table indented: NAME -->      the same, inside an admonition
<!-- about: tssm_tradeoff -->      command, date, commit, versions and device of that result

python docs/hooks/tables.py README.md     # rewrites what stands between such a marker and the next
                                          # <!-- end of table --> in a file outside the site
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from posixpath import dirname, relpath
from typing import Any

import host_tables  # noqa: F401  # it enters its tables
import result_tables

MARKER = re.compile(r"<!-- (table|about)( indented)?: (\S+) -->")
FILLED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def on_page_markdown(text: str, *, page: Any, **_: Any) -> str:
    """mkdocs calls this for every page."""
    return filled(text, page.file.src_uri)


def filled(text: str, uri: str = "index.md") -> str:
    """The text of the page `uri` with its markers replaced.

    Raises:
      ValueError: a marker that names no table and no result.
    """
    shown = MARKER.sub(lambda found: indented(drawn(found[1], found[3]), bool(found[2])), text)
    return re.sub(r"\]\(/", f"]({relpath('.', dirname(uri) or '.')}/", shown)


def drawn(kind: str, name: str) -> str:
    """What a marker stands for."""
    if kind == "about" and (result_tables.RESULTS / f"{name}.json").is_file():
        return result_tables.about(name)
    if kind == "table" and name in result_tables.TABLES:
        return result_tables.TABLES[name]()
    known = sorted(result_tables.TABLES if kind == "table" else result_names())
    raise ValueError(f"<!-- {kind}: {name} -->: expected one of {known}; got {name!r}")


def indented(text: str, deeper: bool) -> str:
    """The text, by four columns where it stands in an admonition."""
    return textwrap.indent(text, "    ") if deeper else text


def result_names() -> list[str]:
    """The results there are."""
    return [path.stem for path in result_tables.RESULTS.glob("*.json")]


def refilled(text: str) -> str:
    """A text outside the site, its tables drawn anew between their markers."""
    return FILLED.sub(lambda m: f"{m[1]}{drawn('table', m[2])}\n{m[3]}", text)


if __name__ == "__main__":
    for given in map(Path, sys.argv[1:]):
        given.write_text(refilled(given.read_text(encoding="utf-8")), encoding="utf-8")
