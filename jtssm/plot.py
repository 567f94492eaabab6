"""Figures, in one style: colours that colour-blind people tell apart, with a marker or a hatch each.

A run, a method or a cause has the same colour in all panels of a figure; what it is stands beside them.
The suffix of a path is the format: png, svg, pdf.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, takewhile
from math import isfinite, nan
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
# Okabe and Ito's, the darker ones first; black is the baseline's
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C6D31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++", "oo", "--")
PANELS = (("accuracy", "_accuracy"), ("loss", "_loss"), ("residuals", ""))
UNITS = {"accuracy": "share of samples", "loss": "loss", "residuals": "norm, mean of a sample"}
RESIDUALS = ("primal_residual", "dual_residual", "coupling")
LEAST = 0.01  # points: one of 10 000 test samples


class Look(NamedTuple):
    """How a series is drawn."""

    color: str
    marker: str
    markerfacecolor: str  # white where the colour comes for the second time


class Curve(NamedTuple):
    """A series over x; one whose x and y are another's is drawn once, under both names."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look
    style: str = "-"


def histories(path: str | Path, runs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Accuracy, loss and residuals against epochs, one colour a run, as a figure file.

    Args:
      path: the file; its suffix is the format.
      runs: name of a run -> its history, as `fit` returns it.

    Raises:
      ImportError: matplotlib is not there.
    """
    figure = new_figure((13, 3.8))
    looks = looks_of(runs)
    for axes, (title, suffix) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        found = (_columns(name, lines, suffix, looks[name]) for name, lines in runs.items())
        draw_curves(axes, [curve for curves in found for curve in curves])
        axes.set(title=title, xlabel="epoch", ylabel=UNITS[title])
        if suffix != "_accuracy":
            axes.set_yscale("log")
            _plain_log(axes)
        _whole(axes)
    legend_beside(figure)
    save_figure(figure, path)


def _columns(
    name: str, history: Sequence[Mapping[str, float]], suffix: str, look: Look
) -> list[Curve]:
    """The curves of a run in a panel."""
    first = history[0] if history else {}
    columns = [c for c in first if c.endswith(suffix)] if suffix else list(RESIDUALS)
    # a curve needs a number: of what was not measured there is none, and zeros are below a log scale
    columns = [c for c in columns if any(abs(line.get(c, 0)) > 0 for line in history)]
    epochs = [line["epoch"] for line in history]
    told = {
        c: f"{name} {c.removesuffix(suffix) if suffix else c}".replace("_", " ") for c in columns
    }
    return [
        Curve(told[c], epochs, [line.get(c, nan) for line in history], look, style)
        for style, c in zip(("-", "--", ":"), columns, strict=False)
    ]


def tradeoff(path: str | Path, lines: Mapping[str, Mapping], baseline: str) -> None:
    """How far behind end to end, and the last epoch's coupling |q - f|, by the number of subnetworks.

    Args:
      path: the file; its suffix is the format.
      lines: "NAME, n = N" -> {"subnets": N, "test_accuracy": one a seed, "coupling": ...}; points
        of one NAME are joined, with the range over seeds.
      baseline: the name of the end-to-end line; the range of its own seeds is shaded.

    Raises:
      ImportError: matplotlib is not there.

    Points are percentage points of test accuracy behind the baseline's mean, on a logarithmic axis that
    ends at 0.01; what is not behind stands there.
    """
    figure = new_figure((11.5, 4.4))
    behind, coupling = figure.subplots(1, 2)
    ends = lines[baseline]["test_accuracy"]
    mean = sum(ends) / len(ends)
    spread = max(LEAST, 100 * (mean - min(ends)))
    behind.axhspan(LEAST, spread, color="black", alpha=0.12, lw=0, label=f"seeds of {baseline}")
    names = list(dict.fromkeys(key.rsplit(", n = ", 1)[0] for key in lines if key != baseline))
    looks, curves = looks_of(names), []
    for name in names:
        points = [line for key, line in lines.items() if key.rsplit(", n = ", 1)[0] == name]
        points = sorted(points, key=lambda line: line["subnets"])
        n = [line["subnets"] for line in points]
        seeds = [[100 * (mean - a) for a in point["test_accuracy"]] for point in points]
        _behind(behind, n, seeds, name, looks[name])
        curves.append(Curve(name, n, [line["coupling"] for line in points], looks[name]))
    draw_curves(coupling, curves)
    behind.set(ylabel=f"points of test accuracy behind {baseline}", yscale="log")
    behind.set(title="test accuracy of the composed network")
    coupling.set(
        title="coupling in the last epoch", ylabel="|q - f|, mean of a sample", yscale="log"
    )
    for axes in (behind, coupling):
        numbers = {line["subnets"] for line in lines.values()} - {1}
        axes.set(xlabel="subnetworks n", xticks=sorted(numbers))
        axes.grid(alpha=0.3)
    behind.yaxis.set_major_formatter("{x:g}")
    legend_beside(figure)
    save_figure(figure, path)


def _behind(
    axes: Axes, n: Sequence[int], seeds: Sequence[Sequence[float]], name: str, look: Look
) -> None:
    """Means with ranges over seeds, none below the axis."""
    means = [max(LEAST, sum(a) / len(a)) for a in seeds]
    low = [m - min(m, max(LEAST, min(a))) for m, a in zip(means, seeds, strict=True)]
    high = [max(m, max(a)) - m for m, a in zip(means, seeds, strict=True)]
    axes.errorbar(n, means, (low, high), fmt="-", capsize=3, label=name, **look._asdict())


def against_four(path: str | Path, lines: Mapping[str, Mapping]) -> None:
    """Held-out accuracy against steps, samples, bytes that a worker sends, and seconds.

    Args:
      path: the file; its suffix is the format.
      lines: name -> {"valid_accuracy", "steps", "samples", "bytes", "seconds"}, one number an epoch each.

    Raises:
      ImportError: matplotlib is not there.
    """
    figure = new_figure((14, 4))
    names = {
        "steps": "steps, one after the other",
        "samples": "samples",
        "bytes": "bytes a worker sends",
        "seconds": "seconds on this host",
    }
    looks = looks_of(lines)
    for axes, (what, title) in zip(figure.subplots(1, 4, sharey=True), names.items(), strict=True):
        silent = [n for n, line in lines.items() if what == "bytes" and not any(line["bytes"])]
        told = [n for n in lines if n not in silent]
        draw_curves(
            axes, [Curve(n, lines[n][what], lines[n]["valid_accuracy"], looks[n]) for n in told]
        )
        for name in silent:  # across: it would stand at zero
            last = lines[name]["valid_accuracy"][-1]
            axes.axhline(last, ls=":", color=looks[name].color, label="dotted: nothing sent")
        axes.set(xlabel=title, xscale="linear" if what == "samples" else "log")
        engineering_ticks(axes, [] if what == "samples" else [1])
    figure.axes[0].set(ylabel="held-out accuracy of the whole network")
    legend_beside(figure)
    save_figure(figure, path)


STACK = {
    "products": "products",
    "optimizer": "optimizer",
    "permute": "permutes",
    "all_gather": "all-gathers",
    "reduce_scatter": "reduce-scatters",
    "all_reduce": "all-reduces",
    "all_to_all": "all-to-alls",
}
HELD = (
    "weights",
    "optimizer",
    "variables",
    "samples",
    "gradients",
    "activations",
    "halo",
    "copies",
)


def shapes(path: str | Path, records: Sequence[Mapping[str, Any]], title: str) -> None:
    """Of each mesh shape predicted milliseconds of a step, by cause, and what a device holds, by part.

    Args:
      path: the file; its suffix is the format.
      records: of `jtssm.sweep`; the best is marked, measured times are crosses.
      title: above the bars.

    Raises:
      ImportError: matplotlib is not there.
    """
    records = [record for record in records if "seconds" in record]
    figure = new_figure((max(7.5, 3 + 0.5 * len(records)), 6.4))
    times, memory = figure.subplots(2, 1, sharex=True)
    _stack(times, records, {f"seconds_{cause}": label for cause, label in STACK.items()}, 1e3)
    _stack(memory, records, {f"memory_{part}": part for part in HELD}, 1e-6)
    names = [record["mesh"] for record in records]
    totals = [1e3 * record["seconds"] for record in records]
    times.plot(names, totals, "k_", ms=16, label="less what is hidden")
    measured = [1e3 * (record.get("measured_seconds") or nan) for record in records]
    if any(map(isfinite, measured)):
        times.plot(names, measured, "kx", label="measured")
    times.set_ylim(0, 1.15 * max([1e-9, *totals, *filter(isfinite, measured)]))
    for name, record, total in zip(names, records, totals, strict=True):
        if record.get("best"):
            at = {"ha": "center", "va": "bottom", "weight": "bold", "xytext": (0, 4)}
            times.annotate("best", (name, total), textcoords="offset points", **at)
    times.set(title=title, ylabel="ms a step")
    memory.set(xlabel="devices: subnet x pr x pc", ylabel="MB a device holds (bound)")
    memory.tick_params(axis="x", rotation=60)
    for axes in (times, memory) if records else ():
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0))
    save_figure(figure, path)


def _stack(
    axes: Axes, records: Sequence[Mapping[str, Any]], parts: Mapping[str, str], by: float
) -> None:
    """Bars of parts, one upon the other; parts that are nothing anywhere are left out."""
    names, base = [record["mesh"] for record in records], [0.0] * len(records)
    looks = zip(parts.items(), cycle(COLOURS), HATCHES, strict=False)
    for (part, label), colour, hatch in looks:
        heights = [by * record.get(part, 0) for record in records]
        if any(heights):
            bars = axes.bar(names, heights, bottom=base, label=label, color=colour, hatch=hatch)
            for bar in bars:
                bar.set(edgecolor="white", linewidth=0)
        base = [a + b for a, b in zip(base, heights, strict=True)]
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    """A colour and a marker for each name."""
    faces = cycle([*COLOURS, *["white"] * len(COLOURS)])
    return dict(zip(names, map(Look, cycle(COLOURS), cycle(MARKERS), faces), strict=False))


def draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    """Curves with their markers; equal ones once."""
    same: dict[tuple, list[Curve]] = {}
    for curve in curves:
        same.setdefault((repr([*curve.x]), repr([*curve.y])), []).append(curve)
    for alike in same.values():
        first, label = alike[0], _joint([*dict.fromkeys(curve.label for curve in alike)])
        few = max(1, len(first.x) // 8)
        axes.plot(
            first.x, first.y, first.style, label=label, markevery=few, ms=5, **first.look._asdict()
        )
    axes.grid(alpha=0.3)
    axes.margins(0.06)  # no marker lies on the frame


def _joint(labels: Sequence[str]) -> str:
    """Several names of a curve as one; words that they begin with stand once."""
    words = [label.split(" ") for label in labels]
    same = sum(1 for _ in takewhile(lambda each: len({*each}) == 1, zip(*words, strict=False)))
    return " = ".join([labels[0], *(" ".join(a[same:]) or " ".join(a) for a in words[1:])])


def _whole(axes: Axes) -> None:
    """Whole numbers along x, which is counted."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))


def engineering_ticks(axes: Axes, which: Sequence[int]) -> None:
    """100 k in place of 100000 along x; along a logarithmic axis y (0) or x (1) decades as numbers."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    if which == []:
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.tick_params(axis="x", rotation=30)
    for one in which:
        axis = axes.yaxis if one == 0 else axes.xaxis
        axis.set_major_formatter(EngFormatter() if one else "{x:g}")
        axis.set_minor_formatter(NullFormatter())
        if one == 0:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _plain_log(axes: Axes) -> None:
    """Numbers as they are along a logarithmic y, also where they span less than a decade."""
    from matplotlib.ticker import LogFormatter

    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def legend_beside(figure: Figure) -> None:
    """What is what, each once, beside the panels."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        labels = [fill(label, 40) for label in found]
        figure.legend([*found.values()], labels, loc="outside right upper", fontsize="small")


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of that width and height, in inches.

    Raises:
      ImportError: matplotlib is not there.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'jtssm[plot]'") from error
    return Figure(figsize=size, layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> None:
    """The same bytes for the same figure."""
    import matplotlib

    date = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(Path(path).suffix, {})
    with matplotlib.rc_context(
        {"svg.hashsalt": "jtssm", "svg.fonttype": "none", "hatch.linewidth": 0.6}
    ):
        figure.savefig(path, dpi=140, metadata=date)
