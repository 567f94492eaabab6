"""What one of the two hosts of `benchmarks.hosts` runs, told by the process that started it.

    python -m benchmarks.host_process CONNECTION AT PROCESSES ID WHAT [ARGUMENTS]

CONNECTION is the number of an open connection. When all is compiled it sends what it found, then for
every number of steps that it receives the seconds that each of them took; it ends with the other side.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from benchmarks.host_cases import NETWORKS, SMOKE
from jtssm import sharding
from jtssm.planning.trials import drawn_samples
from jtssm.sharding.cost import calibration
from jtssm.sharding.receiving import let_compute_first

SUMS = 16  # all-reduces in a dispatch
Step = Callable[[], Any]


def trained(network: str, name: str) -> Step:
    """A step of a case of `host_cases`, compiled and in its steady state."""
    found = (NETWORKS | SMOKE)[network]
    method, case = found.method(name), found.cases[name]
    flat, given = drawn_samples(method, found.batch)
    if case.mesh is None:
        given = jax.tree.map(jnp.asarray, given)
    else:
        mesh = sharding.make_mesh(*case.mesh)
        method = sharding.place(method, mesh)
        lies = sharding.batch_sharding(method)
        assert lies is not None  # of a placed method
        given = jax.tree.map(lambda a: sharding.put(a, mesh, lies.spec), given)
    state, step = method.init(jax.random.key(0), *flat), jax.jit(method.step, donate_argnums=0)

    def run() -> Any:
        nonlocal state
        state, info = step(state, *given)
        return state, info

    timed(run, 1 + 2 * case.options.get("subnets", 0))  # until every subnetwork has seen labels
    return run


def sums(numbers: str) -> Step:
    """`SUMS` all-reduces of so many numbers over all devices."""
    run = calibration.all_reduces(jax.devices(), int(numbers))
    jax.block_until_ready(run(1))
    return lambda: run(SUMS)


def messages(kind: str, numbers: str) -> Step:
    """`SUMS` messages of a kind, each of so many numbers that a device sends to the only other one."""
    mesh, size = sharding.make_mesh(2), int(numbers)
    if kind != HASTY:
        let_compute_first()
    send = MESSAGES[kind]
    body = lambda _, x: lax.pcast(y, "subnet", to="varying") if _same(y := send(x)) else y
    loop = lambda x: lax.fori_loop(0, SUMS, body, x)
    spec = PartitionSpec("subnet")
    run = jax.jit(jax.shard_map(loop, mesh=mesh, in_specs=spec, out_specs=spec))
    x = sharding.put(np.zeros(2 * size, np.float32), mesh, spec)
    jax.block_until_ready(run(x))
    return lambda: run(x)


def _same(x: jax.Array) -> bool:
    return not jax.typeof(x).manual_axis_type.varying


def _scattered(x: jax.Array) -> jax.Array:
    return lax.psum_scatter(jnp.broadcast_to(x, (2, *x.shape)), "subnet")


def _turned(x: jax.Array) -> jax.Array:
    both = jnp.broadcast_to(x, (2, *x.shape))
    return lax.all_to_all(both, "subnet", 0, 0).sum(axis=0)


def _products(x: jax.Array) -> jax.Array:
    """A zero that some 20 ms of products of x come to, which no compiler foresees."""
    a = jnp.full((512, 512), 1 / 512) + x.reshape(-1)[0]  # its square is itself
    for _ in range(2):
        a = a @ a
    least = a.min()
    return least - least


HASTY = "all-reduce, threads as they are"
MESSAGES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "all-reduce": lambda x: lax.psum(x, "subnet"),
    HASTY: lambda x: lax.psum(x, "subnet"),
    "reduce-scatter": _scattered,
    "all-to-all": _turned,
    "products": lambda x: x + _products(x),
    "products, then all-reduce": lambda x: lax.psum(x + _products(x), "subnet"),
    "products beside all-reduce": lambda x: lax.psum(x, "subnet") + _products(x),
    "permutes": lambda x: x + lax.ppermute(x, "subnet", [(0, 1), (1, 0)]),
}


def calibrated() -> dict[str, Any]:
    """The device's fields of a machine."""
    return asdict(sharding.calibrate())


PREPARED: dict[str, Callable[..., Step]] = {"trained": trained, "sums": sums, "messages": messages}


def timed(run: Step, steps: int) -> list[float]:
    """Seconds of each step, waited for one by one."""
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return seconds


def main(connection: str, at: str, processes: str, this: str, what: str, *given: str) -> None:
    """Prepare, then run as many steps as are asked for until nobody asks any more."""
    other = Connection(int(connection))
    if int(processes) > 1:
        sharding.connect(at, int(processes), int(this))
    if what == "calibrated":
        other.send(calibrated())
        return
    run = PREPARED[what](*given)
    other.send(None)
    with suppress(EOFError):
        while True:
            other.send(timed(run, other.recv()))


if __name__ == "__main__":
    main(*sys.argv[1:])
