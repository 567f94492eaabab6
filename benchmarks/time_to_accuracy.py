"""Seconds until a network is as good as plain training makes it: two hosts, links of set rates.

Two networks of `benchmarks.hosts` with NAdam, a tenth of the steps of warm-up, then a cosine to zero: the
decoder, four passes over its text in batches of 64; the transformer classifier, ten over the first 5 000
MNIST images, 14 x 14, in batches of 128. What is to be reached, in bits a byte of 1 000 held-out rows or
as the share of the last 5 000 training images that is wrong, is what plain training on one host has after
80 % of its steps, mean of the seeds. Every method takes the same samples; its peak rate is chosen out of
the same three by what it has at the end, with a seed apart from the reported ones. Steps are counted
here, in one process, since a mesh changes no number; data parallel training and the pipeline have the
numbers of plain training. The seconds of a step are those measured on the hosts
(benchmarks/results/hosts.json, with momentum where NAdam trains here).

    JTSSM_DATA=FOLDER python -m benchmarks.time_to_accuracy --workers 2 [--only PATTERN] [--smoke]

PATTERN: of the lines to train, e.g. "classifier"; what is known of the others is kept.

Fifty minutes on 2 cores. Finished runs are kept in --runs. Last result:
benchmarks/results/time_to_accuracy.json, in docs/which-method.md.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from math import log, prod
from statistics import mean
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jtssm
from benchmarks import record
from benchmarks.host_cases import FINER, NETWORKS, PLAIN
from benchmarks.hosts import NO_LINK
from benchmarks.running import Reported, Runs, arguments, chosen
from benchmarks.users_networks import SEEDS, TUNING_SEED, optimizer
from examples import language_model
from jtssm import data, solvers

RATES = (4e-3, 8e-3, 1.6e-2)
SHARE = 0.8  # of plain training's steps, after which it has reached what is to be reached
LOOKS = 16  # minibatches between two looks at held-out samples
SAME = {"data parallel": PLAIN, "pipeline, n = 2": PLAIN}  # the numbers of which case they have
TRAINED = (
    PLAIN,
    "gsADMM, n = 2, predicted",
    *FINER,
    "local SGD, R = 20",
    "DiLoCo, R = 20",
)
Samples = tuple[np.ndarray, np.ndarray]


class Task(NamedTuple):
    """What a network learns."""

    unit: str  # of what a look at held-out samples finds; less is better
    passes: int
    samples: Callable[[], tuple[Samples, Samples]]  # to train on, held out
    found: Callable[[jtssm.nn.Network, Any, np.ndarray, np.ndarray], jax.Array]


def rows_of_text() -> tuple[Samples, Samples]:
    """Of the decoder."""
    x, y = language_model.samples()
    return (x[: -2 * HELD_OUT], y[: -2 * HELD_OUT]), (
        x[-2 * HELD_OUT : -HELD_OUT],
        y[-2 * HELD_OUT : -HELD_OUT],
    )


def images() -> tuple[Samples, Samples]:
    """Of the classifier."""
    splits = data.load("mnist", size=14)
    return (splits.train.x[:IMAGES], splits.train.y[:IMAGES]), splits.valid


def bits(net: jtssm.nn.Network, params: Any, x: np.ndarray, y: np.ndarray) -> jax.Array:
    """Bits a byte."""
    scores = net.apply(params, jnp.asarray(x))
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(scores, jnp.asarray(y))
    return losses.mean() / log(2)


def wrong(net: jtssm.nn.Network, params: Any, x: np.ndarray, y: np.ndarray) -> jax.Array:
    """The share that is not found."""
    return (net.apply(params, jnp.asarray(x)).argmax(axis=1) != jnp.asarray(y)).mean()


HELD_OUT, IMAGES = 1000, 5000
TASKS = {
    "language": Task("bits a byte", 4, rows_of_text, bits),
    "classifier": Task("share wrong", 10, images, wrong),
}


def train(run: tuple, smoke: bool) -> dict[str, Any]:
    """Train once; what looks at held-out samples find after so many samples.

    run: (network, case, rate, seed, whether it is reported).
    """
    network, name, rate, seed, _ = run
    trained, task = NETWORKS[network], TASKS[network]
    (x, y), held = task.samples()
    end = 2 * trained.batch * 20 if smoke else len(x)
    minibatches = (1 if smoke else task.passes) * end // trained.batch
    build, options = solvers.METHODS[trained.cases[name].method], trained.cases[name].options
    descent = optimizer("nadam", rate, minibatches // options.get("workers", 1), warmup=10)
    net = trained.network()
    method = build(net, **options, optimizer=descent, batch_size=trained.batch)
    look = jax.jit(lambda params: task.found(net, params, *held))
    most, every = minibatches * trained.batch, LOOKS * trained.batch
    curve, _ = looks(method, (x[:end], y[:end]), seed, most, every, look)
    return {"run": list(run), "curve": curve, "held_out": curve[-1][1]}


def looks(
    method: jtssm.Method,
    samples: tuple[np.ndarray, np.ndarray],
    seed: int,
    most: int,
    every: int,
    look: Callable[[Any], jax.Array],
) -> tuple[list[tuple[int, float]], Any]:
    """(samples so far, what a look at the parameters shows) of a training, and its last parameters.

    most: samples that it takes.  every: samples between two looks.
    """
    x, y = samples
    state, step = method.init(jax.random.key(seed), x, y), jax.jit(method.step, donate_argnums=0)
    rng, left, curve = np.random.default_rng(seed), np.empty(0, int), []
    shape = method.batch_shape
    assert shape is not None  # none keeps all samples
    each = prod(shape)
    every = max(1, every // each)
    for i in range(1, most // each + 1):
        while len(left) < each:
            left = np.concatenate([left, rng.permutation(len(x))])
        rows, left = left[:each], left[each:]
        given = (a[rows].reshape(*shape, *a.shape[1:]) for a in (x, y))
        state, _ = step(state, *given)
        if i % every == 0:
            curve.append((i * each, float(look(method.params(state)))))
    return curve, method.params(state)


def reached(curve: list[tuple[int, float]], goal: float) -> int | None:
    """Samples after which a look first found no more than the goal."""
    return next((samples for samples, at in curve if at <= goal), None)


def goal_of(runs: list[dict]) -> float:
    """The mean of what plain training came to after `SHARE` of its samples."""
    at = lambda curve: min(curve, key=lambda point: abs(point[0] - SHARE * curve[-1][0]))[1]
    return mean(at(run["curve"]) for run in runs)


def seconds(hosts: list[dict], case: str, samples: float, network: str) -> dict[str, float]:
    """Of so many samples, by the rate of the link."""
    own = (r for r in hosts if (r["network"], r["case"]) == (network, case) and "error" not in r)
    return {r["link"]: samples / r["samples"] * r["step_seconds"]["median"] for r in own}


def line_of(each: Reported, goal: float) -> dict[str, Any]:
    """What is known of a case when it is trained."""
    return {
        "rate": each.rate,
        "by_rate": each.by_rate,
        "held_out": [run["held_out"] for run in each.runs],
        "samples": [reached(run["curve"], goal) for run in each.runs],  # None: it was not
    }


def learnt(found: Mapping[tuple, Reported], before: Mapping[str, Any]) -> dict[str, Any]:
    """Of every network its goal and its lines; before: what was known, in the same form.

    What was counted to another goal is left out.
    """
    report = {}
    for network, task in TASKS.items():
        old = before.get(network, {"results": {}})
        mine = {case: each for (of, case), each in found.items() if of == network}
        if not mine and not old["results"]:
            continue
        if PLAIN not in mine and "goal" not in old:
            raise ValueError(f"--only: expected {PLAIN!r} among the lines of {network}; got none")
        goal = goal_of(mine[PLAIN].runs) if PLAIN in mine else old["goal"]
        kept = old["results"] if goal == old.get("goal") else {}
        lines = kept | {case: line_of(each, goal) for case, each in mine.items()}
        lines |= {case: lines[same] for case, same in SAME.items() if same in lines}
        report[network] = {"unit": task.unit, "goal": goal, "results": lines}
    return report


def with_seconds(network: str, case: str, line: dict, hosts: list[dict]) -> dict[str, Any]:
    """A line and the seconds to the goal, where every seed reached it."""
    counts = line["samples"]
    known = {} if None in counts else seconds(hosts, case, mean(counts), network)
    return line | {"seconds": known, "seconds_a_sample": seconds(hosts, case, 1.0, network)}


def main() -> None:
    """Train, count samples to the goal, multiply; write."""
    given = _arguments()
    with Runs(given.runs, given.workers, lambda seen: True, _shown) as runs:
        every = lambda wanted: runs.all(train, {run: (run, given.smoke) for run in wanted})
        found = chosen(every, given.lines, given.rates, given.seeds, TUNING_SEED, "held_out", min)
    path = record.RESULTS / "time_to_accuracy.json"
    fresh = given.smoke or not path.exists()
    report = learnt(found, {} if fresh else json.loads(path.read_text())["networks"])
    hosts = json.loads((record.RESULTS / "hosts.json").read_text())
    for network, of in report.items():
        for case, line in of["results"].items():
            of["results"][case] = own = with_seconds(network, case, line, hosts["rows"])
            print(
                f"{network}, {case}  rate {own['rate']:g}  samples {own['samples']}  "
                f"seconds {own['seconds']}"
            )
    if not given.smoke:
        content = {"seeds": given.seeds, "hosts_commit": hosts["commit"], "one_host": NO_LINK}
        content |= {"networks": report}
        print(record.write("time_to_accuracy", "benchmarks.time_to_accuracy", content))


def _shown(seen: dict) -> str:
    network, name, rate, seed, _ = seen["run"]
    return f"{network}, {name}, rate {rate:g}, seed {seed}  held-out {seen['held_out']:.4f}"


def _arguments() -> argparse.Namespace:
    about = __doc__.splitlines()[0]
    parser = arguments(
        about, "two methods, one rate and seed, few rows", "run/time_to_accuracy.jsonl"
    )
    parser.add_argument("--only", default="", help="regular expression: which lines of the tables")
    given = parser.parse_args()
    given.rates, given.seeds = RATES, SEEDS
    lines = [(network, case) for network in TASKS for case in TRAINED]
    given.lines = [line for line in lines if re.search(given.only, ", ".join(line))]
    if given.smoke:
        given.lines = [("language", case) for case in (PLAIN, "local SGD, R = 20")]
        given.rates, given.seeds, given.runs, given.workers = RATES[:1], (0,), None, 0
    return given


if __name__ == "__main__":
    main()
