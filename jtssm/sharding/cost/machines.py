"""A machine as data: what a device and its links can do; `machine_table` has the known ones."""

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
    "activation": (1e-9, 0),
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
    activation: float = 0.0  # seconds that an activation function takes for a number

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
