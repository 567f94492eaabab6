"""What stands beside every number: the command, date, commit, versions and device."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
import optax

RESULTS = Path(__file__).parent / "results"


def write(name: str, module: str, content: Mapping[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json with where and how the numbers were made."""
    commit = _git("rev-parse", "HEAD") + (
        " (changed)" if _git("status", "--porcelain", "jtssm") else ""
    )
    about = {
        "command": f"python -m {module} {shlex.join(sys.argv[1:])}".strip(),
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "optax": optax.__version__,
            "numpy": np.__version__,
        },
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cores": os.cpu_count(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**about, **content}, indent=1) + "\n")
    return path


def alternating(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, taken in turns so that a change of the machine's pace hits all alike.

    Every run is called once before, to compile.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return {"median": float(median), "quartiles": [float(low), float(high)]}


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return run.stdout.strip()
