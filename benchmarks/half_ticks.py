"""Would half ticks be worth it: forward and backward in turns, for half the delay?

Two subnetworks of equal work, a microbatch of b / M samples a tick, nothing runs forward twice. On one
core the seconds of each subnetwork's pass forward F and of its gradients B are measured, and from them
those of a minibatch of b samples, messages left out:

    ticks              M (F + B): both do both in every tick, and wait for the slower
    half ticks         M (max(F of one, B of the other) + the same the other way round): gradients of the
                       first subnetwork are 1 tick old in place of 2
    twice as many      ticks of half as many samples, 2 M of them: gradients as old as in half ticks

Messages: ticks and half ticks send the same bytes, half ticks in twice as many meetings where there are
more than two subnetworks; twice as many microbatches send them in twice as many.

    python -m benchmarks.half_ticks [--seconds 1] [--smoke]

Two minutes on one core. Last result: benchmarks/results/half_ticks.json, in docs/methods/tssm.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record
from benchmarks.host_cases import NETWORKS
from jtssm import nn
from jtssm.arrays import Array, Tree
from jtssm.nn.network import run_layers
from jtssm.nn.ops import PLAIN

MICROBATCHES = (1, 2, 4, 8)
MEASURED = ("transformer", "classifier")


def pieces_of(net: nn.Network, rows: int) -> list[tuple[Callable, list[Tree], Array]]:
    """Of both subnetworks: layers run on parameters and inputs, and random ones of these."""
    starts = nn.cut(net, 2)
    params, rng, found = net.init(jax.random.key(0)), np.random.default_rng(0), []
    for first, after in pairwise(starts):
        layers = net.layers[first:after]

        def run(params: list[Tree], x: Array, layers: Sequence[nn.Layer] = layers) -> Array:
            return run_layers(layers, params, x, lambda i: PLAIN)

        shape = (rows, *net.boundaries[first].shape)
        found.append((run, params[first:after], jnp.asarray(rng.normal(size=shape), jnp.float32)))
    return found


def passes(run: Callable, params: list[Tree], x: Array, first: bool, budget: float) -> list[float]:
    """Seconds of a pass forward that leaves what gradients need, and of these; first: none of x."""

    def linearised(params: list[Tree], x: Array) -> tuple[Array, Callable]:
        return jax.vjp(lambda p: run(p, x), params) if first else jax.vjp(run, params, x)

    forward, back = jax.jit(linearised), jax.jit(lambda pull, g: pull(g))
    out, pull = forward(params, x)
    return [seconds(forward, budget, params, x), seconds(back, budget, pull, jnp.ones_like(out))]


def seconds(run: Callable, budget: float, *given: Any) -> float:
    """The median of a call, as often as the budget allows."""
    jax.block_until_ready(run(*given))
    found, end = [], time.perf_counter() + budget
    while len(found) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(run(*given))
        found.append(time.perf_counter() - start)
    return median(found)


def of_ticks(both: Sequence[Sequence[float]]) -> float:
    """Of a tick in which both run forward and backward."""
    return max(forward + back for forward, back in both)


def of_half_ticks(both: Sequence[Sequence[float]]) -> float:
    """Of a tick in two halves, in which one runs forward and the other backward."""
    (f1, b1), (f2, b2) = both
    return max(f1, b2) + max(b1, f2)


def measured(name: str, parts: Sequence[int], budget: float) -> list[dict[str, Any]]:
    """A row for each number of microbatches."""
    net, batch = NETWORKS[name].network(), NETWORKS[name].batch
    known = {
        m: [passes(*each, l == 0, budget) for l, each in enumerate(pieces_of(net, batch // m))]
        for m in (*parts, 2 * parts[-1])
    }
    return [
        {
            "network": name,
            "microbatches": m,
            "forward_and_back": known[m],
            "ticks": m * of_ticks(known[m]),
            "half_ticks": m * of_half_ticks(known[m]),
            "twice_as_many": 2 * m * of_ticks(known[2 * m]),
        }
        for m in parts
    ]


def main() -> None:
    """Measure, print and write."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parse.add_argument("--smoke", action="store_true", help="one network, M = 8, no result file")
    given = parse.parse_args()
    names, parts = (MEASURED[1:], (8,)) if given.smoke else (MEASURED, MICROBATCHES)
    rows = [row for name in names for row in measured(name, parts, given.seconds)]
    for row in rows:
        told = "  ".join(
            f"{k} {1e3 * row[k]:.1f}" for k in ("ticks", "half_ticks", "twice_as_many")
        )
        print(f"{row['network']}  M = {row['microbatches']}  {told} ms", flush=True)
    if not given.smoke:
        print(record.write("half_ticks", "benchmarks.half_ticks", {"rows": rows}))


if __name__ == "__main__":
    main()
