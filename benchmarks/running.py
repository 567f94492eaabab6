"""Trainings done once: kept in a file, run on several cores, taken up after an interruption."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

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


def _stay_on_a_core(cores: Any) -> None:
    core = cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
