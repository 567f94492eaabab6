"""Machines as data: what a device and its links can do."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, log
from typing import Any

import numpy as np

from jtssm import checks
from jtssm.checks import shown
from jtssm.sharding.cost.published import ALEXNET
from jtssm.sharding.mesh import AXES

ALGORITHMS = ("ring", "logarithmic")
# an example of each number, and what only an ideal machine has: unlimited speed, no time at all
NUMBERS = {
    "flops": (4.95e14, inf),
    "memory": (3.35e12, inf),
    "link": (4.5e11, inf),
    "latency": (5e-6, 0),
    "kernel": (3e-6, 0),
    "capacity": (8e10, inf),
    "combined": (4e6, inf),
}
_RANGES = {
    None: "a finite number above 0",
    inf: "a number above 0 that a float holds",
    0: "a finite number of at least 0",
}


@dataclass(frozen=True)
class Machine:
    """A device and its links; `source` says what was published and what is assumed.

    Speeds may be infinite, latencies 0: what a step would cost then. `links` may be given as a dict.

    Raises:
      ValueError: a field of a wrong value.
    """

    name: str
    flops: float  # a second, of products in jax's default precision of float32
    memory: float  # bytes a second
    link: float  # bytes a second that a device sends in one direction
    latency: float  # seconds a message
    kernel: float  # seconds to start a kernel
    source: str
    capacity: float = inf  # bytes that a device's memory holds
    algorithm: str = "ring"  # how many latencies a collective has: one of ALGORITHMS
    links: tuple[tuple[str, float], ...] = ()  # (mesh axis, bytes a second) where not `link`
    rates: tuple[tuple[float, float], ...] = ()  # (smallest dimension of a product, share of flops)
    shared: bool = False  # devices are virtual: they share one host's flops and memory bandwidth
    combined: float = (
        inf  # bytes that an all-reduce of several arrays, such as gradients, sums at most
    )

    def __post_init__(self) -> None:
        for name, (example, ideal) in NUMBERS.items():
            self._set(name, number(name, getattr(self, name), example, ideal))
        for name in ("name", "source"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name}: expected a text, e.g. 'measured'; got {shown(value)}")
        checks.one_of("algorithm", self.algorithm, ALGORITHMS)
        self._set("shared", checks.flag("shared", self.shared))
        self._set("links", _links(self.links))
        self._set("rates", _rates(self.rates))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # of a frozen dataclass, while it is made

    def share(self, smallest: float) -> float:
        """Share of `flops` that a product reaches whose smallest dimension is `smallest`.

        Straight between the points of `rates` on logarithmic axes, constant beyond; 1 without points.
        """
        if not self.rates:
            return 1.0
        right = bisect_right([size for size, _ in self.rates], smallest)
        if right in (0, len(self.rates)):
            return self.rates[max(right - 1, 0)][1]
        (a, low), (b, high) = self.rates[right - 1 : right + 1]
        return low * (high / low) ** (log(smallest / a) / log(b / a))

    def speed(self, axes: str | Sequence[str]) -> float:
        """Bytes a second of the slowest links among the mesh axes; of `link` without axes."""
        own = dict(self.links)
        axes = (axes,) if isinstance(axes, str) else axes
        return min((own.get(axis, self.link) for axis in axes), default=self.link)

    def latencies(self, devices: int) -> int:
        """Messages, one after the other, of a gather or reduce-scatter; twice as many of an all-reduce.

        Raises:
          ValueError: fewer than one device.
        """
        checks.count(devices=devices)
        return devices - 1 if self.algorithm == "ring" else (int(devices) - 1).bit_length()


def number(name: str, value: Any, example: float, ideal: float | None = None) -> float:
    """The value is a finite number above 0, or the ideal one; returns Python's."""
    value = value.item() if isinstance(value, np.generic) else value
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or not (0 < value <= sys.float_info.max or value == ideal):
        raise ValueError(f"{name}: expected {_RANGES[ideal]}, e.g. {example:g}; got {shown(value)}")
    return value


def _links(given: Any) -> tuple[tuple[str, float], ...]:
    """Pairs of an axis and its speed, from pairs or a dict."""
    pairs = tuple(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, tuple) or not _paired(pairs):
        raise ValueError(f'links: expected e.g. {{"pc": 12.5e9}}; got {shown(given)}')
    for axis, _ in pairs:
        checks.one_of("links", axis, AXES)
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"links: expected each axis once; got {shown(given)}")
    return tuple((a, number(f"links[{a!r}]", v, NUMBERS["link"][0])) for a, v in pairs)


def _rates(given: Any) -> tuple[tuple[float, float], ...]:
    """Pairs of a smallest dimension and a share: dimensions rise, shares are above 0 and at most 1."""
    if not isinstance(given, (list, tuple)) or not _paired(given):
        raise ValueError(f"rates: expected e.g. [[1, 0.01], [128, 1.0]]; got {shown(given)}")
    pairs = tuple((number("rates", a, 128), number("rates", b, 0.5)) for a, b in given)
    for _, share in pairs:
        if share > 1:
            raise ValueError(f"rates: expected shares of at most 1.0, of flops; got {shown(share)}")
    sizes = [size for size, _ in pairs]
    if any(b <= a for a, b in pairwise(sizes)):
        raise ValueError(
            f"rates: expected rising smallest dimensions, e.g. {shown(sorted(set(sizes)))}; got "
            f"{shown(sizes)}"
        )
    return pairs


def _paired(given: Sequence[object]) -> bool:
    return all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in given)


# seconds of an epoch of AlexNet's 1.2 million images on one Cori KNL node by the samples it takes at a
# time, read off a figure of the integrated paper (1 %)
KNL_EPOCHS = {
    1: 30_740,
    2: 17_290,
    4: 9_610,
    8: 5_920,
    16: 3_920,
    32: 2_840,
    64: 2_320,
    128: 2_030,
    256: 1_780,
    512: 1_830,
    1024: 1_920,
    2048: 2_430,
}
_KNL_BEST = min(KNL_EPOCHS.values())
# of an image, in floating-point operations: three products a layer, the first layer without dX
_ADDS = [layer.multiply_adds for layer in ALEXNET]
_ALEXNET_FLOPS = 2 * (3 * sum(_ADDS) - _ADDS[0])

_H100 = (
    "nvidia.com/en-us/data-center/h100, SXM: 495 TFLOP/s (TF32 dense, half of the printed sparse), "
    "3.35 TB/s, 80 GB, NVLink 900 GB/s in both directions; "
)
_TPU = "(bf16, jax's default for float32); assumed: 1 us a message, 1 us a kernel"

MACHINES = {
    machine.name: machine
    for machine in (
        Machine(
            "tpu-v4",
            275e12,
            1200e9,
            45e9,
            1e-6,
            1e-6,
            "cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 1200 GB/s, 32 GiB; all-reduce 1.1 PB/s a pod of "
            f"4096 over six links a chip, of which one is counted: 45 GB/s {_TPU}",
            capacity=32 * 2**30,
        ),
        Machine(
            "tpu-v5e",
            197e12,
            819e9,
            50e9,
            1e-6,
            1e-6,
            "cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 819 GB/s, 16 GB; 1600 Gbit/s over four links, "
            f"of which one is counted: 50 GB/s {_TPU}",
            capacity=16e9,
        ),
        Machine(
            "tpu-v5p",
            459e12,
            2765e9,
            100e9,
            1e-6,
            1e-6,
            "cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 2765 GB/s, 95 GiB; 4800 Gbit/s (1200 GB/s in "
            f"both directions) over six links, of which one is counted: 100 GB/s {_TPU}",
            capacity=95 * 2**30,
        ),
        Machine(
            "tpu-v6e",
            918e12,
            1638e9,
            100e9,
            1e-6,
            1e-6,
            "cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 1638 GB/s, 32 GB; 800 GB/s in both directions "
            f"over four links, of which one is counted: 100 GB/s {_TPU}",
            capacity=32e9,
        ),
        Machine(
            "h100-nvlink",
            495e12,
            3.35e12,
            450e9,
            5e-6,
            3e-6,
            f"{_H100}assumed: all devices on one switch, 5 us a message, 3 us a kernel",
            capacity=80e9,
        ),
        Machine(
            "h100-ethernet",
            495e12,
            3.35e12,
            12.5e9,
            20e-6,
            3e-6,
            f"{_H100}assumed: one a host on 100 Gbit/s Ethernet at full line rate, 20 us a message, "
            "3 us a kernel",
            capacity=80e9,
        ),
        Machine(
            "h200-nvlink",
            495e12,
            4.8e12,
            450e9,
            5e-6,
            3e-6,
            "nvidia.com/en-us/data-center/h200, SXM, 8 a node: 495 TFLOP/s (TF32 dense, half of the "
            "printed sparse), 4.8 TB/s, 141 GB, NVLink 900 GB/s in both directions; assumed: at most 8 "
            "devices, on one switch, 5 us a message, 3 us a kernel",
            capacity=141e9,
        ),
        Machine(
            "cori-knl",
            _ALEXNET_FLOPS * 1.2e6 / _KNL_BEST,
            460e9,
            6 * 2**30,
            2e-6,
            1e-6,
            "arXiv 1712.04432, the machine of its simulation: 2 us, logarithmic collectives, 6 * 2**30 "
            "B/s, which reproduces its bars (printed: 6 GB/s); flops and rates: AlexNet's products over "
            "the seconds of an epoch on one node by batch, read off its figure to 1 %, the batch taken "
            "as the smallest dimension: what else a step does and the start of kernels are included; "
            "docs.nersc.gov/systems/cori: 96 GB of DDR4 (the capacity), 16 GB of MCDRAM at 460 GB/s; "
            "assumed: all traffic is the MCDRAM's, a cache; 1 us a kernel",
            capacity=96e9,
            algorithm="logarithmic",
            rates=tuple((batch, _KNL_BEST / seconds) for batch, seconds in KNL_EPOCHS.items()),
        ),
        Machine(
            "host",
            1.79e11,
            4.8e10,
            1.28e9,
            15e-6,
            0.59e-6,
            "measured by calibrate(seconds=8) on 2026-11-22, medians of 5 runs without other "
            "work: 8 virtual devices on 2 cores of an AMD EPYC (family 25, model 17) with 25 GB, an "
            "eighth each (the capacity), jax 0.10.2; of other hosts calibrate() tells",
            capacity=3.1e9,
            rates=((1, 0.126), (8, 0.289), (64, 0.718), (512, 1.0)),
            shared=True,
        ),
    )
}
