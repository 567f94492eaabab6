"""How finely may a network be cut before accuracy suffers? TSSM at every n against end-to-end training.

MNIST 14 x 14, nine hidden layers of 512, batch 110, 10 epochs, 500 steps of warm-up, then a cosine to
zero. "gsADMM streaming" is the default, microbatches and predicted weights, with NAdam, beside NAdam end
to end; all other lines train with Adam: whole minibatches (microbatches=1, the form of earlier versions)
and the paper's stored schedule. Peak rates are chosen out of the same grid on the held-out last 5 000
training images, with a seed apart from the reported ones; both ends, streaming gsADMM at n = 2, 3, 5 (10
takes the next coarser one's rate) and whole minibatches at n = 2, 3, 5, 10 are tuned so, whole
minibatches at other n take the rate of the nearest; the other lines, not tuned, a quarter of it (the full
rate made 2 sweeps collapse at n = 3). Then test accuracy over three seeds (streaming at n = 10: five),
read once a run. A rate at which one of the seeds collapses (held-out accuracy below one half) gives way
to the next best one, and stands in the JSON as `collapsed`. Accuracies are computed from the final
parameters by `Network.apply`, not by the method.

    JTSSM_DATA=FOLDER python -m benchmarks.tssm_tradeoff [--only PATTERN] [--workers 2] [--smoke]

About five hours on 2 cores. Finished runs are kept in --runs, so an interrupted benchmark goes on
where it was; remove that file when a method has changed. gsAM's two sweeps and its stored lines at
n = 3 and 5 were left out of the last result: benchmarks/results/tssm_tradeoff.json and .png, in the
README's table.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jtssm
from benchmarks import figures, record
from benchmarks.running import Runs
from jtssm import data, losses, solvers
from jtssm.protocol.settings import plain

BATCH, WARMUP, TUNED = 110, 500, (2, 3, 5, 10)
LONGEST = 10  # streaming at this n is not tuned
COLLAPSED = 0.5  # held-out accuracy of a run that has not learned
ADAM, NADAM = "Adam end to end", "NAdam end to end"
STREAMING, WHOLE = "gsADMM streaming, n = {}".format, "gsADMM whole minibatches, n = {}".format


class Entry(NamedTuple):
    """One line of the table."""

    method: str  # a name in solvers.METHODS
    options: dict[str, Any]
    rate_of: str  # the line whose tuned rate it takes
    seeds: int  # how many of the seeds it gets
    scale: float = 1.0  # of that rate
    optimizer: str = "adam"

    @property
    def subnets(self) -> int:
        """n; 1 for end-to-end training."""
        return self.options.get("subnets", 1)


def entries(subnets: Sequence[int]) -> dict[str, Entry]:
    """All lines of the table, by name."""
    table = {ADAM: Entry("sgd", {}, ADAM, 3), NADAM: Entry("sgd", {}, NADAM, 3, optimizer="nadam")}
    tuned = [n for n in subnets if n in TUNED] or list(subnets)
    # the finest cut takes longest to train
    coarser = max((n for n in tuned if n < LONGEST), default=LONGEST)
    for n in tuned:
        own = STREAMING(coarser if n == LONGEST else n)
        seeds = 5 if n == LONGEST else 3  # does one collapse?
        table[STREAMING(n)] = Entry("gsadmm", {"subnets": n}, own, seeds, optimizer="nadam")
    for n in subnets:
        near = min(tuned, key=lambda t: (abs(t - n), -t))
        whole = {"subnets": n, "microbatches": 1}
        table[WHOLE(n)] = Entry("gsadmm", whole, WHOLE(near), 3 if n in tuned else 1)
    more = {
        "gsADMM streaming, 2 sweeps": ("gsadmm", {"schedule": solvers.Streaming(sweeps=2)}),
        "gsADMM stored": ("gsadmm", {"schedule": "stored"}),
        "gsAM streaming, 2 sweeps": ("gsam", {"schedule": solvers.Streaming(sweeps=2)}),
        "gsAM stored, sequential": ("gsam", {"schedule": "stored"}),
        "gsAM stored, parallel": ("gsam", {"schedule": solvers.Stored(order="parallel")}),
    }
    for name, (method, options) in more.items():
        for n in tuned:
            table[f"{name}, n = {n}"] = Entry(method, {"subnets": n, **options}, WHOLE(n), 1, 0.25)
    return table


def main() -> None:
    """Choose rates, report accuracies, write the JSON and the figure."""
    given = _arguments()
    table = entries([2, 4] if given.smoke else given.subnets)
    chosen = [n for n in table if re.search(given.only, n)]
    with _runs(given) as runs:
        tuned = list(dict.fromkeys(table[name].rate_of for name in chosen))
        wanted = [(name, rate, given.tuning_seed, False) for name in tuned for rate in given.rates]
        valid = {
            run: seen["valid_accuracy"][-1]
            for run, seen in _all(runs, table, wanted, given).items()
        }
        rates, collapsed = _stable_rates(runs, table, tuned, valid, given)
        seen = _all(runs, table, _reported(chosen, table, rates, given.seeds), given)
    report = {name: _line(name, table, rates, seen) for name in chosen}
    for name in (name for name in tuned if name in chosen):
        tried = {str(r): valid[name, r, given.tuning_seed, False] for r in given.rates}
        report[name]["valid_accuracy_by_rate"] = tried
        report[name]["collapsed"] = {
            str(rate): [
                s["valid_accuracy"][-1] for r, s in runs.done.items() if r[:2] == (name, rate)
            ]
            for rate in collapsed[name]
        }
    if not given.smoke:
        every = [[*run, s["valid_accuracy"][-1]] for run, s in runs.done.items()]
        content = {"seeds": given.seeds, "epochs": given.epochs, "results": report}
        content["all_runs: name, rate, seed, test read, valid accuracy"] = every
        path = record.write("tssm_tradeoff", "benchmarks.tssm_tradeoff", content)
        figures.draw("tssm_tradeoff")
        print(path)


def _stable_rates(runs, table, tuned, valid, given) -> tuple[dict, dict]:
    """The best rate of each tuned line at which none of its seeds collapses, and those left out."""
    collapsed: dict[str, list[float]] = {name: [] for name in tuned}
    while True:
        rates = {
            name: max(
                (r for r in given.rates if r not in collapsed[name]),
                key=lambda r: valid[name, r, given.tuning_seed, False],
            )
            for name in tuned
        }
        seen = _all(runs, table, _reported(tuned, table, rates, given.seeds), given)
        fallen = {run[0] for run, s in seen.items() if s["valid_accuracy"][-1] < COLLAPSED}
        if given.smoke or not fallen:
            return rates, collapsed
        for name in fallen:
            collapsed[name].append(rates[name])


def _reported(chosen, table, rates, seeds) -> list[tuple]:
    """The runs whose test accuracy is read."""
    return [
        (name, table[name].scale * rates[table[name].rate_of], seed, True)
        for name in chosen
        for seed in seeds[: table[name].seeds]
    ]


def _arguments() -> argparse.Namespace:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parse.add_argument
    add("--smoke", action="store_true", help="seconds instead of minutes, no result file")
    add("--only", default="", help="regular expression: which lines of the table")
    add("--subnets", type=int, nargs="+", default=[2, 3, 4, 5, 8, 10])
    add("--epochs", type=int, default=10)
    add("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    add("--tuning-seed", type=int, default=100)
    add("--workers", type=int, default=1, help="processes, each on a core of its own")
    add("--runs", type=Path, default=Path("run/tssm_tradeoff.jsonl"), help="finished runs")
    given = parse.parse_args()
    if given.smoke:
        given.epochs, given.rates, given.seeds, given.workers = 1, [1e-3], [0], 0
        given.runs = None
    return given


def _runs(given: argparse.Namespace) -> Runs:
    def show(seen: dict) -> str:
        name, rate, seed, _ = seen["run"]
        valid, test = seen["valid_accuracy"][-1], seen.get("test_accuracy", float("nan"))
        return f"{name:36} rate {rate:g} seed {seed}  valid {valid:.4f}  test {test:.4f}"

    return Runs(given.runs, given.workers, lambda seen: seen["epochs"] == given.epochs, show)


def _all(runs: Runs, table: dict[str, Entry], wanted: Sequence[tuple], given) -> dict[tuple, dict]:
    """What every wanted run showed."""
    work = {run: (table[run[0]], run, given.epochs, given.smoke) for run in wanted}
    return runs.all(_train, work)


def _train(entry: Entry, run: tuple, epochs: int, smoke: bool) -> dict:
    """Train once; accuracy of the composed network on the held-out images after every epoch."""
    splits = data.load("digits", flat=True) if smoke else data.load("mnist", size=14, flat=True)
    width, depth = (32, 3) if smoke else (512, 9)
    net = jtssm.mlp([splits.train.x.shape[1], *[width] * depth, 10])
    if smoke:
        splits = splits._replace(train=data.Split(*(a[:550] for a in splits.train)))
    _, rate, seed, read_test = run
    steps = (
        len(splits.train.x) // BATCH * epochs * getattr(entry.options.get("schedule"), "sweeps", 1)
    )
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(WARMUP, steps // 5), steps)
    method = solvers.METHODS[entry.method](
        net, optimizer=getattr(optax, entry.optimizer)(schedule), batch_size=BATCH, **entry.options
    )
    result = jtssm.fit(
        method,
        splits.train,
        epochs=epochs,
        key=jax.random.key(seed),
        progress=False,
        validation={"valid": splits.valid},
    )
    columns = ("valid_accuracy", "loss", "primal_residual", "dual_residual", "coupling")
    seen = {c: [line[c] for line in result.history] for c in columns if c in result.history[0]}
    seen |= {"run": list(run), "epochs": epochs, "diverged": result.divergence is not None}
    if read_test:
        for name in ("train", "test"):
            seen[f"{name}_accuracy"] = _accuracy(net, result.params, getattr(splits, name))
    return seen


def _accuracy(net: Any, params: Any, split: Any) -> float:
    outputs = jax.jit(net.apply)(params, split.x)
    return float(losses.cross_entropy().correct(outputs, split.y).mean())


def _line(name: str, table: dict, rates: dict, seen: dict) -> dict:
    entry = table[name]
    runs = [s for run, s in seen.items() if run[0] == name]
    test = [s["test_accuracy"] for s in runs]
    rate = entry.scale * rates[entry.rate_of]
    print(f"{name:36} rate {rate:g}  test {np.mean(test):.4f}")
    return {
        "method": entry.method,
        "options": plain(entry.options),
        "optimizer": entry.optimizer,
        "subnets": entry.subnets,
        "rate": rate,
        "rate_of": entry.rate_of,
        "test_accuracy": test,
        "train_accuracy": [s["train_accuracy"] for s in runs],
        "valid_accuracy_by_epoch": np.mean([s["valid_accuracy"] for s in runs], axis=0).tolist(),
        **{
            residual: float(np.mean([s[residual][-1] for s in runs]))
            for residual in ("primal_residual", "dual_residual", "coupling")
            if all(residual in s for s in runs)
        },
    }


if __name__ == "__main__":
    main()
