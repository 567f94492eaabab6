"""The text of a compiled program, `compiled.as_text()`: its computations, groups of devices, types."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

_ARRAY = re.compile(r"(?P<dtype>pred|[a-z]+\d+[a-z0-9]*)\[(?P<shape>[\d,]*)\]")
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_DONE = re.compile(r" async-(?:update|done)\(")
_MESH = re.compile(
    r"@?mesh\[(?P<sizes>[^\]]*)\](?:, device_ids=\((?P<ids>[^{]*)\))? \{(?P<over>[^}]*)\}"
)
_PARTITIONS = re.compile(r"^HloModule .*num_partitions=(\d+)", re.MULTILINE)


def computations(hlo: str) -> tuple[dict[str, list[str]], str]:
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


def called(line: str) -> list[str]:
    """The computations that a line runs; the end of an asynchronous call is not counted again."""
    return [] if _DONE.search(line) else _CALLED.findall(line)


def branches(line: str) -> list[str]:
    """The computations of which a conditional runs one."""
    return [
        name
        for several, one in _BRANCHES.findall(line)
        for name in re.findall(r"[\w.\-]+", several) or [one]
    ]


def num_devices(hlo: str) -> int | None:
    """How many devices the program runs on; None if it does not say so."""
    match = _PARTITIONS.search(hlo)
    return int(match[1]) if match else None


def groups(line: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """replica_groups in any of its three spellings; {} is one group of all devices."""
    text = line.split("replica_groups=", 1)[1]
    if text.startswith("{}"):
        return (tuple(range(devices)),)
    if text.startswith("{"):
        listed = re.findall(r"\{([\d,]+)\}", text.split("}}")[0] + "}")
        return tuple(tuple(int(i) for i in group.split(",")) for group in listed)
    if text.startswith("["):
        shape, order = re.match(r"\[([\d,]+)\]<=(\S+)", text).groups()  # type: ignore[union-attr]
        ids = _device_ids(order, prod(_ints(shape)))
        return tuple(map(tuple, ids.reshape(_ints(shape)).tolist()))
    return _mesh_groups(text)


def _mesh_groups(text: str) -> tuple[tuple[int, ...], ...]:
    """Groups along axes of a mesh that the program names, such as `mesh['r'=2,'c'=4] {'c'}`.

    The mesh may list its devices in another order, `device_ids=([4,2]T(1,0))`, and an axis may be
    a part of one, `'c':(2)2`: of 4 = 2 x 2 x 1, the second 2.
    """
    sizes, order, over = _MESH.match(text).groups()  # type: ignore[union-attr]
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    place = dict(zip(axes, np.indices(tuple(axes.values())).reshape(len(axes), -1), strict=True))
    member, members = np.zeros(prod(axes.values()), int), 1
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", over):
        size = int(part or axes[name])
        stride = axes[name] // (int(before or 1) * size)
        digit = place[name] // stride % size
        place[name] = place[name] - digit * stride
        member, members = member * size + digit, members * size
    rank = np.lexsort([member, *reversed(place.values())])
    ids = _device_ids(order, len(member))[rank]
    return tuple(map(tuple, ids.reshape(-1, members).tolist()))


def _device_ids(order: str | None, num: int) -> np.ndarray:
    """The devices of a mesh in the order it lists them: all in a row, transposed, or one by one."""
    if order is None:
        return np.arange(num)
    if not order.startswith("["):
        return np.asarray(_ints(order))
    dims, axes = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order).groups()  # type: ignore
    ids = np.arange(num).reshape(_ints(dims))
    return (ids.transpose(_ints(axes)) if axes else ids).reshape(-1)


def _ints(text: str) -> list[int]:
    return [int(i) for i in text.split(",")]


def arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every array type in the text."""
    return [
        (match["dtype"], tuple(int(d) for d in match["shape"].split(",") if d))
        for match in _ARRAY.finditer(text)
    ]


def num_bytes(text: str) -> int:
    """Of all arrays in the text; a boolean takes a byte, whole bytes hold numbers of 4 bits and less."""
    bits = lambda dtype: 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])  # type: ignore
    return sum(-(-prod(shape) * bits(dtype) // 8) for dtype, shape in arrays(text))


def first(types: str) -> str:
    """The first element of a tuple type."""
    depth = 0
    for k, letter in enumerate(types):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 1 and letter == ",":
            return types[1:k]
    return types[1:-1]


_TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')
_LINE = re.compile(
    r"^\s*(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = .*? (?P<op>[\w\-]+)\((?P<operands>[^)]*)\)"
)
_LOOP = re.compile(r"condition=%?(?P<condition>[\w.\-]+), body=%?(?P<body>[\w.\-]+)")


class _Value(NamedTuple):
    """A line of a computation."""

    op: str
    operands: str
    line: str


def loop_of(line: str) -> tuple[str, str] | None:
    """Names of the condition and the body of the loop on this line; None if there is no loop."""
    match = _LOOP.search(line) if " while(" in line else None
    return (match["condition"], match["body"]) if match else None


def trips(line: str, caller: Sequence[str], bodies: Mapping[str, Sequence[str]]) -> int | None:
    """How often the loop on this line runs; None if the text does not tell.

    Args:
        line: the loop's.
        caller: lines of the computation it stands in.
        bodies: lines of every computation by its name.
    """
    if match := _TRIPS.search(line):
        return int(match[1])
    loop = loop_of(line)
    if loop is None or not set(loop) <= set(bodies):
        return None
    (entering,) = re.findall(r" while\(%?([\w.\-]+)\)", line)
    return _counted(entering, _values(caller), *(_values(bodies[name]) for name in loop))


def _counted(entering: str, here: dict, condition: dict, body: dict) -> int | None:
    """Trips of a loop from its counter: `counter < bound`, counter from start in equal steps."""
    root = condition.get("ROOT")
    if root is None or root.op != "compare" or "direction=LT" not in root.line:
        return None
    counter, end = _operands(root)
    k = _index(condition, counter)
    bound, start = _constant(condition, end), _constant(here, _element(here, entering, k))
    step = _step(body, k)
    if bound is None or start is None or step is None or step < 1:
        return None
    return max(0, -(-(bound - start) // step))


def _step(body: dict, k: int | None) -> int | None:
    """By how much element k of the loop's tuple grows in a trip."""
    grown = _behind(body, _element(body, "ROOT", k))
    if grown is None or grown.op != "add":
        return None
    first, second = _operands(grown)
    return _constant(body, second) if _index(body, first) == k else None


def _values(lines: Iterable[str]) -> dict[str, _Value]:
    """Every line by the name it gives its value; the computation's result also as ROOT."""
    found = {}
    for match in filter(None, map(_LINE.match, lines)):
        value = _Value(match["op"], match["operands"], match.string)
        found[match["name"]] = value
        if match["root"]:
            found["ROOT"] = value
    return found


def _operands(value: _Value) -> list[str]:
    return re.findall(r"%([\w.\-]+)", value.operands)


def _behind(values: dict, name: str | None) -> _Value | None:
    """The value of that name; of a copy, what was copied."""
    value = values.get(name)
    while value is not None and value.op in ("copy", "bitcast"):
        value = values.get(_operands(value)[0])
    return value


def _element(values: dict, name: str, k: int | None) -> str | None:
    """The name of element k of a tuple."""
    value = _behind(values, name)
    if k is None or value is None or value.op != "tuple":
        return None
    return _operands(value)[k]


def _index(values: dict, name: str) -> int | None:
    """Which element of the loop's tuple a value is."""
    value = _behind(values, name)
    if value is None or value.op != "get-tuple-element":
        return None
    return int(re.search(r"index=(\d+)", value.line)[1])  # type: ignore[index]


def _constant(values: dict, name: str | None) -> int | None:
    value = _behind(values, name)
    if value is None or value.op != "constant" or not re.fullmatch(r"-?\d+", value.operands):
        return None
    return int(value.operands)
