"""What does a round of independent subnet training cost beside its matrix products, and what a deal?

One hidden layer of 4096, N = 2, batch 128, R = 20, plain SGD, one process: a round of both subnets (deal,
pull, 20 local steps each, push) against the same products alone, with the same shapes and as often, each
written to memory (x W, h V, h^T g, g V^T, x^T d). The deal (draw, pull, push) is what the round takes
beyond a round of the same subnets that are never dealt (`solvers.ensemble` of two networks of 2048), turn
by turn. Three rounds in a dispatch, as `jtssm.fit` runs them. With 4096 inputs (the paper's speech
features) and 784 (MNIST), without and with batch normalisation.

    python -m benchmarks.ist_speed [--repeats 15] [--smoke]

Four minutes on 2 cores. Last result: benchmarks/results/ist_speed.json, in the README's table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jtssm
from benchmarks import record
from jtssm import solvers

SUBNETS, LOCAL_STEPS, OUTPUTS = 2, 20, 10
ROUNDS = 3  # in a dispatch, as `jtssm.fit` runs them


def main() -> None:
    """Time every setting and write the JSON."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument("--repeats", type=int, default=15)
    parse.add_argument("--smoke", action="store_true", help="seconds, no result file")
    given = parse.parse_args()
    width, batch, inputs = (32, 8, (16,)) if given.smoke else (4096, 128, (4096, 784))
    report = {}
    for size in inputs:
        for normalisation in (None, "batch"):
            name = f"{size} inputs, {normalisation or 'no'} normalisation"
            report[name] = measure(size, width, batch, normalisation, given.repeats)
            ratio, share = report[name]["against_products"], report[name]["deal_share"]["median"]
            print(f"{name:36} round / products {ratio:.2f}   deal / round {share:.3f}", flush=True)
    if not given.smoke:
        settings = {"width": width, "batch": batch, "subnets": SUBNETS, "local_steps": LOCAL_STEPS}
        content = {"settings": settings, "repeats": given.repeats, "results": report}
        print(record.write("ist_speed", "benchmarks.ist_speed", content))


def measure(inputs: int, width: int, batch: int, normalisation: str | None, repeats: int) -> dict:
    """Seconds of a round, of its products and of its deal."""
    options = {"optimizer": optax.sgd(0.01), "local_steps": LOCAL_STEPS, "batch_size": batch}
    whole, narrow = (
        jtssm.mlp([inputs, w, OUTPUTS], normalisation=normalisation)
        for w in (width, width // SUBNETS)
    )
    method = solvers.ist(whole, subnets=SUBNETS, **options)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(*method.batch_shape, inputs)), jnp.float32)
    y = jnp.asarray(rng.integers(0, OUTPUTS, method.batch_shape), jnp.int32)
    runs = {
        "round": stepping(method, x, y),
        "undealt": stepping(solvers.ensemble(narrow, members=SUBNETS, **options), x, y),
        "products": products(x, width // SUBNETS),
    }
    seconds = record.alternating(runs, repeats)
    seconds = {name: [s / ROUNDS for s in times] for name, times in seconds.items()}
    report: dict[str, Any] = {name: record.spread(times) for name, times in seconds.items()}
    whole_, undealt, alone = (np.asarray(seconds[name]) for name in runs)
    report["against_products"] = float(np.median(whole_) / np.median(alone))
    report["deal_share"] = record.spread((1 - undealt / whole_).tolist())
    return report


def stepping(method: Any, x: Any, y: Any) -> Callable:
    """A function that runs the next rounds in one dispatch; the state is donated."""
    rounds = lambda state: lax.scan(lambda s, _: method.step(s, x, y), state, length=ROUNDS)
    step = jax.jit(rounds, donate_argnums=0)
    held = [method.init(jax.random.key(0), x.reshape(-1, x.shape[-1]), y.ravel())]

    def run() -> Any:
        held[0], info = step(held[0])
        return held[0], info

    return run


def products(x: Any, width: int) -> Callable:
    """A function that runs a round's products alone; every result is written."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    batch, inputs = x.shape[2:]
    shapes = ((inputs, width), (batch, width), (batch, OUTPUTS), (width, OUTPUTS))
    own = [tuple(draw(*shape) for shape in shapes) for _ in range(SUBNETS)]

    def alone(W, h, g, V, x):
        def step(_, x):
            return (x @ W, h @ V, h.T @ g, g @ V.T, x.T @ h), None

        blank = tuple(
            jnp.zeros(shape, x.dtype) for shape in (h.shape, g.shape, V.shape, h.shape, W.shape)
        )
        return lax.scan(lambda carry, _: lax.scan(step, carry, x), blank, length=ROUNDS)[0]

    run = jax.jit(lambda own, x: [alone(*o, x[:, w]) for w, o in enumerate(own)])
    return lambda: run(own, x)


if __name__ == "__main__":
    main()
