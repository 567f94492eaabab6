"""What moves, counted from the compiled program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from math import prod
from typing import NamedTuple

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jtssm.protocol.branching import trips_a_run
from jtssm.sharding.count import hlo_text, routes
from jtssm.sharding.count.hlo_text import loop_of, trips
from jtssm.sharding.count.routes import Count, Route, Sizes

_PERMUTE = re.compile(
    r"= (?P<result>.*?) collective-permute(?P<start>-start)?\("
    r".*source_target_pairs=\{(?P<pairs>[\d,{} ]*)\}"
)
_COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?P<kind>all-reduce|all-to-all|all-gather|reduce-scatter)(?P<start>-start)?\("
)
_CHAIN = re.compile(r'chain_id="(\d+)"')


class Permute(NamedTuple):
    """A collective permute of a compiled program."""

    shape: tuple[int, ...]  # of what one device sends
    bytes: int  # of what one device sends
    dtype: str  # as the program writes it: f32, u8, ...
    pairs: tuple[tuple[int, int], ...]  # (source, target) positions in the mesh's list of devices


class Collective(NamedTuple):
    """A reduction, gather or exchange among groups of devices in a compiled program."""

    kind: str  # "all_reduce", "all_to_all", "all_gather" or "reduce_scatter"
    bytes: int  # that one device hands in, each time
    groups: tuple[tuple[int, ...], ...]  # positions in the mesh's list of devices
    times: int  # how often: the trips of the loops it stands in

    @property
    def moves(self) -> bool:
        """Whether any device meets another in it."""
        return any(len(group) > 1 for group in self.groups)


def permutes(hlo: str) -> list[Permute]:
    """The collective permutes in the text of a compiled program (`compiled.as_text()`).

    A permute in the body of a loop stands here once.
    """
    found = []
    for match in _PERMUTE.finditer(hlo):
        sent = _operands(match)
        dtype, shape = hlo_text.arrays(sent)[0]
        ends = [int(i) for i in re.findall(r"\d+", match["pairs"])]
        pairs = tuple(zip(ends[::2], ends[1::2], strict=True))
        found.append(Permute(shape, hlo_text.num_bytes(sent), dtype, pairs))
    return found


def permuted_bytes(hlo: str) -> int:
    """Bytes that all collective permutes of a program send together, over all pairs of devices."""
    return sum(p.bytes * len(p.pairs) for p in permutes(hlo))


def collectives(hlo: str) -> list[Collective]:
    """The other collectives in the text of a compiled program (`compiled.as_text()`).

    Of a conditional every branch is counted.
    """
    bodies, entry = hlo_text.computations(hlo)
    times = _times(bodies, entry)
    return [
        _collective(line, match, times[name], hlo_text.num_devices(hlo) or 1)
        for name, lines in bodies.items()
        if times.get(name)
        for line in lines
        for match in [_COLLECTIVE.search(line)]
        if match
    ]


def moved(hlo: str, mesh: Mesh | AbstractMesh) -> dict[Route, int]:
    """Bytes that a device hands to collectives in one run of a program, by collective and mesh axes.

    Where devices differ, it is for each route the one that hands in most; of a conditional, the
    branch that moves most in all. Groups that run along no axes of the mesh count as along "other".

    Args:
        hlo: text of the compiled program (`compiled.as_text()`), for CPU, GPU or TPU.
        mesh: the one it was compiled for.

    Raises:
        ValueError: the mesh has another number of devices; a loop that moves something does not
            tell how often it runs.
    """
    devices = hlo_text.num_devices(hlo)
    if devices not in (None, mesh.size):
        raise ValueError(f"mesh: expected the program's {devices} devices; got {dict(mesh.shape)}")
    bodies, entry = hlo_text.computations(hlo)
    return routes.most(_Program(bodies, mesh.shape).count(entry))


class _Program:
    """Counts what moves in the computations of a program."""

    def __init__(self, bodies: dict[str, list[str]], sizes: Sizes):
        self.bodies, self.sizes = bodies, sizes
        self.counted: dict[str, Count] = {}
        self.chains: set[str] = set()

    def count(self, name: str) -> Count:
        """Of one run of a computation and of those it calls."""
        if name not in self.counted:
            lines = self.bodies.get(name, [])
            self.counted[name] = routes.added(self._line(line, lines) for line in lines)
        return self.counted[name]

    def _line(self, line: str, caller: list[str]) -> Count:
        if match := _COLLECTIVE.search(line):
            found = {} if self._continued(line) else self._collective(line, match)
            return routes.times(found, 1 / trips_a_run(line))
        if _PERMUTE.search(line):
            (permute,) = permutes(line)
            return routes.permuted(permute.bytes, permute.pairs, self.sizes)
        if loop := loop_of(line):
            return self._loop(line, loop, caller)
        if branches := hlo_text.branches(line):
            return routes.largest(map(self.count, branches))
        return routes.added(map(self.count, hlo_text.called(line)))

    def _continued(self, line: str) -> bool:
        """Whether it is a further part of a collective that a TPU does piece by piece between others."""
        chain = _CHAIN.search(line)
        seen = chain is not None and chain[1] in self.chains
        self.chains |= {chain[1]} if chain else set()
        return seen

    def _collective(self, line: str, match: re.Match[str]) -> Count:
        found = _collective(line, match, 1, prod(self.sizes.values()))
        groups = {frozenset(group) for group in found.groups}
        if not found.moves:
            return {}
        for axes in _subsets(self.sizes):
            if groups == _groups_along(axes, self.sizes):
                return routes.along(found.kind, found.bytes, axes, self.sizes)
        everyone = np.full(prod(self.sizes.values()), found.bytes)
        return {Route(found.kind, ("other",)): everyone}

    def _loop(self, line: str, loop: tuple[str, str], caller: list[str]) -> Count:
        condition, body = map(self.count, loop)
        if not (condition or body):
            return {}
        runs = trips(line, caller, self.bodies)
        if runs is None:
            raise ValueError(
                "hlo: expected a known number of trips of each loop that moves something; got a loop "
                f"that moves {routes.most(routes.added([condition, body]))} bytes a trip: {line.strip()}"
            )
        return routes.added([routes.times(body, runs), routes.times(condition, runs + 1)])


def _subsets(sizes: Sizes) -> Iterator[tuple[str, ...]]:
    """Every choice of axes that are longer than 1."""
    longer = [name for name, size in sizes.items() if size > 1]
    for num in range(1, len(longer) + 1):
        yield from combinations(longer, num)


def _groups_along(axes: tuple[str, ...], sizes: Sizes) -> set[frozenset[int]]:
    """Positions that differ along these axes only."""
    positions = np.arange(prod(sizes.values())).reshape(tuple(sizes.values()))
    order = [k for k, name in enumerate(sizes) if name not in axes]
    order += [k for k, name in enumerate(sizes) if name in axes]
    rows = positions.transpose(order).reshape(-1, prod(sizes[name] for name in axes))
    return set(map(frozenset, rows.tolist()))


def _collective(line: str, match: re.Match[str], times: int, devices: int) -> Collective:
    groups, size = hlo_text.groups(line, devices), hlo_text.num_bytes(_operands(match))
    whole = not (match["start"] and match["result"].startswith("("))
    if match["kind"] == "all-gather" and whole:
        size //= len(groups[0])
    if match["kind"] == "reduce-scatter" and whole:
        size *= len(groups[0])
    return Collective(match["kind"].replace("-", "_"), size, groups, times)


def _operands(match: re.Match[str]) -> str:
    """The type of a collective's results, or of its operands where an asynchronous one names both."""
    result = match["result"]
    names_both = match["start"] and result.startswith("(") and "all-reduce-start" not in match[0]
    return hlo_text.first(result) if names_both else result


def _times(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation is run; a computation stands behind those it calls."""
    times = dict.fromkeys(bodies, 0)
    times[entry] = 1
    for name in reversed(bodies):
        for line in bodies[name]:
            runs = trips(line, bodies[name], bodies) or 1
            for other in filter(
                times.__contains__, hlo_text.called(line) + hlo_text.branches(line)
            ):
                times[other] += times[name] * runs
    return times
