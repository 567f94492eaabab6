"""What a round asks of methods of equal workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from jtssm import checks
from jtssm.protocol.declared import Move, Run
from jtssm.protocol.workers import WorkerProgram
from jtssm.sharding.cost.messages import SHOWN, Demand, Message, Sizes, Step, weighing
from jtssm.sharding.cost.products import Task, batched, network_tasks


def of_workers(
    program: WorkerProgram, sizes: Sizes, forms: Sequence[str], samples: int | None
) -> Step:
    """A round; pr and pc both split a worker's samples."""
    subnet, pr, pc = sizes
    checks.divides("subnet", subnet, program.num, "workers")
    checks.divides("pr * pc", pr * pc, program.round_shape[2], "samples of a worker's batch")
    local = program.num // subnet
    moves = program.declared.moves(0)
    gradient = [m for m in moves if m.axis == "pc"]
    updates = tuple((local * prod(m.shape), m.times) for m in gradient)
    axes = tuple(name for name, size in (("pr", pr), ("pc", pc)) if size > 1)
    messages = [
        Message(m.what, m.collective, axes, local * prod(m.shape), m.times, m.itemsize)
        for m in gradient
        if axes
    ]
    messages += _statistics(program, local, axes)
    messages += weighing(program, 0, axes, words=local)
    device = Demand(tuple(_local_tasks(program, local, pr * pc)), updates, tuple(messages))
    return Step((device,) * subnet, tuple(_meetings(program, moves, sizes, axes)))


def _local_tasks(program: WorkerProgram, local: int, splits: int) -> Iterable[Task]:
    """The products of `local` workers, over so many shares of their samples."""
    for work in program.declared.work(0, 0):
        assert isinstance(work, Run)
        for each in network_tasks(program.trained or program.network, work, splits):
            yield batched(each, local)


def _statistics(program: WorkerProgram, local: int, axes: tuple[str, ...]) -> Iterable[Message]:
    """Sums over the samples of `local` workers, of means and variances and of what comes back."""
    taken = program.declared.statistics()
    for each in (each for each in taken if each.over == "samples" and axes):
        for numbers in (2, 2 if each.affine else 3):  # forward, backward: as on the grid
            words = numbers * local * each.width
            yield Message("statistics", "all_reduce", axes, words, program.local_steps)


def _meetings(
    program: WorkerProgram, moves: Sequence[Move], sizes: Sizes, axes: tuple[str, ...]
) -> Iterable[Message]:
    """Deals and means over the workers, and the scalars that a round shows."""
    subnet = sizes[0]
    for m in (m for m in moves if m.axis == "subnet" and subnet > 1):
        times = program.num // subnet if m.collective == "all_to_all" else 1
        yield Message(m.what, m.collective, ("subnet",), times * prod(m.shape), m.times, m.itemsize)
    over = (*(["subnet"] if subnet > 1 else []), *axes)
    if over:
        yield Message(SHOWN, "all_reduce", over, program.declared.sums, 1)
