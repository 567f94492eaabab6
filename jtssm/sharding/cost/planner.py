"""Which mesh, which cuts, which form for each layer: the plan that a cost model finds fastest.

Every factorisation of the devices into subnet x pr x pc is tried; on each the layers take the forms of
the shortest path (`jtssm.sharding.cost.search`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from jtssm import checks
from jtssm.nn.network import Network
from jtssm.protocol.method import Method
from jtssm.sharding.cost.demand import step_demand
from jtssm.sharding.cost.machine_files import find_machine
from jtssm.sharding.cost.machines import Machine
from jtssm.sharding.cost.memory import Memory, step_memory
from jtssm.sharding.cost.messages import Sizes, Step, predicted_bytes
from jtssm.sharding.cost.refusals import (
    UNMADE,
    NoMeshError,
    NoRoomError,
    Refusal,
    by_plausibility,
    distinct,
    no_room,
    refusal,
)
from jtssm.sharding.cost.search import fastest_forms, held_bytes, leanest_forms
from jtssm.sharding.cost.seconds import Seconds, seconds_of
from jtssm.sharding.count.routes import Route

Build = Callable[
    [Network, int, int], Method
]  # (network, pieces or workers, batch) -> unplaced method

TRIES = 4  # of forms that are to fit in a memory limit
TOLD = 3  # most meshes of which a refusal works out what a whole step would hold


class Proposal(NamedTuple):
    """One mesh, with the best forms on it, and what a step there is predicted to take."""

    method: Method  # unplaced
    shape: Sizes  # of subnet, pr and pc
    forms: tuple[str, ...]  # one a layer; none for methods of workers
    seconds: Seconds  # a step, by cause
    bytes: dict[Route, int]  # that a device hands to collectives in a step, by collective and axes
    memory: Memory  # of a device

    @property
    def cuts(self) -> tuple[int, ...]:
        """The first layer of every subnetwork but the first; of workers none."""
        return self.method.program.stages.cuts


class Plan(NamedTuple):
    """The best proposal, those that come next, and the meshes that do not go."""

    best: Proposal
    runners_up: tuple[Proposal, ...]
    refused: dict[Sizes, str]  # with the reason; the most plausible first


def factorisations(num_devices: int) -> list[Sizes]:
    """All (subnet, pr, pc) whose product is the number of devices."""
    (num_devices,) = checks.count(num_devices=num_devices)
    divisors = checks.divisors(num_devices)
    return [
        (subnet, pr, num_devices // subnet // pr)
        for subnet in divisors
        for pr in divisors
        if num_devices // subnet % pr == 0
    ]


def plan(
    net: Network,
    num_devices: int,
    batch: int,
    machine: Machine | str,
    *,
    method: Build,
    memory_limit: float | None = None,
    overlap: float = 0.0,
    samples: int | None = None,
    runners_up: int = 4,
) -> Plan:
    """The fastest mesh of so many devices for a network, by the cost model, and those that come next.

    Args:
      net: the network.  num_devices: all are used.  batch: samples of a step's minibatch, of all devices.
      machine: one of `MACHINES`, its name, or the path of a machine file.
      method: (net, n, batch) -> the unplaced method with n subnetworks or workers, n the size of the
        "subnet" axis; it raises ValueError where there is none. `jtssm.plan` takes names of methods.
      memory_limit: bytes a device may hold; None: the machine's capacity.
      overlap: share of the products' time, 0 to 1, behind which the all-reduce of gradients may hide.
      samples: that a resident method keeps.
      runners_up: how many other meshes to return.

    Raises:
      ValueError: bad arguments, or no mesh that goes (`NoMeshError`): the distinct reasons, those of the
        most plausible mesh first, with the bytes that are missing.
    """
    checks.instance("net", net, Network, "jtssm.mlp([196, 512, 10])")
    batch, overlap, memory_limit, samples = check_numbers(batch, overlap, memory_limit, samples)
    runners_up = checks.natural("runners_up", runners_up)
    machine = find_machine(machine)
    limit = machine.capacity if memory_limit is None else memory_limit
    asked = Asked(machine, overlap, samples, limit)
    refused: dict[Sizes, Refusal] = {}
    found: list[_Candidate] = []
    narrow: dict[Sizes, Method] = {}  # whose layers alone hold too much
    build = cache(lambda subnet: method(net, subnet, batch))
    for sizes in factorisations(num_devices):
        try:
            made = build(sizes[0])
        except ValueError as error:
            refused[sizes] = Refusal(UNMADE, 0, str(error))
            continue
        try:
            found.append(_candidate(made, sizes, asked))
        except ValueError as error:
            refused[sizes] = refusal(error)
            narrow |= {sizes: made} if isinstance(error, NoRoomError) else {}
    proposals, more = _proposals(found, asked, runners_up)
    refused |= more
    if not proposals:
        _tell_whole_steps(narrow, asked, refused)
        raise NoMeshError(num_devices, "; ".join(distinct(by_plausibility(refused))))
    return Plan(proposals[0], tuple(proposals[1:]), by_plausibility(refused))


def _proposals(
    found: Sequence[_Candidate], asked: Asked, runners_up: int
) -> tuple[list[Proposal], dict[Sizes, Refusal]]:
    """The fastest that go, and of those that were tried why the others do not."""
    proposals: list[Proposal] = []
    refused: dict[Sizes, Refusal] = {}
    for candidate in sorted(found, key=lambda c: c.seconds.total):
        if len(proposals) > runners_up:
            break
        try:
            proposals.append(_fitted(candidate, asked))
        except ValueError as error:
            refused[candidate.sizes] = refusal(error)
    return proposals, refused


def _tell_whole_steps(
    narrow: dict[Sizes, Method], asked: Asked, refused: dict[Sizes, Refusal]
) -> None:
    """What whole steps would need, until that of the nearest mesh is known: layers alone need less."""
    for _ in range(TOLD):
        nearest = min(refused, key=lambda sizes: refused[sizes])
        if nearest not in narrow:
            break
        try:
            propose(narrow.pop(nearest), nearest, **asked._asdict())
        except ValueError as error:
            refused[nearest] = refusal(error)


def check_numbers(
    batch: int, overlap: float, memory_limit: float | None, samples: int | None
) -> tuple[int, float, float | None, int | None]:
    """The front door of plans and sweeps; returns them as Python's numbers."""
    (batch,) = checks.count(batch=batch)
    overlap = checks.share("overlap", overlap, 0.5, whole=True)
    if memory_limit is not None:
        (memory_limit,) = checks.positive(memory_limit=memory_limit)
    if samples is not None:
        (samples,) = checks.count(samples=samples)
    return batch, overlap, memory_limit, samples


class Asked(NamedTuple):
    """What meshes are proposed for."""

    machine: Machine
    overlap: float  # see `plan`
    samples: int | None  # that a resident method keeps
    limit: float  # bytes a device may hold


class _Candidate(NamedTuple):
    """A mesh with its forms, not yet checked."""

    method: Method
    sizes: Sizes
    forms: tuple[str, ...]
    step: Step
    seconds: Seconds


def propose(
    method: Method,
    sizes: Sizes,
    machine: Machine,
    *,
    overlap: float = 0.0,
    samples: int | None = None,
    limit: float = float("inf"),
) -> Proposal:
    """One mesh with the fastest forms that fit in `limit` bytes a device; see `plan`.

    Raises:
      ValueError: sizes that do not go, or do not fit in the limit (`NoRoomError`).
    """
    asked = Asked(machine, overlap, samples, limit)
    try:
        found = _candidate(method, sizes, asked)
    except NoRoomError:  # the step as a whole says how much is missing
        forms = leanest_forms(method, sizes, asked.machine, asked.samples)
        found = _with_forms(method, sizes, forms, asked)
    return _fitted(found, asked)


def _candidate(method: Method, sizes: Sizes, asked: Asked) -> _Candidate:
    machine, overlap, samples, limit = asked
    forms = fastest_forms(method, sizes, machine, overlap=overlap, samples=samples, limit=limit)
    return _with_forms(method, sizes, forms, asked)


def _with_forms(method: Method, sizes: Sizes, forms: tuple[str, ...], asked: Asked) -> _Candidate:
    _check_work(method, sizes, forms)
    step = step_demand(method, sizes, forms, asked.samples)
    seconds = seconds_of(asked.machine, step, sizes, overlap=asked.overlap)
    return _Candidate(method, sizes, forms, step, seconds)


def _fitted(found: _Candidate, asked: Asked) -> Proposal:
    """The proposal, once `place` takes it and its memory fits.

    Forms are chosen by a count of bytes layer by layer. What a step holds beside it (samples, variables,
    padding) is nearly the same for all forms: where it does not fit, others are chosen with so much less.
    """
    samples, limit = asked.samples, asked.limit
    proposal = _proposal(found, samples)
    for _ in range(TRIES):
        over = proposal.memory.total - limit
        if over <= 0 or found.sizes[1] == 1 or not found.forms:
            break
        held = held_bytes(found.method, found.sizes, asked.machine, found.forms, samples)
        try:
            less = asked._replace(limit=held - over)
            found = _candidate(found.method, found.sizes, less)
        except NoRoomError:
            lean = leanest_forms(found.method, found.sizes, asked.machine, samples)
            if lean == found.forms:
                break  # nothing holds less
            found = _with_forms(found.method, found.sizes, lean, asked)
        except ValueError:
            break
        proposal = _proposal(found, samples)
    if proposal.memory.total > limit:
        raise no_room(proposal.memory, found.sizes, limit)
    return proposal


def _proposal(found: _Candidate, samples: int | None) -> Proposal:
    method, sizes, forms, step, seconds = found
    memory = step_memory(method, sizes, step, forms=forms or "auto", samples=samples)
    return Proposal(method, sizes, forms, seconds, predicted_bytes(step, sizes), memory)


def _check_work(method: Method, sizes: Sizes, forms: Sequence[str]) -> None:
    """Some work is split over pr, not all of it repeated."""
    _, pr, pc = sizes
    size = method.program.batch.rows
    if not method.program.takes_forms or size is None or set(forms) != {"batch"}:
        return
    here = size // pc
    if here % pr:
        raise ValueError(
            f"pr: expected a size that divides the {here} samples on a device of pc, rows of images, or "
            f"the width of some layer: all work would be repeated; got {pr}"
        )
