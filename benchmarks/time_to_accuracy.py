"""Seconds until a language model is as good as plain training makes it: two hosts, links of set rates.

The language model of `benchmarks.hosts`, four passes over its text in batches of 64, NAdam, a tenth of
the steps of warm-up, then a cosine to zero. The bits a byte to be reached, on 1 000 held-out rows, are
those of plain training on one host after 80 % of its steps, mean of the seeds. Every method takes the
same samples; its peak rate is chosen out of the same three by its bits at the end, with a seed apart from
the reported ones. Steps are counted here, in one process, since a mesh changes no number; data parallel
training and the pipeline have the numbers of plain training. The seconds of a step are those measured on
the hosts (benchmarks/results/hosts.json, with momentum where NAdam trains here).

    python -m benchmarks.time_to_accuracy --workers 2 [--smoke]

Twenty minutes on 2 cores. Finished runs are kept in --runs. Last result:
benchmarks/results/time_to_accuracy.json, in docs/which-method.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from math import log, prod
from statistics import mean
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jtssm
from benchmarks import record
from benchmarks.host_cases import FINER, NETWORKS, PLAIN
from benchmarks.hosts import NO_LINK
from benchmarks.running import Runs, arguments, chosen
from benchmarks.users_networks import SEEDS, TUNING_SEED, optimizer
from examples import language_model
from jtssm import solvers

NETWORK, PASSES, HELD_OUT, RATES = "language", 4, 1000, (4e-3, 8e-3, 1.6e-2)
SHARE = 0.8  # of plain training's steps, after which it has reached what is to be reached
LOOKS = 16  # minibatches between two looks at held-out rows
SAME = {"data parallel": PLAIN, "pipeline, n = 2": PLAIN}  # the numbers of which case they have
TRAINED = (
    PLAIN,
    "gsADMM, n = 2, predicted",
    *FINER,
    "local SGD, R = 20",
)


def train(run: tuple, smoke: bool) -> dict[str, Any]:
    """Train once; bits a byte of the held-out rows after so many samples.

    run: (case, rate, seed, whether it is reported).
    """
    name, rate, seed, _ = run
    trained, (x, y) = NETWORKS[NETWORK], language_model.samples()
    end = 2 * 64 * 20 if smoke else len(x) - 2 * HELD_OUT
    held = tuple(a[-2 * HELD_OUT : -HELD_OUT] for a in (x, y))
    minibatches = (1 if smoke else PASSES) * end // trained.batch
    build, options = solvers.METHODS[trained.cases[name].method], trained.cases[name].options
    descent = optimizer("nadam", rate, minibatches // options.get("workers", 1), warmup=10)
    net = trained.network()
    method = build(net, **options, optimizer=descent, batch_size=trained.batch)
    look = jax.jit(lambda params: bits(net, params, *held))
    most, every = minibatches * trained.batch, LOOKS * trained.batch
    curve, _ = looks(method, (x[:end], y[:end]), seed, most, every, look)
    return {"run": list(run), "curve": curve, "bits": curve[-1][1]}


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


def bits(net: jtssm.nn.Network, params: Any, x: np.ndarray, y: np.ndarray) -> jax.Array:
    """Bits a byte."""
    scores = net.apply(params, jnp.asarray(x))
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(scores, jnp.asarray(y))
    return losses.mean() / log(2)


def reached(curve: list[tuple[int, float]], goal: float) -> int | None:
    """Samples after which the bits were first no more than the goal."""
    return next((samples for samples, at in curve if at <= goal), None)


def goal_of(runs: list[dict]) -> float:
    """The mean of what plain training came to after `SHARE` of its samples."""
    at = lambda curve: min(curve, key=lambda point: abs(point[0] - SHARE * curve[-1][0]))[1]
    return mean(at(run["curve"]) for run in runs)


def seconds(
    hosts: list[dict], case: str, samples: float, network: str = NETWORK
) -> dict[str, float]:
    """Of so many samples, by the rate of the link."""
    own = (r for r in hosts if (r["network"], r["case"]) == (network, case) and "error" not in r)
    return {r["link"]: samples / r["samples"] * r["step_seconds"]["median"] for r in own}


def main() -> None:
    """Train, count samples to the goal, multiply; write."""
    given = _arguments()
    with Runs(given.runs, given.workers, lambda seen: True, _shown) as runs:
        every = lambda wanted: runs.all(train, {run: (run, given.smoke) for run in wanted})
        lines = [(name,) for name in given.cases]
        found = chosen(every, lines, given.rates, given.seeds, TUNING_SEED, "bits", min)
    hosts = json.loads((record.RESULTS / "hosts.json").read_text())
    goal, report = goal_of(found[PLAIN,].runs), {}
    for case in (*given.cases, *SAME):
        line = found[SAME.get(case, case),]
        counts = [reached(run["curve"], goal) for run in line.runs]
        whole = [count for count in counts if count is not None]
        report[case] = {
            "rate": line.rate,
            "bits_by_rate": line.by_rate,
            "bits": [run["bits"] for run in line.runs],
            "samples": counts,  # None: the goal was not reached
            "seconds": seconds(hosts["rows"], case, mean(whole))
            if len(whole) == len(counts)
            else {},
        }
        print(f"{case}  rate {line.rate:g}  samples {counts}  seconds {report[case]['seconds']}")
    if not given.smoke:
        content = {"goal_bits": goal, "seeds": given.seeds, "hosts_commit": hosts["commit"]}
        content |= {"one_host": NO_LINK, "results": report}
        print(record.write("time_to_accuracy", "benchmarks.time_to_accuracy", content))


def _shown(seen: dict) -> str:
    name, rate, seed, _ = seen["run"]
    return f"{name}, rate {rate:g}, seed {seed}  held-out {seen['bits']:.4f}"


def _arguments() -> argparse.Namespace:
    about = __doc__.splitlines()[0]
    parser = arguments(
        about, "two methods, one rate and seed, few rows", "run/time_to_accuracy.jsonl"
    )
    given = parser.parse_args()
    given.cases, given.rates, given.seeds = TRAINED, RATES, SEEDS
    if given.smoke:
        given.cases, given.rates, given.seeds = (PLAIN, "local SGD, R = 20"), RATES[:1], (0,)
        given.runs, given.workers = None, 0
    return given


if __name__ == "__main__":
    main()
