"""Draws the figures of benchmarks/results anew from the JSON beside them, as png, svg and pdf.

    python -m benchmarks.figures            # all, nothing is trained; seconds

The benchmarks call `draw` when they have written their JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks import record
from jtssm import plot

Curves = tuple[list[float], list[float]]  # along x, along y

BASELINE = "Adam end to end"  # of tssm_tradeoff
SHOWN = {"data": "mnist", "depth": 2, "workers": 4, "normalisation": "batch"}  # of ist_tradeoff


def _tssm_tradeoff(path: Path, document: Mapping[str, Any]) -> None:
    lines = document["results"].items()
    shown = {name: line for name, line in lines if line["subnets"] > 1 or name == BASELINE}
    plot.tradeoff(path, shown, baseline=BASELINE)


def _ist_tradeoff(path: Path, document: Mapping[str, Any]) -> None:
    lines = document["results"].values()
    shown = [line for line in lines if all(line[name] == a for name, a in SHOWN.items())]
    plot.against_four(path, {line["kind"]: line for line in shown})


def on_links(path: str | Path, panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Seconds a sample on several hosts, times those of one, by the rate of their link.

    Args:
      path: the file; its suffix is the format.
      panels: title -> case -> rate -> the ratio.

    Raises:
      ImportError: matplotlib is not there.
    """
    figure = plot.new_figure((3.6 * max(1, len(panels)) + 2.4, 4.2))
    looks = plot.looks_of(dict.fromkeys(case for cases in panels.values() for case in cases))
    for i, (title, cases) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        axes.axhline(1, color="black", lw=0.8, label="one host")
        rates = list(dict.fromkeys(rate for ratios in cases.values() for rate in ratios))
        axes.set(xticks=range(len(rates)), xticklabels=[_rate(rate) for rate in rates])
        where = {rate: i for i, rate in enumerate(rates)}
        plot.draw_curves(
            axes,
            [
                plot.Curve(n, [where[r] for r in a], [*a.values()], looks[n])
                for n, a in cases.items()
            ],
        )
        axes.set(yscale="log", xlabel="link")
        axes.set_title(fill(title, 38), fontsize="small")
        plot.engineering_ticks(axes, [0])
    if panels:
        figure.axes[0].set(ylabel="seconds a sample, times one host")
    plot.legend_beside(figure)
    plot.save_figure(figure, path)


def seconds_on_links(
    path: str | Path, panels: Mapping[str, Mapping[str, Curves]], ylabel: str
) -> None:
    """A measure against seconds, a panel a link.

    Args:
      path: the file; its suffix is the format.
      panels: title -> label -> (seconds, values).

    Raises:
      ImportError: matplotlib is not there.
    """
    figure = plot.new_figure((3.4 * max(1, len(panels)) + 2.4, 4.2))
    looks = plot.looks_of(dict.fromkeys(name for lines in panels.values() for name in lines))
    first = None
    for i, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1, sharey=first)
        first = first or axes
        plot.draw_curves(axes, [plot.Curve(n, *a, looks[n]) for n, a in lines.items()])
        axes.set(xscale="log", xlabel="seconds, log scale")
        axes.set_title(title, fontsize="small")
        plot.engineering_ticks(axes, [1])
    if first is not None:
        first.set(ylabel=ylabel)
    plot.legend_beside(figure)
    plot.save_figure(figure, path)


def _rate(word: str) -> str:
    """A link's rate as people write it: 100mbit is 100 Mbit/s."""
    for unit in ("gbit", "mbit", "kbit"):
        if word.endswith(unit):
            return f"{word.removesuffix(unit)} {unit.capitalize()}/s"
    return word


def _hosts(path: Path, document: Mapping[str, Any]) -> None:
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for row in document["rows"]:
        if row["link"] != "none" and "error" not in row:
            panel = panels.setdefault(document["titles"][row["network"]], {})
            panel.setdefault(row["case"], {})[row["link"]] = row["ratio"]
    on_links(path, panels)


def _ist_wide(path: Path, document: Mapping[str, Any]) -> None:
    """Every line on every link, from where it is within 3 points of the goal."""
    panels: dict[str, dict[str, Curves]] = {}
    results = {n: own for n, own in document["results"].items() if own["seconds_a_sample"]}
    links = dict.fromkeys(link for own in results.values() for link in own["seconds_a_sample"])
    for link in (link for link in links if link != document["one_host"]):
        panel = panels.setdefault(f"link {_rate(link)}", {})
        for name, own in results.items():
            seconds = own["seconds_a_sample"]
            one = seconds.get(link, seconds.get(document["one_host"]))
            near = [(a, b) for a, b in own["held_out"] if b > document["goal"] - 0.03]
            panel[name] = [one * a for a, _ in near], [100 * b for _, b in near]
    seconds_on_links(path, panels, "held-out accuracy, %")


def _pdadmm_links(path: Path, document: Mapping[str, Any]) -> None:
    """Every line on every link; what runs on one host on all of them."""
    panels: dict[str, dict[str, Curves]] = {}
    links = dict.fromkeys(
        link for own in document["results"].values() for link in own["seconds_an_iteration"]
    )
    for link in (link for link in links if link != "none"):
        panel = panels.setdefault(f"link {_rate(link)}", {})
        for name, own in document["results"].items():
            each = own["seconds_an_iteration"]
            one = each.get(link, each.get("none"))
            steps, right = zip(*own["held_out"], strict=True)
            panel[name] = [one * i for i in steps], [100 * a for a in right]
    seconds_on_links(path, panels, "held-out accuracy, %")


FIGURES: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
    "tssm_tradeoff": _tssm_tradeoff,
    "ist_tradeoff": _ist_tradeoff,
    "hosts": _hosts,
    "ist_wide": _ist_wide,
    "pdadmm_links": _pdadmm_links,
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
