"""Seconds until a wide network is as good as plain training makes it: IST on two hosts, R = 5 to 200.

A perceptron 196-4096-10 with batch normalisation on MNIST 14 x 14, four passes over 55 000 images in
batches of 128, plain SGD or Adam along a cosine; beside it one network half as wide, and whether moments
that travel with their weights gain anything. The accuracy to be reached, on the last 5 000 training
images, is that of plain SGD on one host after 80 % of its steps, mean of the seeds. Every line takes the
same samples; its peak rate is the best of three at the end, with a seed apart from the reported ones,
whose test images are read once. Steps are counted in one process, since a mesh changes no number; data
parallel training has the numbers of plain training. The seconds of a step are those of the hosts
(benchmarks/results/hosts_wide.json).

    python -m benchmarks.hosts --networks wide,half --seconds 2 --write hosts_wide
    JTSSM_DATA=FOLDER python -m benchmarks.ist_wide --workers 2 [--smoke]

Half an hour on 2 cores, and five minutes on the hosts. Finished runs are kept in --runs. Last result:
benchmarks/results/ist_wide.json, in docs/methods/ist.md.
"""

from __future__ import annotations

import json
from statistics import mean
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jtssm
from benchmarks import figures, record
from benchmarks.host_cases import NETWORKS, PLAIN
from benchmarks.hosts import NO_LINK
from benchmarks.running import Reported, Runs, arguments, chosen
from benchmarks.time_to_accuracy import goal_of, looks, reached, seconds
from benchmarks.users_networks import SEEDS, TUNING_SEED
from jtssm import data, solvers

NETWORK, PASSES, BATCH, LOOKS = "wide", 4, 128, 40
PARALLEL = {
    "data parallel": PLAIN,
    "data parallel, Adam": "one host, Adam",
}  # whose numbers they have
HALF = {
    "half as wide": PLAIN,
    "half as wide, Adam": "one host, Adam",
}  # of which case, half as wide
ALONE: dict[str, dict[str, Any]] = {  # not on the hosts
    "IST, R = 20, Adam, moments": {"local_steps": 20, "carry": "moments"},
    "IST, R = 5, Adam": {"local_steps": 5},
    "IST, R = 5, Adam, moments": {"local_steps": 5, "carry": "moments"},
}
LINES = [*(n for n in NETWORKS[NETWORK].cases if n not in PARALLEL), *HALF, *ALONE]
RATES = {"sgd": (0.3, 1.0, 3.0), "adam": (1e-3, 3e-3, 1e-2)}


def optimizer_of(line: str) -> str:
    """Its name."""
    return "adam" if "Adam" in line else "sgd"


def method_of(line: str, width: int, rate: float, samples: int) -> jtssm.Method:
    """What a line trains, on so many samples in all."""
    net = jtssm.mlp([196, width // (2 if line in HALF else 1), 10], normalisation="batch")
    name, options = "ist", {"subnets": 2, **ALONE.get(line, {})}
    if line not in ALONE:
        case = NETWORKS[NETWORK].cases[HALF.get(line, line)]
        name, options = case.method, dict(case.options)
    workers = 1 if name == "sgd" else 2
    cosine = optax.cosine_decay_schedule(rate, samples // (BATCH * workers))
    descent = getattr(optax, optimizer_of(line))(cosine)
    return solvers.METHODS[name](net, **options, optimizer=descent, batch_size=BATCH)


def train(run: tuple, smoke: bool) -> dict[str, Any]:
    """Train once; the share of held-out images that is wrong after so many samples.

    run: (line, rate, seed, whether test images are read).
    """
    line, rate, seed, read_test = run
    if smoke:
        x, y = jnp.zeros((2560, 196)), jnp.zeros(2560, int)
        splits = data.Splits(data.Split(x, y), data.Split(x[:9], y[:9]), data.Split(x[:9], y[:9]))
    else:
        splits = data.load("mnist", size=14, flat=True)
    samples = len(splits.train.x) * (1 if smoke else PASSES)
    method = method_of(line, 16 if smoke else 4096, rate, samples)
    every = (5 if smoke else LOOKS) * BATCH
    return {"run": list(run)} | trained(method, splits, seed, samples, every, read_test)


def trained(
    method: jtssm.Method, splits: data.Splits, seed: int, samples: int, every: int, read_test: bool
) -> dict[str, Any]:
    """The share of held-out samples that is wrong after so many samples, and at the end; test accuracy.

    every: samples between two looks.
    """

    @jax.jit
    def wrong(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return (method.network.apply(params, x).argmax(axis=1) != y).mean()

    of = lambda split: (jnp.asarray(split.x), jnp.asarray(split.y))
    look = lambda params: wrong(params, *of(splits.valid))
    curve, params = looks(method, splits.train, seed, samples, every, look)
    seen = {"curve": curve, "wrong": curve[-1][1]}
    return seen | ({"test": 1 - float(wrong(params, *of(splits.test)))} if read_test else {})


def reported(each: Reported, goal: float, one: dict[str, float]) -> dict[str, Any]:
    """What the table says of a line; one: seconds a sample, by link."""
    counts = [reached(run["curve"], goal) for run in each.runs]
    whole = [count for count in counts if count is not None]
    curves = zip(*(run["curve"] for run in each.runs), strict=True)
    return {
        "rate": each.rate,
        "held_out_by_rate": {rate: 1 - a for rate, a in each.by_rate.items()},
        "test": [run["test"] for run in each.runs],
        "samples": counts,  # None: the goal was not reached
        "seconds": {} if None in counts else {k: mean(whole) * a for k, a in one.items()},
        "seconds_a_sample": one,
        "held_out": [(at[0][0], 1 - mean(wrong for _, wrong in at)) for at in curves],
    }


def seconds_of(line: str, rows: list[dict]) -> dict[str, float]:
    """Of a sample, by link; rows: of the hosts."""
    return seconds(rows, HALF.get(line, line), 1.0, "half" if line in HALF else NETWORK)


def main() -> None:
    """Train, count samples to the goal, multiply; write."""
    given = _arguments()
    found: dict[tuple, Any] = {}
    with Runs(given.runs, given.workers, lambda seen: True, _shown) as runs:
        every = lambda wanted: runs.all(train, {run: (run, given.smoke) for run in wanted})
        for kind in RATES:
            lines = [(line,) for line in given.lines if optimizer_of(line) == kind]
            rates = RATES[kind][: 1 if given.smoke else None]
            found |= chosen(every, lines, rates, given.seeds, TUNING_SEED, "wrong", min)
    path = record.RESULTS / "hosts_wide.json"
    hosts = json.loads(path.read_text()) if path.exists() else {"rows": [], "commit": None}
    goal = goal_of(found[PLAIN,].runs)
    named = {line: found[line,] for line in given.lines}
    named |= {line: named[same] for line, same in PARALLEL.items() if same in named}
    rows = hosts["rows"]
    report = {k: reported(each, goal, seconds_of(k, rows)) for k, each in named.items()}
    for line, own in report.items():
        print(
            f"{line}  rate {own['rate']:g}  test {own['test']}  {own['samples']}  {own['seconds']}"
        )
    if not given.smoke:
        content = {"goal": 1 - goal, "seeds": given.seeds, "hosts_commit": hosts["commit"]}
        content |= {"one_host": NO_LINK, "results": report}
        print(record.write("ist_wide", "benchmarks.ist_wide", content))
        figures.draw("ist_wide")


def _shown(seen: dict) -> str:
    line, rate, seed, _ = seen["run"]
    return f"{line}, rate {rate:g}, seed {seed}  held-out {1 - seen['wrong']:.4f}"


def _arguments() -> Any:
    about = __doc__.splitlines()[0]
    given = arguments(about, "a narrow network, zeros", "run/ist_wide.jsonl").parse_args()
    given.lines, given.seeds = LINES, SEEDS
    if given.smoke:
        given.lines = [PLAIN, "IST, R = 5", "half as wide", "IST, R = 5, Adam, moments"]
        given.seeds, given.runs, given.workers = (0,), None, 0
    return given


if __name__ == "__main__":
    main()
