"""How often the loops of a compiled program run, from its text.

CPU and GPU programs say so (`known_trip_count`); a TPU program does not, and there the counter is read:
where it starts, what it is compared with, how it grows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

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
