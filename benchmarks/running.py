"""Trainings done once: kept in a file, run on several cores, taken up after an interruption."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm


class Runs:
    """Trainings by a tuple that names them; each leaves a dict whose "run" is that tuple.

    Args:
      path: a file of finished runs, one JSON line each; None: nothing is kept.
      workers: processes, each on a core of its own; 0: this process.
      fits: whether a kept run was made with the settings of now.
      show: a run -> the line printed when it is done.
    """

    def __init__(self, path: Path | None, workers: int, fits: Callable, show: Callable):
        self.path, self.workers, self.show = path, workers, show
        self.done: dict[tuple, dict] = {}
        if path is not None and path.exists():
            kept = map(json.loads, path.read_text().splitlines())
            self.done = {tuple(seen["run"]): seen for seen in kept if fits(seen)}

    def __enter__(self) -> Runs:
        context = multiprocessing.get_context("spawn")
        cores = context.Queue()
        for core in range(self.workers):
            cores.put(core)
        self.pool = self.workers and ProcessPoolExecutor(
            self.workers, context, _stay_on_a_core, (cores,)
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def all(self, train: Callable, wanted: Mapping[tuple, tuple]) -> dict[tuple, dict]:
        """What every wanted run showed; wanted: run -> arguments of `train`."""
        work = [arguments for run, arguments in wanted.items() if run not in self.done]
        if self.pool:
            futures = [self.pool.submit(train, *arguments) for arguments in work]
            results = (future.result() for future in as_completed(futures))
        else:
            results = (train(*arguments) for arguments in work)
        for seen in tqdm(results, total=len(work), unit="run", dynamic_ncols=True):
            self._keep(seen)
        return {run: self.done[run] for run in wanted}

    def _keep(self, seen: dict) -> None:
        self.done[tuple(seen["run"])] = seen
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(seen) + "\n")
        tqdm.write(self.show(seen))


def arguments(about: str, smoke: str, runs: str) -> argparse.ArgumentParser:
    """The options of a benchmark of `Runs`: --smoke, --workers and --runs.

    about: what it asks.  smoke: what its small run is.  runs: the file of finished ones.
    """
    parser = argparse.ArgumentParser(description=about)
    add = parser.add_argument
    add("--smoke", action="store_true", help=smoke)
    add("--workers", type=int, default=1, help="processes, each on a core of its own")
    add("--runs", type=Path, default=Path(runs), help="finished runs")
    return parser


class Reported(NamedTuple):
    """A line of a table, with the rate that was best on held-out samples."""

    rate: float
    by_rate: dict[str, float]  # what every rate came to there
    runs: list[dict]  # one a seed


def chosen(
    every: Callable[[Iterable[tuple]], Mapping[tuple, dict]],
    lines: Sequence[tuple],
    rates: Sequence[float],
    seeds: Sequence[int] | Callable[[tuple], Sequence[int]],
    tuning_seed: int,
    held_out: str,
    better: Callable[..., float],
) -> dict[tuple, Reported]:
    """Every line with its best rate, of a seed of its own, and what it came to with that.

    Args:
      every: runs (*line, rate, seed, whether test samples are read) -> what each showed.
      seeds: of every line, or a line -> its own.
      held_out: what of a run tells how good it is on held-out samples.
      better: `max`, or `min` where less is better.
    """
    tuned = every((*line, rate, tuning_seed, False) for line in lines for rate in rates)
    tried = {
        line: {rate: tuned[*line, rate, tuning_seed, False][held_out] for rate in rates}
        for line in lines
    }
    best = {line: better(rates, key=tried[line].__getitem__) for line in lines}
    own = {line: seeds(line) if callable(seeds) else seeds for line in lines}
    read = every((*line, best[line], seed, True) for line in lines for seed in own[line])
    return {
        line: Reported(
            best[line],
            {str(rate): found for rate, found in tried[line].items()},
            [read[*line, best[line], seed, True] for seed in own[line]],
        )
        for line in lines
    }


def _stay_on_a_core(cores: Any) -> None:
    core = cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
