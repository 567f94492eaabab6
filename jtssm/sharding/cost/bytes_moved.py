"""Bytes that a step hands to collectives, and that a device sends in it, as methods declare them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from math import prod

from jax.sharding import AbstractMesh, Mesh

from jtssm import checks
from jtssm.protocol.axes import AXES
from jtssm.protocol.declared import WORD
from jtssm.protocol.method import Method
from jtssm.protocol.program import Program
from jtssm.protocol.workers import WorkerProgram
from jtssm.sharding.cost.demand import method_forms, step_demand
from jtssm.sharding.cost.demand_of_pieces import step_samples
from jtssm.sharding.cost.messages import predicted_bytes
from jtssm.sharding.count.routes import Route, ring_share


def step_bytes(
    method: Method,
    mesh: Mesh | AbstractMesh,
    *,
    forms: str | Sequence[str] = "auto",
    samples: int | None = None,
    word: int = WORD,
) -> dict[Route, int]:
    """Bytes that a device hands to collectives in a step (of workers: a round), by route.

    Equal to `jtssm.sharding.count_bytes` of the placed step, to the byte, for elementwise optimizers.
    The loss and other scalars that a step shows are among them. With a `compute_dtype` what layers send
    is counted in it; sums of gradients and statistics, boundaries and deals stay words, and boundaries
    with a `grid` the integers that cross. A TPU in its default precision sends what only products read as
    bfloat16: there it is an upper bound. A CPU's compiler sends float32 for bfloat16: there only the
    traced program has these bytes. Processes on CPUs send the same bytes by other collectives
    (`jtssm.sharding.gloo`), the scalars that a step shows once along each axis of two devices.

    Args:
      method: unplaced.
      mesh: with axes named subnet, pr and pc; an `AbstractMesh` will do.
      forms: as in `jtssm.sharding.place`.
      samples: that a resident method keeps.
      word: bytes a number.

    Raises:
      ValueError: as `step_seconds`.
    """
    subnet, pr, pc = (dict(mesh.shape).get(axis, 1) for axis in AXES)
    sizes = (subnet, pr, pc)
    chosen = method_forms(method, sizes, forms, samples)
    return predicted_bytes(step_demand(method, sizes, chosen, samples), sizes, word)


def exchanged_bytes(method: Method, subnet: int, word: int = WORD) -> dict[str, int]:
    """Bytes that one device hands to each kind of collective along "subnet" in a round.

    A method of workers (ist, local_sgd, ensemble) on `subnet` devices: "all_to_all" is 2 S a worker,
    S the parameters of its subnet with their empty places, an N-th of which stays on it; "all_reduce"
    what all workers share, once a device. Nothing moves on one device.

    Args:
      subnet: divides the workers.
      word: bytes a number.

    Raises:
      ValueError: a method without workers, or a size that does not divide.
    """
    return _exchanged(method.program, subnet, word)


@singledispatch
def _exchanged(program: Program, subnet: int, word: int) -> dict[str, int]:
    raise ValueError(
        f"method: expected one of workers (ist, local_sgd, ensemble); got {program.name}"
    )


@_exchanged.register
def _(program: WorkerProgram, subnet: int, word: int) -> dict[str, int]:
    checks.divides("subnet", subnet, program.num, "workers")
    found = {"all_to_all": 0, "all_reduce": 0}
    for move in (m for m in program.declared.moves(0) if m.axis == "subnet" and subnet > 1):
        times = program.num // subnet if move.collective == "all_to_all" else 1
        found[move.collective] += times * prod(move.shape) * (move.itemsize or word)
    return found


def sent_bytes(method: Method, subnet: int, word: int = WORD) -> float:
    """Bytes that one of `subnet` devices sends to others in one step of the method.

    Of an all-to-all, all but the part that stays; of an all-reduce a ring's 2 (p - 1) / p. For a method
    without workers: its data parallelism, the all-reduce of the gradient over as many devices.
    """
    moved = _sent(method.program, subnet, word)
    return sum(ring_share(collective, subnet) * size for collective, size in moved.items())


@singledispatch
def _sent(program: Program, subnet: int, word: int) -> dict[str, int]:
    """Bytes by collective: of data parallelism the sums of gradients, of workers their exchange."""
    moves = program.declared.moves(step_samples(program, None))
    reduced = [m for m in moves if m.axis == "pc"]
    return {"all_reduce": sum(prod(m.shape) * m.times * word for m in reduced)}


_sent.register(WorkerProgram, _exchanged)
