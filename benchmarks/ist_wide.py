"""Seconds until a wide network is as good as plain training makes it: IST on two hosts, R = 5 to 200.

A perceptron 196-4096-10 with batch normalisation on MNIST 14 x 14, four passes over 55 000 images in
batches of 128, plain SGD along a cosine; beside it one network half as wide, and with Adam whether
moments that travel with their weights gain anything. The accuracy to be reached, on the last 5 000
training images, is that of plain training on one host after 80 % of its steps, mean of the seeds. Every
line takes the same samples; its peak rate is the best of three at the end, with a seed apart from the
reported ones, whose test images are read once. Steps are counted in one process, since a mesh changes
no number; data parallel training has the numbers of plain training. The seconds of a step are those of
the hosts (benchmarks/results/hosts_wide.json).

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
from benchmarks.running import Runs, arguments, chosen
from benchmarks.time_to_accuracy import goal_of, looks, reached, seconds
from benchmarks.users_networks import SEEDS, TUNING_SEED
from jtssm import data, solvers

NETWORK, PASSES, BATCH, LOOKS = "wide", 4, 128, 40
HALF, PARALLEL = "one host, half as wide", "data parallel"
ADAM = {
    "Adam": {},
    "IST, R = 20, Adam": {"local_steps": 20},
    "IST, R = 20, Adam, moments": {"local_steps": 20, "carry": "moments"},
    "IST, R = 5, Adam": {"local_steps": 5},
    "IST, R = 5, Adam, moments": {"local_steps": 5, "carry": "moments"},
}
RATES = {"sgd": (0.3, 1.0, 3.0), "adam": (1e-3, 3e-3, 1e-2)}


def method_of(line: str, width: int, rate: float, samples: int) -> jtssm.Method:
    """What a line trains, on so many samples in all."""
    net = jtssm.mlp([196, width // (2 if line == HALF else 1), 10], normalisation="batch")
    name, options = "sgd", {}
    if line in ADAM:
        name, options = ("ist" if ADAM[line] else "sgd"), dict(ADAM[line])
        options |= {"subnets": 2} if options else {}
    elif line != HALF:
        case = NETWORKS[NETWORK].cases[line]
        name, options = case.method, dict(case.options)
    workers = 1 if name == "sgd" else 2
    cosine = optax.cosine_decay_schedule(rate, samples // (BATCH * workers))
    descent = (optax.adam if line in ADAM else optax.sgd)(cosine)
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

    @jax.jit
    def wrong(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return (method.network.apply(params, x).argmax(axis=1) != y).mean()

    of = lambda split: (jnp.asarray(split.x), jnp.asarray(split.y))
    look = lambda params: wrong(params, *of(splits.valid))
    every = (5 if smoke else LOOKS) * BATCH
    curve, params = looks(method, splits.train, seed, samples, every, look)
    seen = {"run": list(run), "curve": curve, "wrong": curve[-1][1]}
    return seen | ({"test": 1 - float(wrong(params, *of(splits.test)))} if read_test else {})


def main() -> None:
    """Train, count samples to the goal, multiply; write."""
    given = _arguments()
    found: dict[tuple, Any] = {}
    with Runs(given.runs, given.workers, lambda seen: True, _shown) as runs:
        every = lambda wanted: runs.all(train, {run: (run, given.smoke) for run in wanted})
        for kind, lines in given.lines.items():
            rates = RATES[kind][: 1 if given.smoke else None]
            lines = [(line,) for line in lines]
            found |= chosen(every, lines, rates, given.seeds, TUNING_SEED, "wrong", min)
    path = record.RESULTS / "hosts_wide.json"
    hosts = json.loads(path.read_text()) if path.exists() else {"rows": [], "commit": None}
    goal, report = goal_of(found[PLAIN,].runs), {}
    for (line,), each in ({**found, (PARALLEL,): found[PLAIN,]}).items():
        counts = [reached(run["curve"], goal) for run in each.runs]
        whole = [count for count in counts if count is not None]
        at = ("half", PLAIN) if line == HALF else (NETWORK, line)
        one = seconds(hosts["rows"], at[1], 1.0, at[0])
        taken = {} if None in counts else {k: mean(whole) * a for k, a in one.items()}
        report[line] = {
            "rate": each.rate,
            "held_out_by_rate": {rate: 1 - a for rate, a in each.by_rate.items()},
            "test": [run["test"] for run in each.runs],
            "samples": counts,  # None: the goal was not reached
            "seconds": taken,
            "seconds_a_sample": one,
            "held_out": [
                (at[0][0], 1 - mean(wrong for _, wrong in at))
                for at in zip(*(run["curve"] for run in each.runs), strict=True)
            ],
        }
        print(f"{line}  rate {each.rate:g}  test {report[line]['test']}  {counts}  {taken}")
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
    alone = [case for case in NETWORKS[NETWORK].cases if case != PARALLEL]
    given.lines, given.seeds = {"sgd": [*alone, HALF], "adam": list(ADAM)}, SEEDS
    if given.smoke:
        given.lines = {"sgd": [PLAIN, "IST, R = 5", HALF], "adam": [list(ADAM)[4]]}
        given.seeds, given.runs, given.workers = (0,), None, 0
    return given


if __name__ == "__main__":
    main()
