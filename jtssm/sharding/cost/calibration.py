"""The devices at hand, measured: products, memory, the start of a kernel, messages.

Every number comes from a loop inside one compiled program, so that starting the program weighs nothing;
it is the median of a few such runs. float32 in jax's default precision, as the cost model counts.

    rates    x <- x W, x of [m, side], W of [side, side]: m is the smallest dimension. The best: `flops`.
    memory   x <- x / 2 + 1 over an array larger than caches: read once and written once.
    kernel   a chain of products of [8, 8], each too small to take time itself.
    activation  x <- tanh(x) + 1 / 2, over an array such as lies between two products.
    links    the all-reduce of a small and of a large array over all devices, taken as a ring's: two
             equations for `latency` and `link`.

The rate of a small m includes the time of reading W: weights that stay in a cache do better.
Products and memory are measured on the first device alone. Virtual devices of a CPU share one host, whose
numbers these are then (`shared`); messages between them are copies, and wait for threads.
"""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jtssm import checks
from jtssm.arrays import Array
from jtssm.protocol import device_memory
from jtssm.protocol.declared import WORD
from jtssm.sharding import gloo
from jtssm.sharding.cost.machine_files import json_path, write_machine
from jtssm.sharding.cost.machines import Machine
from jtssm.sharding.count.routes import ring_share
from jtssm.sharding.mesh import put
from jtssm.sharding.receiving import let_compute_first

Run = Callable[[int], Array]  # a number of passes -> what they come to
_REPEATS = 5
_CHAIN = 32  # products of a pass of the kernel's loop: those of one body cannot be skipped over


class _Sizes(NamedTuple):
    """How much is worked on, in numbers of float32."""

    side: int  # of the square W
    rows: tuple[int, ...]  # m
    array: int  # that memory is timed with
    between: int  # that an activation function is timed with
    messages: tuple[int, int]  # a device holds, of the small and of the large all-reduce


_HOST = _Sizes(2048, (1, 8, 64, 512), 2**25, 2**18, (2**8, 2**20))
_ACCELERATOR = _Sizes(8192, (1, 8, 64, 512, 4096), 2**27, 2**27, (2**8, 2**24))


def calibrate(
    path: str | Path | None = None,
    *,
    devices: Sequence[jax.Device] | None = None,
    seconds: float = 5.0,
) -> Machine:
    """Measure the present devices; other work on them should rest meanwhile.

    Args:
      path: of a machine file to write, for `find_machine`; None: none is written.
      devices: of one kind and of this process; all devices by default. With one, nothing can be sent:
        `link` is then its memory's speed and `latency` the start of a kernel, and `source` says so.
      seconds: about how long to measure, besides compiling. A slow device takes longer, one pass of each.

    Returns:
      A Machine. `capacity` is what jax may take of a device's memory; on a CPU the host's, shared evenly.

    Raises:
      ValueError: devices of several kinds or processes, or none; a path that is not NAME.json in a folder
        that exists.
    """
    checks.positive(seconds=seconds)
    path = None if path is None else json_path(path)
    devices = _one_kind(jax.devices() if devices is None else list(devices))
    sizes = _HOST if devices[0].platform == "cpu" else _ACCELERATOR
    share = seconds / (len(sizes.rows) + 5)
    with jax.default_device(devices[0]):
        flops, rates = rate_table(_product_flops(sizes.side, sizes.rows, share))
        memory = 2 * WORD * sizes.array / _pass(lambda x: x * 0.5 + 1.0, sizes.array, share)
        activation = _pass(lambda x: jnp.tanh(x) + 0.5, sizes.between, share) / sizes.between
        kernel = _start(share)
    link, latency, how = memory, kernel, "one device: link is memory, latency is kernel"
    if len(devices) > 1:
        runs = [all_reduces(devices, numbers) for numbers in sizes.messages]
        times = [seconds_a_pass(run, share) for run in runs]
        link, latency = ring(len(devices), [WORD * numbers for numbers in sizes.messages], times)
        how = "all-reduce of {} and {} bytes as a ring".format(*(WORD * n for n in sizes.messages))
    machine = Machine(
        _name(devices),
        flops,
        memory,
        link,
        latency,
        kernel,
        _source(devices, sizes, how),
        capacity=_capacity(devices),
        rates=rates,
        shared=devices[0].platform == "cpu" and len(devices) > 1,
        activation=activation,
    )
    if path is not None:
        write_machine(machine, path)
    return machine


def rate_table(found: Mapping[int, float]) -> tuple[float, tuple[tuple[float, float], ...]]:
    """`flops` and `rates` of a Machine from flops a second by smallest dimension."""
    best = max(found.values())
    return best, tuple((size, found[size] / best) for size in sorted(found))


def ring(devices: int, sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """`link` and `latency` from the seconds of two all-reduces, of a small and a large array.

    Each takes 2 (p - 1) latencies and sends 2 (p - 1) / p of its bytes. Where noise leaves nothing for
    one of the two: all the large one's time is its bytes', all the small one's its latencies'.
    """
    rounds = 2 * (devices - 1)
    small, large = (ring_share("all_reduce", devices) * size for size in sizes)
    extra = times[1] - times[0]
    link = (large - small) / extra if extra > 0 else large / times[1]
    start = times[0] - small / link
    return link, (start if start > 0 else times[0]) / rounds


def seconds_a_pass(run: Run, budget: float) -> float:
    """Median seconds of a pass, run(n) being n of them; takes about `budget` seconds and one pass."""
    _elapsed(run, 1)  # compiles
    end = time.perf_counter() + budget
    passes = 1
    while (took := _elapsed(run, passes)) < budget / 16:
        wanted = int(passes * budget / 8 / max(took, 1e-9))
        passes = min(max(wanted, 2 * passes), 16 * passes)  # one run may have been a lucky one
    found = [took]
    while len(found) < _REPEATS and time.perf_counter() < end:
        found.append(_elapsed(run, passes))
    return median(found) / passes


def _elapsed(run: Run, passes: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(passes))
    return time.perf_counter() - start


def _loop(body: Callable, x: Array, *rest: Array) -> Run:
    """run(n): n more passes x <- body(x, *rest) in one program, compiled once for every n."""
    return _going_on(
        lambda n, x, *rest: lax.fori_loop(0, n, lambda _, x: body(x, *rest), x), x, *rest
    )


def _going_on(passes: Callable, x: Array, *rest: Array) -> Run:
    """run(n): x <- passes(n, x, *rest) from where the last run ended; x is used up."""
    # donated: fresh memory for every run's result costs a host more than many passes do
    program = jax.jit(passes, donate_argnums=1)

    def run(n: int) -> Array:
        nonlocal x
        x = program(n, x, *rest)
        return x

    return run


def _product_flops(side: int, rows: Sequence[int], budget: float) -> dict[int, float]:
    """Operations a second of [m, side] x [side, side] for every m of the rows."""
    draw, found = np.random.default_rng(0), {}
    # of spectral radius 1: the numbers neither grow nor vanish
    w = jnp.asarray(draw.standard_normal((side, side), np.float32) / np.float32(side**0.5))
    for m in rows:
        x = jnp.asarray(draw.standard_normal((m, side), np.float32))
        found[m] = 2 * m * side**2 / seconds_a_pass(_loop(jnp.matmul, x, w), budget)
    return found


def _pass(body: Callable[[Array], Array], numbers: int, budget: float) -> float:
    """Seconds of x <- body(x) of that many numbers, zeros at first."""
    return seconds_a_pass(_loop(body, jnp.zeros(numbers, jnp.float32)), budget)


def _start(budget: float) -> float:
    """Seconds of a kernel that has next to nothing to do."""

    def body(x: Array, w: Array) -> Array:
        for _ in range(_CHAIN):
            x = x @ w
        return x

    x, w = jnp.ones((8, 8), jnp.float32), jnp.eye(8, dtype=jnp.float32)
    return seconds_a_pass(_loop(body, x, w), budget) / _CHAIN


def all_reduces(devices: Sequence[jax.Device], numbers: int) -> Run:
    """run(n): n sums over the devices, of one process or several, of arrays of that many numbers each."""
    mesh = Mesh(np.array(devices), ("all",), axis_types=(AxisType.Auto,))
    if gloo.meet(mesh):
        let_compute_first()
    zeros = np.zeros(len(devices) * numbers, np.float32)  # they stay zeros under sums
    x = put(zeros, mesh, P("all"))
    body = lambda _, x: lax.pcast(lax.psum(x, "all"), "all", to="varying")
    passes = jax.shard_map(
        lambda n, x: lax.fori_loop(0, n, body, x),
        mesh=mesh,
        in_specs=(P(), P("all")),
        out_specs=P("all"),
    )
    return _going_on(passes, x)


def _one_kind(devices: list[jax.Device]) -> list[jax.Device]:
    """The devices, all of one kind and of this process."""
    kinds = sorted({device.device_kind for device in devices})
    if len(kinds) != 1:
        raise ValueError(f"devices: expected devices of one kind, e.g. jax.devices(); got {kinds}")
    here = jax.process_index()
    others = sorted({device.process_index for device in devices} - {here})
    if others:
        raise ValueError(
            f"devices: expected devices of this process, {here}, e.g. jax.local_devices(): its clock is "
            f"the only one read; got devices of {others}"
        )
    return devices


def _capacity(devices: Sequence[jax.Device]) -> float:
    """Bytes that jax may take of one device's memory."""
    return float(device_memory.memory(devices) / len(devices))


def _name(devices: Sequence[jax.Device]) -> str:
    return f"{devices[0].device_kind.lower().replace(' ', '-')}-x{len(devices)}"


def _source(devices: Sequence[jax.Device], sizes: _Sizes, how: str) -> str:
    """When, where and how."""
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"{kind} ({_processor()}, {os.cpu_count()} cores)"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"measured by calibrate() on {today}: {len(devices)} x {kind}, jax {jax.__version__}; float32 "
        f"products of [m, {sizes.side}] and [{sizes.side}, {sizes.side}], a pass over "
        f"{WORD * sizes.array} bytes, {how}"
    )


def _processor() -> str:
    """The CPU's model."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
