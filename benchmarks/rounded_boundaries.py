"""What do 8- and 16-bit boundaries cost in accuracy? gsADMM with rounded f and q - f beside floats.

Two networks, streaming, cut into n = 2 and 3 subnetworks, each trained with floats, 16 and 8 bits across
its boundaries, from the same weights on the same minibatches: a perceptron of five hidden layers of 256
on MNIST 14 x 14 (3 epochs of batch 110; accuracy on the held-out last 5 000 training images, the test
images are not read), and the byte-level transformer of `examples.language_model` (one pass over its
text, batch 32; bits a byte of the text's last 1 000 rows). One sweep, with which gsAM is the same
method; whole minibatches (M = 1); Adam, a tenth of warm-up, then a cosine to zero, the same peak for all
of a network. Bytes are what crosses all boundaries in a step, both ways, by `Method.moves`.

    JTSSM_DATA=FOLDER python -m benchmarks.rounded_boundaries [--workers 2] [--smoke]

About seven minutes on 2 cores. Last result: benchmarks/results/rounded_boundaries.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from itertools import product
from math import prod

import jax
import numpy as np
import optax

import jtssm
from benchmarks import record
from benchmarks.running import Runs
from examples import language_model
from jtssm import data, nn, solvers
from jtssm.protocol.declared import WORD

GRIDS = {"floats": None, "16 bits": 16, "8 bits": 8}
SEEDS = (0, 1, 2)
RATES = {"MNIST": 2e-3, "language model": 3e-3}
BATCHES = {"MNIST": 110, "language model": 32}
EPOCHS = {"MNIST": 3, "language model": 1}
HELD_OUT = 1000  # rows of the text


def main() -> None:
    """Train every case, show the means, write the JSON."""
    given = _arguments()
    seeds = SEEDS[:1] if given.smoke else SEEDS
    wanted = {
        f"{task}, n = {n}, {grid}": (task, n, grid)
        for task, n, grid in product(TASKS, given.subnets, given.grids)
    }
    with Runs(None, given.workers, lambda seen: True, _shown) as runs:
        seen = runs.all(_train, {run: (run, seeds, given.smoke) for run in wanted.values()})
    results = {name: seen[run] for name, run in wanted.items()}
    for name, line in results.items():
        print(f"{name:32} held out {line['mean']:.4f}  {line['bytes']} bytes a step")
    if not given.smoke:
        content = {"seeds": seeds, "rates": RATES, "epochs": EPOCHS, "results": results}
        print(record.write("rounded_boundaries", "benchmarks.rounded_boundaries", content))


def _arguments() -> argparse.Namespace:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument("--smoke", action="store_true", help="seconds, no result file")
    parse.add_argument("--workers", type=int, default=1, help="processes, each on a core")
    parse.add_argument("--subnets", type=int, nargs="+", default=[2, 3])
    parse.add_argument("--grids", nargs="+", default=list(GRIDS), help=f"of {', '.join(GRIDS)}")
    given = parse.parse_args()
    if given.smoke:
        given.workers = 0
    return given


def _shown(seen: dict) -> str:
    task, n, grid = seen["run"]
    return f"{task:16} n = {n} {grid:8} held out {', '.join(f'{a:.4f}' for a in seen['held_out'])}"


def _train(run: tuple[str, int, str], seeds: Sequence[int], smoke: bool) -> dict:
    """Train once a seed; accuracy or bits a byte of the held-out samples, and bytes a step."""
    task, n, grid = run
    net, train, held = TASKS[task](smoke)
    batch, epochs = BATCHES[task], 1 if smoke else EPOCHS[task]
    steps = len(train[0]) // batch * epochs
    rate = optax.warmup_cosine_decay_schedule(0.0, RATES[task], steps // 10, steps)
    optimizer = optax.adam(rate)
    ways = {"optimizer": optimizer, "batch_size": batch, "microbatches": 1}
    method = solvers.gsadmm(net, subnets=n, grid=GRIDS[grid], **ways)
    found = []
    for seed in seeds:
        key = jax.random.key(seed)
        result = jtssm.fit(method, train, epochs=epochs, key=key, progress=False)
        scores = jtssm.evaluate(method, result.state, held)
        found.append(scores["accuracy"] if task == "MNIST" else scores["loss"] / math.log(2))
    crossing = [m for m in method.moves(batch) if m.axis == "subnet"]
    size = sum(prod(m.shape) * (m.itemsize or WORD) * m.times for m in crossing)
    return {"run": run, "held_out": found, "mean": float(np.mean(found)), "bytes": size}


Samples = tuple[np.ndarray, np.ndarray]


def _mnist(smoke: bool) -> tuple[nn.Network, Samples, Samples]:
    splits = data.load("digits", flat=True) if smoke else data.load("mnist", size=14, flat=True)
    inputs, (width, hidden) = splits.train.x.shape[1], (16, 3) if smoke else (256, 5)
    net = jtssm.mlp([inputs, *[width] * hidden, 10])
    return net, (splits.train.x, splits.train.y), (splits.valid.x, splits.valid.y)


def _language_model(smoke: bool) -> tuple[nn.Network, Samples, Samples]:
    x, y = language_model.samples()
    train, held = slice(0, 640 if smoke else len(x) - HELD_OUT), slice(-HELD_OUT, None)
    return language_model.network(), (x[train], y[train]), (x[held], y[held])


TASKS: dict[str, Callable[[bool], tuple[nn.Network, Samples, Samples]]] = {
    "MNIST": _mnist,
    "language model": _language_model,
}


if __name__ == "__main__":
    main()
