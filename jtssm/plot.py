"""Figures of histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (("accuracy", "_accuracy"), ("loss", "_loss"), ("residuals", ""))
RESIDUALS = ("primal_residual", "dual_residual", "coupling")


def histories(path: str | Path, runs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Accuracy, loss and residuals against epochs, one colour a run, as a figure file.

    Args:
      path: the file; its suffix is the format.
      runs: name of a run -> its history, as `fit` returns it.

    Raises:
      ImportError: matplotlib is not there.
    """
    figure = _figure((12, 4.6))
    for axes, (title, suffix) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for i, (name, history) in enumerate(runs.items()):
            _lines(axes, f"C{i}", name, history, suffix)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if suffix != "_accuracy":
            axes.set_yscale("log")
        if axes.lines:
            axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15))
    figure.savefig(path, dpi=120)


def _lines(
    axes: Axes, colour: str, name: str, history: Sequence[Mapping[str, float]], suffix: str
) -> None:
    first = history[0] if history else {}
    columns = [c for c in first if c.endswith(suffix)] if suffix else list(RESIDUALS)
    # a curve needs a number: of what was not measured there is none, and zeros are below a log scale
    columns = [c for c in columns if any(abs(line.get(c, 0)) > 0 for line in history)]
    for style, column in zip(("-", "--", ":"), columns, strict=False):
        label = f"{name} {column.removesuffix(suffix) if suffix else column}".replace("_", " ")
        epochs = [line["epoch"] for line in history]
        axes.plot(
            epochs, [line.get(column, nan) for line in history], style, color=colour, label=label
        )


def tradeoff(path: str | Path, lines: Mapping[str, Mapping], baseline: str) -> None:
    """Test accuracy, and the last epoch's coupling |q - f|, against the number of subnetworks.

    Args:
      path: the file; its suffix is the format.
      lines: "NAME, n = N" -> {"subnets": N, "test_accuracy": one a seed, "coupling": ...}; points
        of one NAME are joined, with the range over seeds.
      baseline: the name of the end-to-end line, drawn across.

    Raises:
      ImportError: matplotlib is not there.
    """
    figure = _figure((11, 4.6))
    accuracy, coupling = figure.subplots(1, 2)
    ends = lines[baseline]["test_accuracy"]
    accuracy.axhline(sum(ends) / len(ends), color="black", label=baseline)
    accuracy.axhspan(min(ends), max(ends), color="black", alpha=0.1)
    names = dict.fromkeys(name.rsplit(", n = ", 1)[0] for name in lines if name != baseline)
    for i, name in enumerate(names):
        points = [line for key, line in lines.items() if key.rsplit(", n = ", 1)[0] == name]
        points = sorted(points, key=lambda line: line["subnets"])
        n = [line["subnets"] for line in points]
        seeds = [line["test_accuracy"] for line in points]
        mean = [sum(a) / len(a) for a in seeds]
        spread = [[m - min(a), max(a) - m] for m, a in zip(mean, seeds, strict=True)]
        accuracy.errorbar(
            n, mean, list(zip(*spread, strict=True)), fmt="o-", color=f"C{i}", capsize=3, label=name
        )
        coupling.plot(n, [line["coupling"] for line in points], "o-", color=f"C{i}", label=name)
    accuracy.set(title="test accuracy of the composed network", xlabel="subnetworks n")
    coupling.set(title="coupling |q - f|", xlabel="subnetworks n", yscale="log")
    for axes in (accuracy, coupling):
        axes.grid(alpha=0.3)
    accuracy.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def against_four(path: str | Path, lines: Mapping[str, Mapping]) -> None:
    """Held-out accuracy against steps, samples, bytes that a worker sends, and seconds.

    Args:
      path: the file; its suffix is the format.
      lines: name -> {"valid_accuracy", "steps", "samples", "bytes", "seconds"}, one number an epoch each.

    Raises:
      ImportError: matplotlib is not there.
    """
    figure = _figure((13, 4.2))
    names = {
        "steps": "steps, one after the other",
        "samples": "samples",
        "bytes": "bytes a worker sends",
        "seconds": "seconds on this host",
    }
    for axes, (what, title) in zip(figure.subplots(1, 4, sharey=True), names.items(), strict=True):
        for i, (name, line) in enumerate(lines.items()):
            silent = what == "bytes" and not any(line["bytes"])
            label = f"{name} (nothing sent)" if silent else name
            if silent:  # a mark at the left edge: it would stand at zero
                axes.axhline(line["valid_accuracy"][-1], ls=":", color=f"C{i}", label=label)
            else:
                axes.plot(line[what], line["valid_accuracy"], ".-", color=f"C{i}", label=label)
        axes.set(xlabel=title, xscale="linear" if what == "samples" else "log")
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel="held-out accuracy of the whole network")
    figure.axes[2].legend(fontsize="x-small", loc="lower right")
    figure.savefig(path, dpi=120)


STACK = {
    "products": "products",
    "optimizer": "optimizer",
    "permute": "permutes",
    "all_gather": "all-gathers",
    "reduce_scatter": "reduce-scatters",
    "all_reduce": "all-reduces",
    "all_to_all": "all-to-alls",
}


def shapes(path: str | Path, records: Sequence[Mapping[str, Any]], title: str) -> None:
    """Predicted seconds of a step for each mesh shape, stacked by cause; measured ones as marks.

    Args:
      path: the file; its suffix is the format.
      records: of `jtssm.sweep`.
      title: above the bars.

    Raises:
      ImportError: matplotlib is not there.
    """
    records = [record for record in records if "seconds" in record]
    figure = _figure((max(6.0, 1.5 + 0.55 * len(records)), 4.6))
    axes, names = figure.subplots(), [record["mesh"] for record in records]
    base = [0.0] * len(records)
    for i, (cause, label) in enumerate(STACK.items()):
        heights = [record[f"seconds_{cause}"] for record in records]
        if any(heights):
            axes.bar(names, heights, bottom=base, label=label, color=f"C{i}")
        base = [a + b for a, b in zip(base, heights, strict=True)]
    totals = [record["seconds"] for record in records]
    axes.plot(names, totals, "k_", ms=18, label="less what is hidden")
    measured: list[Any] = [record.get("measured_seconds") for record in records]
    if any(measured):
        axes.plot(names, measured, "kx", label="measured")
    axes.set(title=title, ylabel="seconds a step", xlabel="subnet x pr x pc")
    axes.tick_params(axis="x", rotation=60)
    if records:
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=120)


def on_links(path: str | Path, panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Seconds a sample on several hosts, times those of one, by the rate of their link.

    Args:
      path: the file; its suffix is the format.
      panels: title -> case -> rate -> the ratio.

    Raises:
      ImportError: matplotlib is not there.
    """
    figure = _figure((4.6 * max(1, len(panels)), 5.6))
    for i, (title, cases) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for name, ratios in cases.items():
            axes.plot(list(ratios), list(ratios.values()), "o-", label=name)
        axes.axhline(1, color="black", lw=0.8)
        axes.set(yscale="log", xlabel="link", ylabel="seconds a sample, times one host")
        axes.set_title(title, fontsize="small", wrap=True)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.savefig(path, dpi=120)


def _figure(size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'jtssm[plot]'") from error
    return Figure(figsize=size, layout="constrained")
