"""Do channels that are dealt keep accuracy? IST on a small convolutional and a residual network.

Colour images 16 x 16 whose class is the direction of their stripes (`jtssm.data.synthetic.gratings`,
noise 1), 4 000 of them, eight passes in batches of 32; a network of two convolutions (16 and 32
channels) and one of three residual blocks (16 channels within, 64 outside), batch normalisation, plain
SGD along a cosine, two workers, R = 8. Beside IST local SGD, plain training and one network with half the
channels (of the residual one: within its blocks). Every line takes the same samples; its peak rate is
the better of two on 1 000 held-out images, with a seed apart from the three reported ones, whose 1 000
test images are read once. What a worker sends in a round is counted by the formula.

    python -m benchmarks.ist_images --workers 2 [--only PATTERN] [--smoke]

A quarter of an hour on 2 cores. Finished runs are kept in --runs. Last result:
benchmarks/results/ist_images.json, in docs/methods/ist.md.
"""

from __future__ import annotations

import re
from statistics import mean
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jtssm
from benchmarks import record
from benchmarks.running import Runs, arguments, chosen
from benchmarks.time_to_accuracy import looks
from benchmarks.users_networks import SEEDS, TUNING_SEED
from jtssm import nn, solvers
from jtssm.data import synthetic
from jtssm.sharding import cost

SIZE, BATCH, ROUND, PASSES, RATES = 16, 32, 8, 8, (0.1, 0.5)
TRAINED, HELD_OUT = 4000, 1000
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain SGD": ("sgd", {}),
    "half the channels": ("sgd", {}),
    "IST": ("ist", {"subnets": 2, "local_steps": ROUND}),
    "local SGD": ("local_sgd", {"workers": 2, "local_steps": ROUND}),
}


def convolutional(inner: int) -> nn.Network:
    """Two convolutions and a hidden layer."""
    ways: dict[str, Any] = {"channels": (inner, 2 * inner), "hidden": (4 * inner,)}
    return nn.convnet((SIZE, SIZE, 3), 10, normalisation="batch", **ways)


def residual(inner: int) -> nn.Network:
    """Three bottleneck blocks, of which only what lies within is `inner`."""
    relu, wide = jax.nn.relu, nn.convolution(64, 1, 1, "SAME", None, "batch")
    first = nn.convolution(16, 3, 2, "SAME", relu, "batch")
    path = [
        nn.convolution(inner, 1, 1, "SAME", relu, "batch"),
        nn.convolution(inner, 3, 1, "SAME", relu, "batch"),
        nn.convolution(64, 1, 1, "SAME", None, "batch"),
    ]
    blocks = [nn.Residual(f"block {i}", tuple(path), (), relu) for i in range(3)]
    return nn.sequence([first, wide, *blocks, nn.mean_pool(8), nn.dense(10)], (SIZE, SIZE, 3))


NETWORKS = {"convolutional": convolutional, "residual": residual}


def method_of(network: str, name: str, rate: float, samples: int, channels: int) -> jtssm.Method:
    """What a line trains, on so many samples in all."""
    kind, options = METHODS[name]
    workers = 1 if kind == "sgd" else 2
    net = NETWORKS[network](channels // (2 if name == "half the channels" else 1))
    descent = optax.sgd(optax.cosine_decay_schedule(rate, samples // (BATCH * workers)))
    return solvers.METHODS[kind](net, **options, optimizer=descent, batch_size=BATCH)


def train(run: tuple, smoke: bool) -> dict[str, Any]:
    """Train once; accuracy at the end.

    run: (network, method, rate, seed, whether test images are read).
    """
    network, name, rate, seed, read_test = run
    few, passes, channels = (640, 1, 4) if smoke else (TRAINED, PASSES, 16)
    x, y = synthetic.gratings(0, few + 2 * HELD_OUT, size=SIZE, noise=1.0)
    method = method_of(network, name, rate, passes * few, channels)

    def right(params: Any, at: slice) -> jax.Array:
        scores = method.network.apply(params, jnp.asarray(x[at]))
        return (scores.argmax(axis=1) == jnp.asarray(y[at])).mean()

    samples = passes * few
    nothing = lambda params: jnp.zeros(())
    _, params = looks(method, (x[:few], y[:few]), seed, samples, samples, nothing)
    parts = {"valid": slice(few, few + HELD_OUT), "test": slice(few + HELD_OUT, None)}
    wanted = list(parts)[: 1 + read_test]
    return {"run": list(run)} | {n: float(right(params, parts[n])) for n in wanted}


def main() -> None:
    """Choose rates, read the test images, show and write."""
    given = _arguments()
    lines = [line for line in given.lines if re.search(given.only, ", ".join(line))]
    with Runs(given.runs, given.workers, lambda seen: True, _shown) as runs:
        every = lambda wanted: runs.all(train, {run: (run, given.smoke) for run in wanted})
        found = chosen(every, lines, given.rates, given.seeds, TUNING_SEED, "valid", max)
    report = {}
    for (network, name), line in found.items():
        tests = [run["test"] for run in line.runs]
        method = method_of(network, name, 0.1, TRAINED, 16)
        sent = cost.sent_bytes(method, 2) if method.name != "sgd" else None
        report[f"{network}, {name}"] = {
            "rate": line.rate,
            "valid_by_rate": line.by_rate,
            "test": tests,
            "bytes_a_round": sent,
        }
        print(f"{network}, {name}  rate {line.rate:g}  test {mean(tests):.4f} of {tests}  {sent}")
    if not given.smoke:
        content = {"seeds": given.seeds, "tuning_seed": TUNING_SEED, "results": report}
        print(record.write("ist_images", "benchmarks.ist_images", content))


def _shown(seen: dict) -> str:
    network, name, rate, seed, _ = seen["run"]
    return f"{network}, {name}, rate {rate:g}, seed {seed}  held-out {seen['valid']:.4f}"


def _arguments() -> Any:
    about = __doc__.splitlines()[0]
    parser = arguments(about, "few images, one rate and seed", "run/ist_images.jsonl")
    parser.add_argument("--only", default="", help="regular expression: which lines")
    given = parser.parse_args()
    given.lines = [(network, name) for network in NETWORKS for name in METHODS]
    given.rates, given.seeds = RATES, SEEDS
    if given.smoke:
        given.lines, given.rates, given.seeds = [("convolutional", "IST")], RATES[:1], (0,)
        given.runs, given.workers = None, 0
    return given


if __name__ == "__main__":
    main()
