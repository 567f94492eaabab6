"""Machines by name, by file and by the devices at hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import jax

from jtssm import checks
from jtssm.checks import shown
from jtssm.sharding.cost.machines import ALGORITHMS, MACHINES, Machine
from jtssm.sharding.mesh import AXES

KINDS = {
    "cpu": "host",
    "TPU v4": "tpu-v4",
    "TPU v5 lite": "tpu-v5e", "TPU v5e": "tpu-v5e",
    "TPU v5": "tpu-v5p", "TPU v5p": "tpu-v5p",
    "TPU v6 lite": "tpu-v6e", "TPU v6e": "tpu-v6e",
    "NVIDIA H100 80GB HBM3": "h100-nvlink",  # the SXM module; H100 PCIe and NVL are slower
    "NVIDIA H200": "h200-nvlink",
}  # fmt: skip

_NUMBERS = ("flops", "memory", "link", "latency", "kernel", "capacity")
_NEEDED = tuple(name for name in Machine._fields if name not in Machine._field_defaults)
_EXAMPLE = MACHINES["h100-nvlink"]


def find_machine(given: Machine | str | Path) -> Machine:
    """A machine as it is, by its name in MACHINES, or read from a file whose name ends with .json.

    Raises:
      ValueError: an unknown name, or a file that `read_machine` refuses.
    """
    if isinstance(given, Machine):
        return given
    if isinstance(given, str) and given in MACHINES:
        return MACHINES[given]
    if isinstance(given, (str, Path)) and str(given).endswith(".json"):
        return read_machine(given)
    raise ValueError(
        f"machine: expected a Machine, one of {sorted(MACHINES)}, or a path that ends with .json; "
        f"got {shown(given)}{_nearest(given, MACHINES)}"
    )


def present_machine(devices: Sequence[Any] | None = None) -> Machine:
    """The entry of MACHINES for the first of the devices, by its kind; of all devices by default.

    "host" for every CPU: its numbers are those of one small host, calibrate() gives your own.

    Raises:
      ValueError: no device, or a kind without an entry.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices: expected at least one, e.g. jax.devices(); got none")
    kind = "cpu" if devices[0].platform == "cpu" else devices[0].device_kind
    if kind not in KINDS:
        raise ValueError(
            f"devices: expected a kind with published numbers, one of {sorted(KINDS)}; got {kind!r}: "
            f"measure it, machine = calibrate('machine.json')"
        )
    return MACHINES[KINDS[kind]]


def read_machine(path: str | Path) -> Machine:
    """A machine from a file of `write_machine`: JSON, the fields of Machine by their names.

    Fields that have a default may be missing. `links` is an object, axis: bytes a second; `rates` a list
    of [smallest dimension, share].

    Raises:
      ValueError: no such file, not JSON, or a field that is missing, unknown or of a wrong value.
    """
    path = checks.path("path", path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"path: expected a machine file, e.g. one that calibrate('machine.json') wrote; got {path}: "
            f"{error.strerror}"
        ) from error
    except (ValueError, RecursionError) as error:  # the latter of brackets nested thousands deep
        raise ValueError(
            f"{path}: expected a JSON object of {list(_NEEDED)}; got other text: {error}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object of {list(_NEEDED)}; got {shown(content)}")
    _right_fields(str(path), content)
    for name in ("links", "rates"):
        if name in content:
            content[name] = _pairs(f"{path}: {name}", name, content[name])
    return _checked(str(path), Machine(**content))


def write_machine(machine: Machine, path: str | Path) -> None:
    """Write a machine to a file that `read_machine` reads back, equal to the bit.

    Raises:
      ValueError: a machine with a wrong value, a path that `json_path` refuses.
    """
    path = json_path(path)
    content = _checked(machine.name, machine)._asdict()
    content["links"] = dict(machine.links)
    if machine.capacity == inf:  # has no JSON; it is the default
        del content["capacity"]
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def json_path(path: str | Path) -> Path:
    """The path, of a name that `find_machine` takes, in a folder that exists.

    Raises:
      ValueError: it ends otherwise than with .json, or its folder does not exist.
    """
    path = checks.path("path", path)
    if path.suffix != ".json":
        raise ValueError(f"path: expected one that ends with .json, e.g. machine.json; got {path}")
    if not path.parent.is_dir():
        raise ValueError(
            f"path: expected a file in a folder that exists, e.g. {path.name}; got {path}"
        )
    return path


def _nearest(given: Any, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = get_close_matches(shown(given).strip("'"), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _right_fields(where: str, content: Mapping[str, Any]) -> None:
    for name in content:
        if name not in Machine._fields:
            raise ValueError(
                f"{where}: {name}: expected fields among {list(Machine._fields)}; got "
                f"{name!r}{_nearest(name, Machine._fields)}"
            )
    for name in _NEEDED:
        if name not in content:
            raise ValueError(
                f"{where}: {name}: expected e.g. {getattr(_EXAMPLE, name)!r}; got no such field"
            )


def _pairs(where: str, name: str, value: Any) -> tuple:
    """`links` or `rates` as a Machine has them, from what JSON gives."""
    if name == "links" and isinstance(value, dict):
        return tuple(value.items())
    pairs = isinstance(value, list) and all(isinstance(p, list) and len(p) == 2 for p in value)
    if name == "links" or not pairs:
        example = '{"pc": 12.5e9}' if name == "links" else "[[1, 0.01], [128, 1.0]]"
        raise ValueError(f"{where}: expected e.g. {example}; got {shown(value)}")
    return tuple((size, share) for size, share in value)


def _checked(where: str, machine: Machine) -> Machine:
    """The machine, whose values are all of their kind and in their range."""
    for name in _NUMBERS:
        value, unlimited = getattr(machine, name), name == "capacity" and machine.capacity == inf
        if not unlimited:
            _number(f"{where}: {name}", value, getattr(_EXAMPLE, name))
    for name in ("name", "source"):
        value = getattr(machine, name)
        if not isinstance(value, str) or not value:
            raise ValueError(
                f"{where}: {name}: expected a text, e.g. 'measured'; got {shown(value)}"
            )
    checks.one_of(f"{where}: algorithm", machine.algorithm, ALGORITHMS)
    if not isinstance(machine.shared, bool):
        raise ValueError(f"{where}: shared: expected true or false; got {machine.shared!r}")
    for axis, speed in machine.links:
        checks.one_of(f"{where}: links", axis, AXES)
        _number(f"{where}: links[{axis!r}]", speed, _EXAMPLE.link)
    _rising(where, machine.rates)
    return machine


def _number(where: str, value: Any, example: float) -> None:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or not 0 < value <= sys.float_info.max:
        raise ValueError(
            f"{where}: expected a finite number above 0, e.g. {example:g}; got {shown(value)}"
        )


def _rising(where: str, rates: Sequence[tuple[float, float]]) -> None:
    """Smallest dimensions rise, shares are above 0 and at most 1."""
    for size, share in rates:
        _number(f"{where}: rates", size, 128)
        _number(f"{where}: rates", share, 0.5)
        if share > 1:
            raise ValueError(
                f"{where}: rates: expected shares of at most 1.0, of flops; got {share!r}"
            )
    sizes = [size for size, _ in rates]
    if any(b <= a for a, b in pairwise(sizes)):
        raise ValueError(
            f"{where}: rates: expected rising smallest dimensions, e.g. {sorted(set(sizes))}; "
            f"got {sizes}"
        )
