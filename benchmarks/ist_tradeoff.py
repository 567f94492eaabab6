"""What does independent subnet training give away, and to what? IST, its baselines and its controls.

MNIST 14 x 14 (batch 128 a worker, 10 epochs) and spoken digits (4096 log-mel features, the data set's own
split, batch 16, 20 epochs, rounds straddle epochs), one and two hidden layers of 512 with batch
normalisation, N = 1, 2, 4, 8 workers, R = 20 local steps. At the same number of samples:

    IST            N subnets, dealt every R steps
    local SGD      N whole networks, averaged every R steps
    data parallel  one network, minibatches of N b samples
    dropout        the same with dropout 1 - 1/N in the hidden layers: as many neurons live as in a subnet
    narrow         one network of width 512 / N, minibatches of b samples (N times as many steps)
    ensemble       N networks of width 512 / N that never talk

At N = 1 all of them are plain SGD, run once. On MNIST also IST at N = 4 with other normalisations.
Every line trains with plain SGD whose rate falls to zero along a cosine; its peak is chosen out of the
data set's grid on held-out training data (MNIST: the last 5 000 images; spoken digits: recordings
5 .. 9), with a seed apart from the reported ones. Then test accuracy over the seeds, read once a run,
from the final parameters by `Network.apply` (the ensemble's by its method).

Bytes are what a worker sends: IST 2 S (N - 1) / N a round, S its subnet; local SGD 2 (N - 1) / N of the
model a round and data parallel a step (a ring); the others nothing, but for dropout, which is data
parallel too. Seconds are of one core of this host, which all workers share.

    JTSSM_DATA=FOLDER python -m benchmarks.ist_tradeoff [--only PATTERN] [--workers 2] [--smoke]
    JTSSM_DATA=FOLDER python -m benchmarks.ist_tradeoff --only 'speaker.*N = [124]' --write ist_speakers

The second: spoken digits whose fifth speaker chooses, whose sixth tests, both never heard in training.
About an hour on 2 cores; finished runs are kept in --runs. Last result:
benchmarks/results/ist_tradeoff.json and .png, in the README's table.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jtssm
from benchmarks import figures, record
from benchmarks.running import Runs
from jtssm import data, losses, solvers
from jtssm.sharding import cost

WIDTH, LOCAL_STEPS = 512, 20
SPEAKERS = "spoken digits by speaker"
# batch, epochs, size
SETTINGS = {"mnist": (128, 10, 14), "spoken-digits": (16, 20, None), SPEAKERS: (16, 20, None)}
RATES = {
    "mnist": (0.1, 0.3, 1.0, 3.0, 10.0),
    "spoken-digits": (0.1, 0.3, 1.0, 3.0),
    SPEAKERS: (0.1, 0.3, 1.0, 3.0),
    "digits": (0.3,),
}
KINDS = ("IST", "local SGD", "data parallel", "dropout", "narrow", "ensemble")
SMOKE = ("digits", 16, 4, None)


class Entry(NamedTuple):
    """One line of the table."""

    data: str
    depth: int  # hidden layers
    kind: str
    workers: int  # N
    normalisation: str | None = "batch"

    @property
    def name(self) -> str:
        """As it stands in the table."""
        other = "" if self.normalisation == "batch" else f", {self.normalisation or 'none'}"
        return f"{self.data}, {self.depth} hidden, {self.kind}, N = {self.workers}{other}"


def entries(smoke: bool) -> dict[str, Entry]:
    """All lines of the table, by name."""
    sets, depths, numbers = (
        (["digits"], [1], [1, 4]) if smoke else (list(SETTINGS), [1, 2], [1, 2, 4, 8])
    )
    table = []
    for name, depth, n in product(sets, depths, numbers):
        kinds = ["plain SGD"] if n == 1 else KINDS
        table += [Entry(name, depth, kind, n) for kind in kinds]
        if n == 4 and name in ("mnist", "digits"):
            table += [Entry(name, depth, "IST", n, other) for other in ("running", "layer", None)]
    return {entry.name: entry for entry in table}


class Trained(NamedTuple):
    """A line's method and what its samples and bytes are."""

    method: Any
    steps: int  # one after the other, in a step of the protocol
    bytes: float  # a worker sends in a step of the protocol


def build(entry: Entry, widths: list[int], samples: int, batch: int, rate: float) -> Trained:
    """The line's method; samples: of the whole run."""
    n, alone = entry.workers, entry.kind in ("narrow", "plain SGD")
    steps = max(samples // (batch if alone else n * batch), 1)
    optimizer = optax.sgd(optax.cosine_decay_schedule(rate, steps))
    inputs, *hidden, outputs = widths
    if entry.kind in ("narrow", "ensemble"):
        hidden = [w // n for w in hidden]
    dropout = 1 - 1 / n if entry.kind == "dropout" else 0.0
    net = jtssm.mlp([inputs, *hidden, outputs], normalisation=entry.normalisation, dropout=dropout)
    rounds = {"optimizer": optimizer, "local_steps": LOCAL_STEPS, "batch_size": batch}
    if entry.kind == "IST":
        method = solvers.ist(net, subnets=n, **rounds)
    elif entry.kind == "local SGD":
        method = solvers.local_sgd(net, workers=n, **rounds)
    elif entry.kind == "ensemble":
        method = solvers.ensemble(net, members=n, **rounds)
    else:
        size = batch if alone else n * batch
        method = solvers.sgd(net, optimizer=optimizer, batch_size=size)
    local = 1 if method.name == "sgd" else LOCAL_STEPS
    sent = 0.0 if alone else cost.sent_bytes(method, n)
    return Trained(method, local, sent)


def main() -> None:
    """Choose rates, report accuracies, write the JSON and the figure."""
    given = _arguments()
    table = {n: e for n, e in entries(given.smoke).items() if re.search(given.only, n)}
    show = lambda seen: "{}  rate {:g} seed {}  valid {:.4f}  test {:.4f}".format(
        *seen["run"][:3], seen["valid_accuracy"][-1], seen.get("test_accuracy", float("nan"))
    )
    with Runs(given.runs, given.workers, lambda seen: True, show) as runs:
        tuning = lambda n: [(n, rate, given.tuning_seed, False) for rate in RATES[table[n].data]]
        wanted = [run for n in table for run in tuning(n)]
        tuned = _all(runs, table, wanted, given)
        valid = {run: seen["valid_accuracy"][-1] for run, seen in tuned.items()}
        rates = {name: max(tuning(name), key=valid.__getitem__)[1] for name in table}
        reported = [(n, rates[n], seed, True) for n in table for seed in given.seeds]
        seen = _all(runs, table, reported, given)
    report = {name: _line(entry, rates[name], seen) for name, entry in table.items()}
    for name in table:
        tried = {str(run[1]): valid[run] for run in tuning(name)}
        report[name]["valid_accuracy_by_rate"] = tried
    if not given.smoke:
        content = {"seeds": given.seeds, "results": report}
        print(record.write(given.write, "benchmarks.ist_tradeoff", content))
        if given.write in figures.FIGURES:
            figures.draw(given.write)


def _all(runs: Runs, table: dict[str, Entry], wanted: list[tuple], given: Any) -> dict[tuple, dict]:
    return runs.all(_train, {run: (table[run[0]], run) for run in wanted})


def _arguments() -> argparse.Namespace:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parse.add_argument
    add("--smoke", action="store_true", help="seconds instead of minutes, no result file")
    add(
        "--only",
        default="^(mnist|spoken-digits|digits),",
        help="regular expression: which lines of the table",
    )
    add("--write", default="ist_tradeoff", help="the name of the result file")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--tuning-seed", type=int, default=100)
    add("--workers", type=int, default=1, help="processes, each on a core of its own")
    add("--runs", type=Path, default=Path("run/ist_tradeoff.jsonl"), help="finished runs")
    given = parse.parse_args()
    if given.smoke:
        given.seeds, given.workers, given.runs = [0], 0, None
    return given


def _train(entry: Entry, run: tuple) -> dict:
    """Train once; held-out accuracy of the whole network after every epoch."""
    _, rate, seed, read_test = run
    smoke = entry.data == "digits"
    batch, epochs, size = SMOKE[1:] if smoke else SETTINGS[entry.data]
    speakers = entry.data == SPEAKERS
    name, split = ("spoken-digits", "speakers") if speakers else (entry.data, None)
    splits = data.load(name, size=size, flat=True, split=split)
    samples, inputs = splits.train.x.shape
    widths = [inputs, *[32 if smoke else WIDTH] * entry.depth, 10]
    trained = build(entry, widths, samples * epochs, batch, rate)
    result = jtssm.fit(
        trained.method,
        splits.train,
        epochs=epochs,
        key=jax.random.key(seed),
        progress=False,
        validation={"valid": splits.valid},
    )
    steps = np.asarray([line["step"] for line in result.history])
    seen = {
        "run": list(run),
        "diverged": result.divergence is not None,
        "valid_accuracy": [line["valid_accuracy"] for line in result.history] or [0.0],
        "loss": [line["loss"] for line in result.history],
        "steps": (steps * trained.steps).tolist(),
        "samples": np.cumsum([line["samples"] for line in result.history]).tolist(),
        "bytes": (steps * trained.bytes).tolist(),
        "seconds": _seconds(trained.method, result, splits.train),
    }
    if read_test:
        seen["test_accuracy"] = _accuracy(trained.method, result, splits.test)
    return seen


def _seconds(method: Any, result: Any, train: data.Split) -> list[float]:
    """Of training until each line of the history, the compilation of the first epoch left out."""
    seconds = [line["seconds"] for line in result.history]
    steps = np.diff([0.0, *(line["step"] for line in result.history)])
    later = np.sum(seconds[1:]) / max(np.sum(steps[1:]), 1)
    return np.cumsum([later * steps[0], *seconds[1:]]).tolist() if len(seconds) > 1 else seconds


def _accuracy(method: Any, result: Any, split: data.Split) -> float:
    if method.name == "ensemble":
        outputs = result.predict(split.x)
    else:
        outputs = jax.jit(method.network.apply)(result.params, split.x)
    return float(losses.cross_entropy().correct(outputs, split.y).mean())


def _line(entry: Entry, rate: float, seen: dict) -> dict:
    runs = [s for run, s in seen.items() if run[0] == entry.name]
    test = [s["test_accuracy"] for s in runs]
    print(f"{entry.name:48} rate {rate:g}  test {np.mean(test):.4f}")
    mean: Callable = lambda what: np.mean([s[what] for s in runs], axis=0).tolist()
    return {
        **entry._asdict(),
        "rate": rate,
        "test_accuracy": test,
        "diverged": sum(s["diverged"] for s in runs),
        "valid_accuracy": mean("valid_accuracy"),
        **{what: mean(what) for what in ("steps", "samples", "bytes", "seconds")},
    }


if __name__ == "__main__":
    main()
