"""What moves, counted from the compiled program."""

from __future__ import annotations

import re
from math import prod
from typing import NamedTuple

import numpy as np

_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d+)\[(?P<shape>[\d,]*)\]")
_PERMUTE = re.compile(
    r"= \(?(?P<array>[a-z]+\d+\[[\d,]*\])[^=]*? collective-permute(?:-start)?\("
    r".*source_target_pairs=\{(?P<pairs>[\d,{} ]*)\}"
)
_COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?P<kind>all-reduce|all-to-all|all-gather|reduce-scatter)\("
)
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')


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
        ((dtype, shape),) = _arrays(match["array"])
        ends = [int(i) for i in re.findall(r"\d+", match["pairs"])]
        pairs = tuple(zip(ends[::2], ends[1::2], strict=True))
        found.append(Permute(shape, _bytes(match["array"]), dtype, pairs))
    return found


def permuted_bytes(hlo: str) -> int:
    """Bytes that all collective permutes of a program send together, over all pairs of devices."""
    return sum(p.bytes * len(p.pairs) for p in permutes(hlo))


def collectives(hlo: str) -> list[Collective]:
    """The other collectives in the text of a compiled program (`compiled.as_text()`).

    Of a conditional every branch is counted.
    """
    bodies, entry = _computations(hlo)
    times = _times(bodies, entry)
    return [
        _collective(line, match, times[name])
        for name, lines in bodies.items()
        if times.get(name)
        for line in lines
        for match in [_COLLECTIVE.search(line)]
        if match
    ]


def _collective(line: str, match: re.Match, times: int) -> Collective:
    groups, size = _groups(line), _bytes(match["result"])
    if match["kind"] == "all-gather":
        size //= len(groups[0])
    if match["kind"] == "reduce-scatter":
        size *= len(groups[0])
    return Collective(match["kind"].replace("-", "_"), size, groups, times)


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Lines of every computation by its name, and the name of the one that is run."""
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            name = match["name"]
            bodies[name] = []
            entry = name if match["entry"] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _times(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation is run; a computation stands behind those it calls."""
    times = dict.fromkeys(bodies, 0)
    times[entry] = 1
    for name in reversed(bodies):
        for line in bodies[name]:
            trips = _TRIPS.search(line)
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += re.findall(r"[\w.\-]+", branches)
            for other in filter(times.__contains__, called):
                times[other] += times[name] * (int(trips[1]) if trips else 1)
    return times


def _groups(line: str) -> tuple[tuple[int, ...], ...]:
    """replica_groups in any of its three spellings."""
    text = line.split("replica_groups=", 1)[1]
    if text.startswith("{"):
        listed = re.findall(r"\{([\d,]+)\}", text.split("}}")[0] + "}")
        return tuple(tuple(int(i) for i in group.split(",")) for group in listed)
    if text.startswith("["):
        shape, dims, order = re.match(
            r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
        ).groups()  # type: ignore[union-attr]
        ids = np.arange(prod(_ints(dims))).reshape(_ints(dims))
        ids = ids.transpose(_ints(order)) if order else ids
        return tuple(map(tuple, ids.reshape(_ints(shape)).tolist()))
    sizes, over = re.match(r"@?mesh\[([^\]]*)\] \{([^}]*)\}", text).groups()  # type: ignore[union-attr]
    axes = dict(re.findall(r"'([^']+)'=(\d+)", sizes))
    names, along = list(axes), re.findall(r"'([^']+)'", over)
    ids = np.arange(prod(map(int, axes.values()))).reshape([int(n) for n in axes.values()])
    order = [i for i, n in enumerate(names) if n not in along] + [names.index(n) for n in along]
    members = prod(int(axes[n]) for n in along)
    return tuple(map(tuple, ids.transpose(order).reshape(-1, members).tolist()))


def _ints(text: str) -> list[int]:
    return [int(i) for i in text.split(",")]


def _arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every array type in the text."""
    return [
        (match["dtype"], tuple(int(d) for d in match["shape"].split(",") if d))
        for match in _ARRAY.finditer(text)
    ]


def _bytes(text: str) -> int:
    width = lambda dtype: int(re.sub(r"\D", "", dtype)) // 8
    return sum(prod(shape) * width(dtype) for dtype, shape in _arrays(text))
