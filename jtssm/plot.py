"""Figures of histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'jtssm[plot]'") from error
    figure = Figure(figsize=(12, 4.6), layout="constrained")
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


def _lines(axes, colour: str, name: str, history: Sequence[Mapping[str, float]], suffix: str):
    first = history[0] if history else {}
    columns = [c for c in first if c.endswith(suffix)] if suffix else list(RESIDUALS)
    columns = [c for c in columns if any(line.get(c) for line in history)]
    for style, column in zip(("-", "--", ":"), columns, strict=False):
        label = f"{name} {column.removesuffix(suffix) if suffix else column}".replace("_", " ")
        epochs = [line["epoch"] for line in history]
        axes.plot(epochs, [line[column] for line in history], style, color=colour, label=label)
