"""Why meshes do not go: the distinct reasons, those of the most plausible mesh first.

Most plausible are meshes that want nothing but memory, the fewest missing bytes first; then those whose
sizes do not divide what they split; last those of which no method could be made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from jtssm.sharding.cost.memory import Memory
from jtssm.sharding.cost.messages import Sizes

NAMED = 3  # meshes that are named beside a reason
# how far off a mesh is: it wants memory, its sizes do not divide, there is no method
MEMORY, UNFIT, UNMADE = range(3)


class NoRoomError(ValueError):
    """More bytes than a device may hold; `missing`: how many more."""

    def __init__(self, needed: int, limit: float, holds: str):
        self.missing = max(needed - int(limit), 1)
        super().__init__(
            f"memory_limit: expected at least {needed} bytes a device, as {holds}; got {int(limit)}, "
            f"{self.missing} missing"
        )


class NoMeshError(ValueError):
    """No mesh goes; `reasons`: the distinct ones, in a text."""

    def __init__(self, num_devices: int, reasons: str):
        self.reasons = reasons
        super().__init__(
            f"num_devices: expected a number that some mesh fits; got {num_devices}, of which none "
            f"goes: {reasons}"
        )


class Refusal(NamedTuple):
    """Why a mesh does not go; in the order of how far off it is."""

    stage: int  # MEMORY, UNFIT or UNMADE
    missing: int  # bytes
    why: str


def refusal(error: ValueError) -> Refusal:
    """That of a mesh for which a method could be made."""
    if isinstance(error, NoRoomError):
        return Refusal(MEMORY, error.missing, str(error))
    return Refusal(UNFIT, 0, str(error))


def no_room(memory: Memory, sizes: Sizes, limit: float) -> NoRoomError:
    """The error of a mesh whose step holds more than a device may, with the largest part of it."""
    parts = {name: size for name, size in memory._asdict().items() if name != "outputs"}
    largest = max(parts, key=lambda name: parts[name])
    holds = f"subnet, pr, pc = {sizes} may take, {parts[largest]} of them {largest}"
    return NoRoomError(memory.total, limit, holds)


def by_plausibility(refused: Mapping[Sizes, Refusal]) -> dict[Sizes, str]:
    """The reason of every mesh, the most plausible mesh first."""
    ordered = sorted(refused.items(), key=lambda item: item[1][:2])
    return {sizes: found.why for sizes, found in ordered}


def distinct(refused: Mapping[Sizes, str] | Mapping[str, str]) -> list[str]:
    """Every reason once, with the first mesh that has it and the names of some others."""
    meshes: dict[str, list] = {}
    for mesh, why in refused.items():
        meshes.setdefault(_kind(why), []).append(mesh)
    whys: dict = dict(refused)
    return [f"{first}: {whys[first]}{_others(others)}" for first, *others in meshes.values()]


def _kind(why: str) -> str:
    """What is the matter, whatever the numbers."""
    return "memory_limit" if "memory_limit: " in why else re.sub(r"\d+", "#", why)


def _others(meshes: list) -> str:
    if not meshes:
        return ""
    more = f" and {len(meshes) - NAMED} more" if len(meshes) > NAMED else ""
    return f" (nor do {', '.join(map(str, meshes[:NAMED]))}{more})"
