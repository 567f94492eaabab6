"""What one step of a method asks of the devices of a mesh; each kind of program has an answer.

Nothing here knows of a machine: `jtssm.sharding.cost.seconds` prices a demand. It is made of what a
method declares (`jtssm.protocol.declared`) and of the formulas of `jtssm.sharding.layers.traffic`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

from jtssm.protocol.method import Method
from jtssm.protocol.program import Program
from jtssm.protocol.stages import StageProgram
from jtssm.protocol.whole import WholeProgram
from jtssm.protocol.workers import WorkerProgram
from jtssm.sharding.cost.demand_of_pieces import check_pc, of_stages, of_whole, step_samples
from jtssm.sharding.cost.demand_of_workers import of_workers
from jtssm.sharding.cost.messages import Sizes, Step
from jtssm.sharding.layers.choose import program_forms


def step_demand(method: Method, sizes: Sizes, forms: Sequence[str], samples: int | None) -> Step:
    """What a step of a method asks of a mesh.

    Args:
      method: unplaced or placed.
      sizes: of subnet, pr and pc.
      forms: of its layers; of no use to workers.
      samples: that a resident method keeps; others take their minibatch.

    Raises:
      ValueError: sizes that do not divide; a resident method without `samples`; pr > 1 for a method that
        splits no layers.
    """
    return _demand(method.program, sizes, forms, samples)


@singledispatch
def _demand(program: Program, sizes: Sizes, forms: Sequence[str], samples: int | None) -> Step:
    """What a step of a program asks; each kind has an answer."""
    raise NotImplementedError(type(program).__name__)


_demand.register(StageProgram, of_stages)
_demand.register(WholeProgram, of_whole)
_demand.register(WorkerProgram, of_workers)


def method_forms(
    method: Method, sizes: Sizes, forms: str | Sequence[str], samples: int | None
) -> tuple[str, ...]:
    """The forms that `jtssm.sharding.place` would give a method's layers; none for workers."""
    program = method.program
    if not program.takes_forms:
        return ()
    check_pc(program, sizes[2], step_samples(program, samples))
    return program_forms(program, sizes, forms)
