"""Draws the figures of benchmarks/results anew from the JSON beside them, as png, svg and pdf.

    python -m benchmarks.figures            # all, nothing is trained; seconds

The benchmarks call `draw` when they have written their JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import record
from jtssm import plot

BASELINE = "Adam end to end"  # of tssm_tradeoff
SHOWN = {"data": "mnist", "depth": 2, "workers": 4, "normalisation": "batch"}  # of ist_tradeoff


def _tssm_tradeoff(path: Path, document: Mapping[str, Any]) -> None:
    plot.tradeoff(path, document["results"], baseline=BASELINE)


def _ist_tradeoff(path: Path, document: Mapping[str, Any]) -> None:
    lines = document["results"].values()
    shown = [line for line in lines if all(line[name] == a for name, a in SHOWN.items())]
    plot.against_four(path, {line["kind"]: line for line in shown})


def _hosts(path: Path, document: Mapping[str, Any]) -> None:
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for row in document["rows"]:
        if row["link"] != "none" and "error" not in row:
            panel = panels.setdefault(document["titles"][row["network"]], {})
            panel.setdefault(row["case"], {})[row["link"]] = row["ratio"]
    plot.on_links(path, panels)


FIGURES: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
    "tssm_tradeoff": _tssm_tradeoff,
    "ist_tradeoff": _ist_tradeoff,
    "hosts": _hosts,
}


def draw(name: str) -> list[Path]:
    """The figure of a result, in all formats; returns the files."""
    document = json.loads((record.RESULTS / f"{name}.json").read_text())
    paths = [record.RESULTS / f"{name}{suffix}" for suffix in plot.FORMATS]
    for path in paths:
        FIGURES[name](path, document)
    return paths


def main() -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.parse_args()
    for name in FIGURES:
        for path in draw(name):
            print(path)


if __name__ == "__main__":
    main()
