"""How well does pdADMM train a deep perceptron in 100 + 100 iterations, and what does rounding cost?

MNIST 14 x 14, nine hidden layers of 500, full batch: a network of the first hidden layer for 100
iterations, grown by eight identity layers, then 100 more. Settings are chosen on the last 5 000
training images: those of the shallow stage on the first 20 000 images, 40 iterations; of the deep
stage, from the best shallow network, on the first 10 000, 16 iterations. The best of each then train
on all 55 000, and the test set is read once. Beside it full-batch Adam for 100 epochs (as in the
paper) and minibatch Adam (batch 110, 10 epochs), two rates each, chosen on the same held-out images
(full batch: 50 epochs on 10 000). Digits: five layers of 100 and an output, 100 iterations from a
random start, the settings of the shallow stage. Rounded exchange: four hidden layers of 300, 20 000
images, 100 iterations from a random start.

    JTSSM_DATA=FOLDER python -m benchmarks.pdadmm_accuracy [--only REGEX] [--smoke]

About 70 minutes on 2 cores; finished runs are kept in --runs and not run again.
Last result: benchmarks/results/pdadmm_accuracy.json, in the README.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jtssm
from benchmarks import record
from jtssm import data, losses, solvers
from jtssm.solvers import layerwise

PAPER = {"rho": 1e-4, "nu": 1e-4, "steps": "gradient"}
SETTINGS: dict[str, dict[str, Any]] = {
    "gradient, t0 = 10, rho = nu = 1e-4 (released)": {**PAPER, "t0": 10.0},
    "gradient, rho = nu = 1e-4": PAPER,
    "gradient, rho = nu = 1e-2": {"rho": 1e-2, "nu": 1e-2, "steps": "gradient"},
    "gradient, rho = 10, nu = 1": {"rho": 10.0, "nu": 1.0, "steps": "gradient"},
    "gradient, rho = 300, nu = 0.03": {"rho": 300.0, "nu": 0.03, "steps": "gradient"},
    "exact, rho = nu = 1e-4": {"rho": 1e-4, "nu": 1e-4, "steps": "exact"},
    "exact, rho = 300, nu = 0.03": {"rho": 300.0, "nu": 0.03, "steps": "exact"},
    **{
        f"damped, rho = {rho:g}, nu = {nu:g}": {"rho": rho, "nu": nu}
        for rho, nu in (
            (1e-4, 1e-4),
            (10.0, 1.0),
            (100.0, 0.3),
            (100.0, 0.03),
            (300.0, 0.3),
            (1000.0, 0.1),
            (300.0, 0.1),
            (300.0, 0.03),
            (1000.0, 0.3),
            (1000.0, 0.03),
            (300.0, 0.01),
        )
    },
    "damped 0.03, rho = 300, nu = 0.03": {"rho": 300.0, "nu": 0.03, "damping": 0.03},
    "damped 0.3, rho = 300, nu = 0.03": {"rho": 300.0, "nu": 0.03, "damping": 0.3},
}
DEEP: dict[str, dict[str, float]] = {
    "as the shallow stage": {},
    "rho = 30, nu = 0.3": {"rho": 30.0, "nu": 0.3},
    "rho = 30, nu = 0.03": {"rho": 30.0, "nu": 0.03},
    "rho = 10, nu = 1": {"rho": 10.0, "nu": 1.0},
    "rho = 3, nu = 0.3": {"rho": 3.0, "nu": 0.3},
    "damping 1": {"damping": 1.0},
}
RATES = (1e-3, 3e-3)
GRIDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "16 bits, p and q": {"grid": 16},
    "8 bits, p and q": {"grid": 8},
    "8 bits, p": {"grid": 8, "float_q": True},
}


class Size(NamedTuple):
    """How large the runs are."""

    width: int
    depth: int
    samples: int  # of the final runs
    shallow_samples: int
    deep_samples: int
    iterations: int  # of each final stage
    shallow_iterations: int  # while choosing
    deep_iterations: int
    every: int


FULL = Size(500, 9, 55_000, 20_000, 10_000, 100, 40, 16, 4)
SMOKE = Size(32, 3, 400, 200, 200, 4, 4, 4, 2)


def main() -> None:
    """Choose, train, report."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument("--smoke", action="store_true", help="seconds, no result file")
    parse.add_argument("--only", default="", help="regular expression: which shallow settings")
    parse.add_argument("--runs", type=Path, default=Path("run/pdadmm_accuracy.jsonl"))
    given = parse.parse_args()
    runs = Runs(None if given.smoke else given.runs)
    trial = Trial(SMOKE if given.smoke else FULL, given.smoke)
    settings = {n: a for n, a in SETTINGS.items() if re.search(given.only, n)}
    report: dict[str, Any] = {"size": trial.size._asdict()}
    report["shallow_stage"] = {
        n: runs.get(f"shallow: {n}", trial.shallow, a) for n, a in settings.items()
    }
    best = max(settings, key=lambda n: report["shallow_stage"][n]["valid_accuracy"][-1])
    deep = dict(list(DEEP.items())[: 1 if given.smoke else None])
    report["deep_stage"] = runs.get(f"deep from {best}", trial.deep, settings[best], deep)
    chosen = max(deep, key=lambda n: report["deep_stage"][n]["valid_accuracy"][-1])
    report["reported"] = {"shallow": best, "deep": chosen} | runs.get(
        f"reported: {best}, {chosen}", trial.reported, settings[best], DEEP[chosen]
    )
    report["digits"] = {n: runs.get(f"digits: {n}", trial.digits, a) for n, a in settings.items()}
    for kind in ("minibatch", "full batch")[given.smoke :]:
        report[f"Adam, {kind}"] = runs.get(f"Adam, {kind}", trial.adam, kind)
    grids = {n: a for n, a in GRIDS.items() if not given.smoke or n == "8 bits, p and q"}
    report["rounded_exchange"] = {
        n: runs.get(f"grid: {n}, {best}", trial.rounded, settings[best] | a)
        for n, a in grids.items()
    }
    if not given.smoke:
        print(record.write("pdadmm_accuracy", "benchmarks.pdadmm_accuracy", report))


class Runs:
    """Results by name, each made once and kept in a file."""

    def __init__(self, path: Path | None):
        self.path, self.done = path, {}
        if path is not None and path.exists():
            self.done = dict(map(json.loads, path.read_text().splitlines()))

    def get(self, name: str, make: Callable, *args: Any) -> Any:
        """The kept result, or a new one."""
        if name not in self.done:
            start = time.perf_counter()
            self.done[name] = make(*args)
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a") as file:
                    file.write(json.dumps([name, self.done[name]]) + "\n")
            shown = json.dumps(self.done[name])
            print(f"{name} [{time.perf_counter() - start:.0f} s] {shown[:400]}", flush=True)
        return self.done[name]


class Trial:
    """One kind of training a method."""

    def __init__(self, size: Size, smoke: bool):
        self.size = size
        self.splits = (
            data.load("digits", flat=True) if smoke else data.load("mnist", size=14, flat=True)
        )

    def net(self, depth: int, width: int | None = None) -> Any:
        """depth hidden layers."""
        inputs = self.splits.train.x.shape[1]
        return jtssm.mlp([inputs, *[width or self.size.width] * depth, 10])

    def fit(self, method: Any, samples: int, iterations: int, state: Any = None) -> Any:
        """Train on the first samples; evaluate on the held-out ones now and then."""
        train = data.Split(*(a[:samples] for a in self.splits.train))
        return jtssm.fit(
            method,
            train,
            epochs=iterations,
            key=jax.random.key(0),
            state=state,
            progress=False,
            validation={"valid": self.splits.valid},
            evaluate_every=self.size.every,
        )

    def shallow(self, setting: dict) -> dict:
        size = self.size
        method = solvers.pdadmm(self.net(1), **setting)
        return curves(self.fit(method, size.shallow_samples, size.shallow_iterations))

    def deep(self, setting: dict, changes: dict) -> dict[str, dict]:
        """Every deep setting from one shallow network trained on all samples."""
        size = self.size
        method = solvers.pdadmm(self.net(1), **setting)
        params = self.fit(method, size.samples, size.iterations).params
        train = [a[: size.deep_samples] for a in self.splits.train]
        state = method.init(jax.random.key(0), *train, params)
        method, start = layerwise.grow(method, state, self.net(size.depth))
        found = {}
        for name, change in changes.items():
            changed = jax.tree.map(lambda a: a, start._replace(numbers=renumbered(start, change)))
            result = self.fit(method, size.deep_samples, size.deep_iterations, changed)
            found[name] = curves(result)
            print(name, found[name]["valid_accuracy"], flush=True)
        return found

    def reported(self, setting: dict, change: dict) -> dict:
        """Both stages on all samples; the test set is read here and nowhere else."""
        size = self.size
        first = self.fit(solvers.pdadmm(self.net(1), **setting), size.samples, size.iterations)
        method, state = layerwise.grow(first.method, first.state, self.net(size.depth))
        state = state._replace(numbers=renumbered(state, change))
        second = self.fit(method, size.samples, size.iterations, state)
        return {
            "shallow": curves(first) | self.scores(first),
            "deep": curves(second) | self.scores(second),
        }

    def adam(self, kind: str) -> dict:
        """The rate chosen on held-out images, then the test accuracy at that rate."""
        size, smoke = self.size, self.size is SMOKE
        batch = size.samples if kind == "full batch" else 110
        epochs = size.iterations if kind == "full batch" else (1 if smoke else 10)
        tried = {}
        for rate in RATES[:1] if smoke else RATES:
            # full batch: chosen on fewer images and epochs, as the stages of pdADMM are
            few, short = (
                (size.deep_samples, epochs // 2) if kind == "full batch" else (size.samples, epochs)
            )
            tried[rate] = curves(self.sgd(rate, min(batch, few), few, short))
        best = max(tried, key=lambda rate: tried[rate]["valid_accuracy"][-1])
        result = self.sgd(best, batch, size.samples, epochs)
        return {"rate": best, "by_rate": tried} | curves(result) | self.scores(result)

    def sgd(self, rate: float, batch: int, samples: int, epochs: int) -> Any:
        """Adam end to end: constant rate for full batches, else warm-up and a cosine."""
        steps = samples // batch * epochs
        minibatch = optax.warmup_cosine_decay_schedule(0.0, rate, min(500, steps // 5), steps)
        schedule = rate if batch == samples else minibatch
        net = self.net(self.size.depth)
        method = solvers.sgd(net, optimizer=optax.adam(schedule), batch_size=batch)
        return self.fit(method, samples, epochs)

    def digits(self, setting: dict) -> dict:
        """Five hidden layers of 100 from a random start on the embedded digits; the test set is read."""
        splits, size = self.splits, self.size
        self.splits = data.load("digits", flat=True)
        result = self.fit(solvers.pdadmm(self.net(5, 100), **setting), 10_000, size.iterations)
        found = curves(result) | self.scores(result)
        self.splits = splits
        return found

    def rounded(self, setting: dict) -> dict:
        size = self.size
        width = min(300, size.width)
        method = solvers.pdadmm(self.net(min(4, size.depth), width), **setting)
        boundary = [m for m in method.moves(1000) if m.axis == "subnet"]
        sent = sum(np.prod(m.shape) * (m.itemsize or 4) for m in boundary)
        whole = 4 * sum(np.prod(m.shape) for m in boundary if m.shape[1] != 2)
        found = curves(self.fit(method, size.shallow_samples, size.iterations))
        return {"bytes_of_float32": float(sent / whole)} | found

    def scores(self, result: Any) -> dict:
        """Accuracy recomputed from the final parameters."""
        net = result.method.network
        right = lambda split: float(
            losses.cross_entropy()
            .correct(jax.jit(net.apply)(result.params, split.x), split.y)
            .mean()
        )
        return {f"{name}_accuracy": right(getattr(self.splits, name)) for name in ("train", "test")}


def renumbered(state: Any, change: dict) -> Any:
    """The numbers of a state with some of them changed."""
    like = {name: np.asarray(a, state.numbers.rho.dtype) for name, a in change.items()}
    return state.numbers._replace(**like)


def curves(result: Any) -> dict:
    """What is kept of a run."""
    history = result.history
    names = ("valid_accuracy", "objective", "primal_residual", "c_k")
    found = {n: [round(line[n], 7) for line in history] for n in names if n in history[-1]}
    seconds = sum(line["seconds"] for line in history[1:]) / max(
        history[-1]["epoch"] - history[0]["epoch"], 1
    )
    return found | {"seconds_an_iteration": seconds, "diverged": result.divergence is not None}


if __name__ == "__main__":
    main()
