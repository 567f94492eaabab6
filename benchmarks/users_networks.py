"""Do networks of flax modules train when they are cut? A ResNet-like one and a transformer, n = 2, 3, 4.

The paper's ResNet-like network has 24 residual blocks; here each is two 3 x 3 convolutions of 8 channels
on 7 x 7 pixels with `nnx.BatchNorm` (flax nnx modules, `jtssm.nn.from_nnx`). The transformer
classifier reads an image as rows: 6 encoder blocks of width 64 with 4 heads (flax linen, `from_linen`).
MNIST 14 x 14, the first 5 000 training images, batch 100, 8 epochs (400 steps), a fifth of the steps of
warm-up, then a cosine to zero. End to end (`solvers.sgd`) with Adam and with NAdam; cut, gsADMM with
NAdam, M = 10 or 20 microbatches, all else by default. Every line has the same budget: its peak rate is
chosen out of the same three on the held-out last 5 000 training images, with a seed apart from the
reported ones. Then three seeds, five of n = 4: does one collapse? Accuracies are those of the user's own
modules, without jtssm; test images are read once a run. --epochs 32 --rates 8e-3: 1 600 steps at one rate
for all, whose result has its own file.

    JTSSM_DATA=FOLDER python -m benchmarks.users_networks --workers 2 [--only PATTERN] [--smoke]
                             [--epochs 8] [--rates 4e-3 8e-3 1.6e-2]

PATTERN: of the lines to run, e.g. "transformer, (adam|nadam, n = [14])".

About an hour on 2 cores. Finished runs are kept in --runs, so an interrupted benchmark goes on where it
was. Last result: benchmarks/results/users_networks.json, in the README; of 1 600 steps
users_networks_long.json, in docs/how-to/own-network.md.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

import jtssm
from benchmarks import record
from benchmarks.running import Runs, arguments, chosen
from jtssm import data, nn, solvers
from jtssm.train import batches

TRAINED, BATCH, EPOCHS = 5_000, 100, 8
SEEDS, TUNING_SEED = (0, 1, 2), 100
FINEST, MORE_SEEDS = 4, (3, 4)  # does one of five seeds collapse?


class Line(NamedTuple):
    """One line of the table."""

    network: str
    optimizer: str
    subnets: int
    microbatches: int = 1

    def __str__(self) -> str:
        parts = f", M = {self.microbatches}" if self.subnets > 1 else ""
        return f"{self.network}, {self.optimizer}, n = {self.subnets}{parts}"


class Block(nnx.Module):
    """relu(x + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        convolution = lambda: nnx.Conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.first, self.second = convolution(), convolution()
        self.norms = nnx.List([nnx.BatchNorm(channels, rngs=rngs) for _ in range(2)])

    def __call__(self, x: Any) -> Any:
        h = nnx.relu(self.norms[0](self.first(x)))
        return nnx.relu(x + self.norms[1](self.second(h)))


class Pooled(nnx.Module):
    """A product of the mean pixel."""

    def __init__(self, channels: int, classes: int, rngs: nnx.Rngs):
        self.out = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.out(x.mean(axis=(1, 2)))


class Embedded(linen.Module):
    """Rows of an image as tokens, with what tells their places."""

    width: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.Dense(self.width)(x.reshape(*x.shape[:2], -1))
        return x + self.param("places", linen.initializers.normal(0.02), x.shape[1:])[None]


class Encoder(linen.Module):
    """A transformer's block, normalised first."""

    heads: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        width = x.shape[-1]
        x = x + linen.MultiHeadDotProductAttention(self.heads)(linen.LayerNorm()(x))
        return x + linen.Dense(width)(linen.gelu(linen.Dense(2 * width)(linen.LayerNorm()(x))))


class Classes(linen.Module):
    """A product of the mean token."""

    classes: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(self.classes)(linen.LayerNorm()(x).mean(axis=1))


def residual(shape: tuple[int, ...], blocks: int, channels: int) -> nn.Network:
    """The ResNet-like network."""
    rngs = nnx.Rngs(0)
    first = nnx.Conv(shape[-1], channels, (3, 3), strides=2, rngs=rngs)
    inner = [Block(channels, rngs) for _ in range(blocks)]
    modules = [first, nnx.relu, *inner, Pooled(channels, 10, rngs)]
    return nn.from_nnx(modules, jnp.zeros((1, *shape)))


def transformer(shape: tuple[int, ...], blocks: int, width: int) -> nn.Network:
    """The transformer classifier."""
    modules = [Embedded(width), *(Encoder(4) for _ in range(blocks)), Classes(10)]
    return nn.from_linen(modules, jnp.zeros((1, *shape)))


def alone(modules: list[Any], x: Any) -> Any:
    """Outputs of trained modules as their libraries run them."""
    for module in modules:
        x = module[0].apply(module[1], x) if isinstance(module, tuple) else module(x)
    return x


def optimizer(name: str, rate: float, steps: int, warmup: int = 5) -> optax.GradientTransformation:
    """Warm-up, a `warmup`-th of the steps, and a cosine; the peak rate is in its state: one program."""
    share = optax.warmup_cosine_decay_schedule(0.0, 1.0, max(1, steps // warmup), steps)
    peak = optax.inject_hyperparams(optax.scale)(step_size=-rate)
    adam = optax.scale_by_adam(nesterov=name == "nadam")
    return optax.chain(adam, optax.scale_by_schedule(share), peak)


def train(run: tuple, epochs: int, smoke: bool) -> dict[str, Any]:
    """Train once; accuracies of the modules alone.

    run: (network, optimizer, n, M, rate, seed, whether test images are read).
    """
    (line, rate, seed, read_test) = Line(*run[:4]), *run[4:]
    if not smoke:
        jax.config.update("jax_compilation_cache_dir", str(Path("run/compiled").absolute()))
        # XLA runs the convolutions of a scan on a CPU three times as slowly as those outside
        batches.CHUNK = 1
    splits = data.load("digits") if smoke else data.load("mnist", size=14)
    x, y = (a[: 400 if smoke else TRAINED] for a in splits.train)
    net = NETWORKS[line.network](x.shape[1:], *(SMALL if smoke else SIZES)[line.network])
    shared: dict[str, Any] = {
        "optimizer": optimizer(line.optimizer, rate, epochs * (len(x) // BATCH)),
        "batch_size": BATCH,
    }
    method = (
        solvers.gsadmm(net, subnets=line.subnets, microbatches=line.microbatches, **shared)
        if line.subnets > 1
        else solvers.sgd(net, **shared)
    )
    result = jtssm.fit(
        method,
        (x, y),
        epochs=epochs,
        key=jax.random.key(seed),
        progress=False,
        evaluate_every=epochs,
    )
    modules = result.module()
    seen = {
        "run": list(run),
        "epochs": epochs,
        "cuts": list(method.program.stages.starts[1:-1]),
        "diverged": result.divergence is not None,
        "valid_accuracy": accuracy(modules, splits.valid),
    }
    return seen | ({"test_accuracy": accuracy(modules, splits.test)} if read_test else {})


def more_of_the_finest(seeds: Sequence[int], finest: int) -> Callable[[Any], tuple[int, ...]]:
    """A line -> its seeds: those, and where its n is the finest `MORE_SEEDS`."""
    return lambda line: (*seeds, *(MORE_SEEDS if line.subnets == finest else ()))


def accuracy(modules: list[Any], split: Any) -> float:
    """Of the user's own modules."""
    for module in modules:
        if isinstance(module, nnx.Module):
            module.eval()
    run = jax.jit(lambda x: alone(modules, x))
    pieces = np.array_split(split.x, max(1, len(split.x) // 500))
    found = np.concatenate([np.asarray(run(a)) for a in pieces])
    return float((found.argmax(axis=1) == split.y).mean())


def main() -> None:
    """Choose rates, read the test images, show and write."""
    given = _arguments()
    lines = [line for line in given.lines if re.search(given.only, str(line))]
    fits = lambda seen: seen["epochs"] == given.epochs
    with Runs(given.runs, given.workers, fits, _shown) as runs:
        every = lambda wanted: runs.all(
            train, {run: (run, given.epochs, given.smoke) for run in wanted}
        )
        seeds = more_of_the_finest(given.seeds, FINEST)
        found = chosen(every, lines, given.rates, seeds, TUNING_SEED, "valid_accuracy", max)
    report = {}
    for name, line in ((str(line), found[line]) for line in lines):
        report[name] = {
            "rate": line.rate,
            "cuts": line.runs[0]["cuts"],
            "diverged": any(one["diverged"] for one in line.runs),
            "valid_accuracy": [one["valid_accuracy"] for one in line.runs],
            "test_accuracy": [one["test_accuracy"] for one in line.runs],
            "valid_accuracy_by_rate": line.by_rate,
        }
        tests = report[name]["test_accuracy"]
        print(f"{name}  rate {line.rate:g}  test {np.mean(tests):.4f} of {tests}")
    if not given.smoke:
        content = {"seeds": given.seeds, "more_seeds_of_the_finest": MORE_SEEDS}
        content |= {"tuning_seed": TUNING_SEED, "epochs": given.epochs, "results": report}
        name = "users_networks" if given.epochs == EPOCHS else "users_networks_long"
        print(record.write(name, "benchmarks.users_networks", content))


def _shown(seen: dict) -> str:
    *line, rate, seed, _ = seen["run"]
    return f"{Line(*line)}, rate {rate:g}, seed {seed}  held-out {seen['valid_accuracy']:.4f}"


def _arguments() -> argparse.Namespace:
    about = __doc__.splitlines()[0]
    parser = arguments(about, "tiny networks on the embedded digits", "run/users_networks.jsonl")
    parser.add_argument("--only", default="", help="regular expression: which lines of the table")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--rates", type=float, nargs="+", default=[4e-3, 8e-3, 1.6e-2])
    given = parser.parse_args()
    cut = [("nadam", n, M) for n, M in ((2, 4), (2, 10), (3, 10), (4, 10), (3, 20), (4, 20))]
    ways = [("adam", 1), ("nadam", 1), *cut]
    given.seeds = SEEDS
    if given.smoke:
        ways, given.rates, given.epochs, given.seeds = (
            [("nadam", 1), ("nadam", 2, 10)],
            (1e-3,),
            2,
            (0,),
        )
        given.runs, given.workers = None, 0
    given.lines = [Line(network, *way) for network in NETWORKS for way in ways]
    return given


NETWORKS = {"transformer": transformer, "residual": residual}
SIZES = {"transformer": (6, 64), "residual": (24, 8)}  # blocks, width or channels
SMALL = {"transformer": (1, 8), "residual": (1, 4)}


if __name__ == "__main__":
    main()
