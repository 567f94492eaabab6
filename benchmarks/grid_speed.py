"""What does a step on the grid cost on one device, beside plain jax and optax on the same network?

The step of `solvers.sgd`, unplaced and placed on a mesh of one device, against the same step written by
hand (jax.value_and_grad of the mean loss, optimizer.update, optax.apply_updates; accuracy too), turn by
turn, states donated. A perceptron, a small convolutional network and, on a GPU, AlexNet at its full size.

    python -m benchmarks.grid_speed [--smoke]

Five minutes on 2 cores. Last result: benchmarks/results/grid_speed.json, in the README.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jtssm
from benchmarks import record
from jtssm import nn, sharding, solvers

STEPS = 4  # in a dispatch


def cases(smoke: bool) -> list[tuple[str, nn.Network, int, int]]:
    """(name, network, batch, repeats: the shorter a step, the more)."""
    if smoke:
        return [("convnet", nn.convnet((8, 8, 1), 10, channels=(4,), hidden=(8,)), 8, 2)]
    found = [
        ("mlp 784-512-512-512-10, batch 128", jtssm.mlp([784, 512, 512, 512, 10]), 128, 200),
        ("convnet 28 x 28, batch 64", nn.convnet((28, 28, 1), 10), 64, 60),
        ("AlexNet / 4, batch 16", nn.alexnet(10, divide=4), 16, 10),
    ]
    if jax.default_backend() == "gpu":
        found.append(("AlexNet, batch 256", nn.alexnet(), 256, 20))
    return found


def main() -> None:
    """Time every network and write the JSON."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument("--smoke", action="store_true", help="seconds, no result file")
    given = parse.parse_args()
    report = {}
    for name, net, batch, repeats in cases(given.smoke):
        report[name] = found = {"repeats": repeats} | measure(net, batch, repeats)
        ratios = "  ".join(f"{k} {found['ratio'][k]:.3f}" for k in found["ratio"])
        plain = found["seconds"]["plain"]["median"] / STEPS
        print(f"{name:36} plain {plain * 1e3:8.2f} ms a step   ratio: {ratios}", flush=True)
    if not given.smoke:
        content = {"steps_a_dispatch": STEPS, "results": report}
        print(record.write("grid_speed", "benchmarks.grid_speed", content))


def measure(net: nn.Network, batch: int, repeats: int) -> dict[str, Any]:
    """Seconds of some steps in a dispatch, and the median ratio to plain ones taken in the same turn."""
    optimizer = optax.sgd(0.01, momentum=0.9)
    method = solvers.sgd(net, optimizer=optimizer, batch_size=batch)
    placed = sharding.place(method, sharding.make_mesh())
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, *net.shapes[0])), jnp.float32)
    y = jnp.asarray(rng.integers(0, net.shapes[-1][0], batch), jnp.int32)
    key, shown = jax.random.key(0), (x, y)
    params = net.init(key)
    runs = {
        "plain": repeated(plain(net, optimizer), (params, optimizer.init(params)), x, y),
        "sgd": repeated(method.step, method.init(key, *shown), x, y),
        "placed": repeated(placed.step, placed.init(key, *shown), x, y),
    }
    seconds = record.alternating(runs, repeats)
    ratio = {
        name: median(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True))
        for name in ("sgd", "placed")
    }
    return {"seconds": {k: record.spread(v) for k, v in seconds.items()}, "ratio": ratio}


def plain(net: nn.Network, optimizer: Any) -> Callable:
    """A training step as a user of jax and optax writes it."""

    def mean_loss(params, x, y):
        outputs = net.apply(params, x)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(outputs, y)
        return losses.mean(), (outputs.argmax(axis=1) == y).mean()

    def step(state, x, y):
        params, opt_state = state
        info, gradient = jax.value_and_grad(mean_loss, has_aux=True)(params, x, y)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), info

    return step


def repeated(step: Callable, state: Any, x: Any, y: Any) -> Callable:
    """A function that runs some steps on, from the state it left, which it donates."""
    held = [jax.tree.map(jnp.copy, state)]
    body = lambda state, _: step(state, x, y)
    many = jax.jit(lambda state: lax.scan(body, state, None, STEPS), donate_argnums=0)

    def run() -> Any:
        held[0], info = many(held[0])
        return info

    return run


if __name__ == "__main__":
    main()
