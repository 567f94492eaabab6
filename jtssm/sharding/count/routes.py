"""Bytes by route: which collective takes them, along which axes of the mesh.

A count holds, for each route, what every position of the mesh hands in: an array [positions], in the
order of `mesh.devices.flat`. Sizes are the mesh's axes by name, in its order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

Sizes = Mapping[str, int]


class Route(NamedTuple):
    """A way for bytes to take: a collective along axes of the mesh."""

    collective: str  # "all_reduce", "all_gather", "reduce_scatter", "all_to_all" or "permute"
    axes: tuple[
        str, ...
    ]  # in the mesh's order, none of size 1; ("other",) for groups along no axes


Count = dict[Route, np.ndarray]


def along(collective: str, num_bytes: int, axes: Iterable[str], sizes: Sizes) -> Count:
    """Every device hands bytes in and meets those that stand elsewhere along the axes."""
    axes = set(axes)
    longer = tuple(name for name, size in sizes.items() if name in axes and size > 1)
    if not longer:
        return {}
    return {Route(collective, longer): np.full(prod(sizes.values()), num_bytes)}


def permuted(num_bytes: int, pairs: Iterable[Sequence[int]], sizes: Sizes) -> Count:
    """The source of each pair of positions sends bytes; the axes are those its pairs differ along."""
    apart = np.asarray([pair for pair in pairs if pair[0] != pair[1]], int).reshape(-1, 2)
    sends = np.zeros(prod(sizes.values()), int)
    np.add.at(sends, apart[:, 0], num_bytes)
    ends = np.asarray(np.unravel_index(apart, tuple(sizes.values())))
    differ = (ends[..., 0] != ends[..., 1]).any(axis=1)
    axes = tuple(name for name, crossed in zip(sizes, differ, strict=True) if crossed)
    return {Route("permute", axes): sends} if axes else {}


def added(counts: Iterable[Count]) -> Count:
    """What all of them hand in together."""
    total: Count = {}
    for count in counts:
        for route, sends in count.items():
            total[route] = total.get(route, 0) + sends
    return total


def times(count: Count, trips: float | np.ndarray) -> Count:
    """A count repeated; trips: a number, a part of one too, or one for each position."""
    return {route: sends * trips for route, sends in count.items()}


def most(count: Count) -> dict[Route, int]:
    """By route, the bytes of a device that hands in the most; routes without bytes are left out."""
    return {route: round(sends.max()) for route, sends in count.items() if sends.any()}


def at(count: Count, position: int) -> dict[Route, int]:
    """By route, the bytes of one device; routes without bytes are left out."""
    return {route: round(sends[position]) for route, sends in count.items() if sends[position]}


def largest(counts: Iterable[Count]) -> Count:
    """The one that moves most in all, as one branch of a switch; ties go by the routes."""

    def size(count: Count) -> tuple[int, list[tuple[Route, int]]]:
        found = most(count)
        return sum(found.values()), sorted((route, found[route]) for route in found)

    return max(counts, key=size, default={})


def chosen(counts: Sequence[Count], which: np.ndarray) -> Count:
    """Position d hands in what counts[which[d]] says: each device takes its own branch."""
    return added(times(count, which == i) for i, count in enumerate(counts))


def ring_bytes(counted: Mapping[Route, int], mesh_shape: Sizes) -> float:
    """What a device sends on rings of devices: bytes in all, for what it hands in.

    In a group of p devices, a gather of b bytes sends (p - 1) b, a reduce-scatter and an all-to-all
    (p - 1) / p b, an all-reduce 2 (p - 1) / p b and a permute b.

    Args:
        counted: bytes by route, as `count_bytes` gives them.
        mesh_shape: size of each axis, `mesh.shape`.

    Raises:
        ValueError: a route runs along an axis that the mesh has not.
    """
    sent = lambda route: ring_share(route.collective, _devices(route, mesh_shape))
    return float(sum(num * sent(route) for route, num in counted.items()))


def ring_share(collective: str, devices: int) -> float:
    """Bytes that one of so many devices sends for each byte that it hands in: see `ring_bytes`."""
    p = devices
    factors = {
        "all_gather": p - 1,
        "reduce_scatter": (p - 1) / p,
        "all_to_all": (p - 1) / p,
        "all_reduce": 2 * (p - 1) / p,
        "permute": 1,
    }
    return factors[collective]


def _devices(route: Route, mesh_shape: Sizes) -> int:
    """That a route joins."""
    if not set(route.axes) <= set(mesh_shape):
        raise ValueError(
            f"mesh_shape: expected an axis for each of {route}; got {dict(mesh_shape)}"
        )
    return prod(mesh_shape[name] for name in route.axes)
