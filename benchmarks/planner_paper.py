"""Do the published grids come out again, and does our own planner find better ones?

Gholami et al. (arXiv 1712.04432) print the best Pr x Pc grid of AlexNet and its speed-up over pure batch
parallelism, simulated. Printed beside `jtssm.sharding.cost.published`, their formulas in plain
numbers: the best grid, the speed-up of the total and of communication; and every bar of each figure.
  Figure 6 twice:
by equation (8), which it should follow and does not, and by the reading that reproduces it. Figure 10
twice: halos hidden, which reproduces it, and added, as equation (9) has them. Nothing is measured, and
the compute was fitted to the paper's bars.

Then Figures 7 to 10 with the forms that `jtssm.sharding.cost.search` finds, on the same meshes under
the same
assumptions: 4-byte words, the paper's link and latency, ceil(log2 p) latencies a collective. (Forms are
free in every layer, so Figure 6 would be 7 again.) Messages are all that our step sends, one after
another (the gradients of all layers in one): biases too, and dX as it is (that of fc6 has 9216 rows, of
which the paper counts 4096). In Figure 8 the all-reduce of gradients hides behind all products; in
Figure 10 nothing hides, halos neither. Products run at the rate at which the paper's compute does them,
evenly shared over P: where our forms share them so, compute is the paper's; where they repeat work (fewer
samples than devices) or pad slabs of unequal rows it is as much longer. The paper's formula splits images
of 13 rows among 64 processes all the same: what it finds there no program can have.

    python -m benchmarks.planner_paper [--smoke]

Seconds. Last result: benchmarks/results/planner_paper.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import inf
from typing import Any, NamedTuple

import optax

from benchmarks import published_figures, record
from benchmarks.published_figures import FIGURES, HALOS_6, SAMPLES, Bar, Figure, Grid, Result
from jtssm import nn, sharding, solvers
from jtssm.sharding import cost, published

READINGS = {
    "Figure 6, one grid everywhere, equation (8)": FIGURES[6],
    "Figure 6, convolutions with halos to two neighbours": HALOS_6,
    "Figure 7, grid in the dense layers": FIGURES[7],
    "Figure 8, all-reduce of weights hidden": FIGURES[8],
    "Figure 9, weak scaling": FIGURES[9],
    "Figure 10, beyond the batch, halos hidden": FIGURES[10],
    "Figure 10, halos added": FIGURES[10]._replace(hidden="nothing"),
}
PLANNED = {title: figure for title, figure in READINGS.items() if "Figure 6" not in title}


def main() -> None:
    """Simulate, plan, print, write the JSON."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument(
        "--smoke", action="store_true", help="the least P of a figure, no result file"
    )
    given = parse.parse_args()
    report = {"paper": _paper(), "planned": _planned(given.smoke)}
    if not given.smoke:
        print(record.write("planner_paper", "benchmarks.planner_paper", report))


def _paper() -> dict[str, Any]:
    """First part: the paper's figures from the paper's formulas."""
    print("best grid, speed-up (of communication): printed | simulated")
    return {title: _reading(title, figure) for title, figure in READINGS.items()}


def _reading(title: str, figure: Figure) -> dict[int, Any]:
    print(f"\n{title}")
    rows = {}
    for processes, (printed, simulated) in published_figures.compare(figure).items():
        hide: dict[str, Any] = {"communication": None} if printed.communication is None else {}
        print(f"  P = {processes:4}  {_text(printed):22} | {_text(simulated._replace(**hide))}")
        bars = published_figures.bars(figure, processes)
        rows[processes] = {
            "batch": figure.batches[processes],
            "printed": printed._asdict(),
            "simulated": simulated._asdict(),
            "bars": {f"{pr} x {pc}": bar._asdict() for (pr, pc), bar in bars.items()},
        }
    return rows


def _text(result: Result) -> str:
    (pr, pc), speedup, communication = result
    shown = "" if communication is None else f" ({communication:.2f})"
    return f"{pr} x {pc}  {speedup:.2f}{shown}"


class Planned(NamedTuple):
    """A mesh with our forms, seconds an epoch."""

    forms: tuple[str, ...]
    compute: float
    bar: Bar


def _planned(smoke: bool) -> dict[str, Any]:
    """Second part: the same cases with our own planner."""
    print("\nbest grid, seconds an epoch (of communication): paper | ours, paper / ours")
    return {title: _beside(title, figure, smoke) for title, figure in PLANNED.items()}


def _beside(title: str, figure: Figure, smoke: bool) -> dict[int, Any]:
    print(f"\n{title}")
    rows = {}
    for processes in sorted(figure.batches)[: 1 if smoke else None]:
        paper, ours = published_figures.bars(figure, processes), planned(figure, processes)
        theirs = min(paper, key=lambda grid: paper[grid].total)
        best = min(ours, key=lambda grid: ours[grid].bar.total)
        rows[processes] = row = _row(figure, processes, (theirs, paper), (best, ours))
        print(
            f"  P = {processes:4}  {_seconds(theirs, paper[theirs]):24} | "
            f"{_seconds(best, ours[best].bar):24} {row['faster']:6.3f} "
            f"({row['less_communication']:.2f})   {_runs(ours[best].forms)}"
        )
        slower = [grid for grid in paper if ours[grid].bar.total > paper[grid].total]
        print(f"            the paper's are faster on {', '.join(map(_name, slower)) or 'no grid'}")
    return rows


def planned(figure: Figure, processes: int) -> dict[Grid, Planned]:
    """Every grid of a figure with our forms."""
    batch = figure.batches[processes]
    method = solvers.sgd(nn.alexnet(), optimizer=optax.sgd(0.01), batch_size=batch)
    steps = SAMPLES / batch
    # a P-th of a step's products takes what the paper's compute is of a step
    flops = cost.step_flops(method) * steps / processes
    flops /= published_figures.compute_seconds(batch, processes)
    machine = sharding.Machine(
        "cori",
        flops,
        inf,
        4 / published.CORI.beta,
        published.CORI.alpha,
        0.0,
        "arXiv 1712.04432",
        algorithm="logarithmic",
    )
    overlap = 1.0 if figure.hidden == "reduction" else 0.0
    found = {}
    for pr, pc in published_figures.grids(batch, processes):
        sizes = (1, pr, pc)
        forms = cost.fastest_forms(method, sizes, machine, overlap=overlap)
        demand = cost.step_demand(method, sizes, forms, None)
        step = cost.seconds_of(machine, demand, sizes, overlap=overlap)
        bar = Bar(steps * step.total, steps * (step.messages - step.hidden))
        found[pr, pc] = Planned(forms, steps * step.products, bar)
    return found


def _row(
    figure: Figure,
    processes: int,
    paper: tuple[Grid, Mapping[Grid, Bar]],
    ours: tuple[Grid, Mapping[Grid, Planned]],
) -> dict[str, Any]:
    """What stands in the JSON of one number of processes; each with its best grid."""
    describe = lambda p: {"forms": " ".join(p.forms), "compute": p.compute, **p.bar._asdict()}
    theirs, best = paper[1][paper[0]], ours[1][ours[0]]
    leftmost = next(iter(ours[1].values()))
    return {
        "batch": figure.batches[processes],
        "paper": {"grid": paper[0], **theirs._asdict()},
        "ours": {"grid": ours[0], **describe(best)},
        "ours_speedup": leftmost.bar.total / best.bar.total,
        "faster": theirs.total / best.bar.total,
        "less_communication": theirs.communication / best.bar.communication,
        "bars": {_name(grid): describe(found) for grid, found in ours[1].items()},
    }


def _runs(forms: Sequence[str]) -> str:
    """Equal forms, one after another, counted: "9 batch, row"."""
    runs = [(form, len(list(run))) for form, run in groupby(forms)]
    return ", ".join(form if num == 1 else f"{num} {form}" for form, num in runs)


def _name(grid: Grid) -> str:
    return f"{grid[0]} x {grid[1]}"


def _seconds(grid: Grid, bar: Bar) -> str:
    return f"{_name(grid)}  {bar.total:.2f} ({bar.communication:.2f})"


if __name__ == "__main__":
    main()
