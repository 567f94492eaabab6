"""What is asked of the devices of a mesh, as data: products, updates, messages and their bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from jtssm.protocol.declared import WORD
from jtssm.protocol.program import Program
from jtssm.sharding.cost.products import Task
from jtssm.sharding.count.routes import Route


class Message(NamedTuple):
    """What one device hands to a collective."""

    what: str
    collective: str
    axes: tuple[str, ...]
    words: float
    times: float  # in a step
    itemsize: int | None = None  # bytes of a number; None: a word
    step: int = 0  # of a permute between slabs: 1 to the device after, -1 to the one before
    source: int | None = None  # along "subnet", of a permute between pieces


class Demand(NamedTuple):
    """What a step asks of one device."""

    tasks: tuple[Task, ...] = ()
    updates: tuple[tuple[float, float], ...] = ()  # (parameters that an optimizer renews, times)
    messages: tuple[Message, ...] = ()
    beside: float = (
        0.0  # numbers read and written beside products and the optimizer's: `Run.beside`
    )

    def __add__(self, other: Demand) -> Demand:  # type: ignore[override]
        return Demand(
            self.tasks + other.tasks,
            self.updates + other.updates,
            self.messages + other.messages,
            self.beside + other.beside,
        )


class Step(NamedTuple):
    """What a step asks of a mesh."""

    devices: tuple[Demand, ...]  # of each position along "subnet"
    between: tuple[Message, ...]  # boundaries, sums, deals
    swaps: bool = False  # whether neighbours along "subnet" tell each other at once
    turns: int = 1  # how often devices wait for one whose optimizer steps


SHOWN = "sums"  # the scalars that a step shows
Sizes = tuple[int, int, int]  # of subnet, pr, pc


def weighing(
    program: Program, samples: int, axes: tuple[str, ...], words: int = 1
) -> tuple[Message, ...]:
    """The sums of a loss' weights over the devices that split a minibatch; none of a loss without.

    Args:
      samples: of a step, of a resident method.
      axes: over which it is split.
      words: minibatches at a time.
    """
    if program.loss.weight is None or not axes:
        return ()
    times = program.declared.weighings(samples)
    return (Message("weights of the loss", "all_reduce", axes, words, times),)


def predicted_bytes(step: Step, sizes: Sizes, word: int = WORD) -> dict[Route, int]:
    """Bytes that a device hands to collectives, by route: of the device along subnet that moves most."""
    pr = sizes[1]
    inside = max((_by_route(d.messages, pr, word) for d in step.devices), key=_size)
    shared = _by_route((m for m in step.between if m.source is None), pr, word)
    sent: dict[Route, dict[int | None, int]] = {}
    for m in (m for m in step.between if m.source is not None):
        by_device = sent.setdefault(Route(m.collective, m.axes), {})
        by_device[m.source] = by_device.get(m.source, 0) + message_bytes(m, word)
    crossing = {route: max(by_device.values()) for route, by_device in sent.items()}
    found = (inside, shared, crossing)
    return {r: sum(f.get(r, 0) for f in found) for r in dict.fromkeys(r for f in found for r in f)}


def message_bytes(m: Message, word: int) -> int:
    """Bytes of all its repetitions."""
    return round(m.words * m.times * (m.itemsize or word))


def _by_route(messages: Iterable[Message], pr: int, word: int) -> dict[Route, int]:
    ways: dict[Route, dict[int, int]] = {}
    for m in messages:
        way = ways.setdefault(Route(m.collective, m.axes), {})
        way[m.step] = way.get(m.step, 0) + message_bytes(m, word)
    most = max if pr == 2 else sum  # of two devices each has a single neighbour
    return {route: most(way.values()) for route, way in ways.items() if any(way.values())}


def _size(found: dict[Route, int]) -> tuple[int, list[tuple[Route, int]]]:
    return sum(found.values()), sorted(found.items())
