"""Machines by name, by file and by the devices at hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, fields
from difflib import get_close_matches
from math import inf
from pathlib import Path

import jax

from jtssm import checks, files
from jtssm.checks import shown
from jtssm.sharding.cost.machine_table import MACHINES
from jtssm.sharding.cost.machines import NUMBERS, Machine, number

KINDS = {
    "cpu": "host",
    "TPU v4": "tpu-v4",
    "TPU v5 lite": "tpu-v5e",
    "TPU v5e": "tpu-v5e",
    "TPU v5": "tpu-v5p",
    "TPU v5p": "tpu-v5p",
    "TPU v6 lite": "tpu-v6e",
    "TPU v6e": "tpu-v6e",
    "NVIDIA H100 80GB HBM3": "h100-nvlink",  # the SXM module; H100 PCIe and NVL are slower
    "NVIDIA H200": "h200-nvlink",
    "NVIDIA A100-SXM4-80GB": "a100-nvlink",
    "NVIDIA A100-SXM4-40GB": "a100-40gb-nvlink",
    "NVIDIA B200": "b200-nvlink",
    "NVIDIA L4": "l4-pcie",
    "Tesla T4": "t4-pcie",
}

MOST_BYTES = 2**20  # of a machine file
FIELDS = tuple(field.name for field in fields(Machine))
_NEEDED = tuple(field.name for field in fields(Machine) if field.default is MISSING)
_EXAMPLE = MACHINES["h100-nvlink"]
_MAY_BE_IDEAL = ("capacity", "combined", "activation")  # as by default


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


def present_machine(devices: Sequence[jax.Device] | None = None) -> Machine:
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
      ValueError: no such file, a pipe or device, over 1 MiB, not JSON, or a field that is missing,
        unknown or of a wrong value.
    """
    path = checks.path("path", path)
    try:
        text = files.content(path, MOST_BYTES)
    except OSError as error:
        raise ValueError(
            f"path: expected a machine file, e.g. one that calibrate('machine.json') wrote; got {path}: "
            f"{error.strerror}"
        ) from error
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # the latter of brackets nested thousands deep
        raise ValueError(
            f"{path}: expected a JSON object of {list(_NEEDED)}; got other text: {error}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object of {list(_NEEDED)}; got {shown(content)}")
    try:
        _right_fields(content)
        machine = Machine(**content)
        _of_a_device(machine)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return machine


def write_machine(machine: Machine, path: str | Path) -> None:
    """Write a machine to a file that `read_machine` reads back, equal to the bit.

    Raises:
      ValueError: an ideal machine, whose numbers no device has; a path that `json_path` refuses.
    """
    path = json_path(path)
    try:
        _of_a_device(machine)
    except ValueError as error:
        raise ValueError(f"{machine.name}: {error}") from error
    content = asdict(machine) | {"links": dict(machine.links)}
    for name in _MAY_BE_IDEAL:
        if content[name] == inf:  # has no JSON
            del content[name]
    with files.replacing(path) as new:
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


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


def _nearest(given: object, known: Iterable[str]) -> str:
    """The names that have all words of what was given, "A100" or "TPU v5e"; else the most alike."""
    word = shown(given).strip("'").lower()
    parts = re.findall("[a-z0-9]+", word)
    near = [name for name in known if parts and all(part in name.lower() for part in parts)]
    near = near or get_close_matches(word, list(known), n=1)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _right_fields(content: Iterable[str]) -> None:
    """Those that a machine has, and all without a default."""
    for name in content:
        if name not in FIELDS:
            raise ValueError(
                f"{name}: expected fields among {list(FIELDS)}; got {name!r}{_nearest(name, FIELDS)}"
            )
    for name in _NEEDED:
        if name not in content:
            raise ValueError(
                f"{name}: expected e.g. {getattr(_EXAMPLE, name)!r}; got no such field"
            )


def _of_a_device(machine: Machine) -> None:
    """No number of an ideal machine, but for what is so by default."""
    for name in (name for name in NUMBERS if name not in _MAY_BE_IDEAL):
        number(name, getattr(machine, name), getattr(_EXAMPLE, name))
