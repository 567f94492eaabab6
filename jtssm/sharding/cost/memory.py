"""What a device of a mesh holds in a step of a method, in bytes.

    arguments     the state and the minibatch as a step takes them: exact, `memory_analysis()` agrees
    outputs       the state and the scalars that a step gives back: exact
    temporaries   an upper bound of what lives in between: gradients and what the optimizer makes of them,
                  and of every layer its inputs and outputs as they lie here, what lies between its
                  products, and what is gathered for it with the gradient of that: of all layers at a
                  time, as on CPUs

A compiler may keep less (it fuses, and frees early): the bound is at most 4 times what XLA takes on
the cases of the tests. Donated arguments share their bytes with outputs: `total` counts them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import jax
from jax import ShapeDtypeStruct as Shaped
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.tree_util import PyTreeDef
from optax import GradientTransformation

from jtssm.arrays import Tree
from jtssm.protocol.declared import WORD
from jtssm.protocol.device_memory import held
from jtssm.protocol.method import Method
from jtssm.protocol.program import Program
from jtssm.protocol.stages import StageProgram
from jtssm.sharding.cost.demand_of_pieces import Layered, slots
from jtssm.sharding.cost.messages import Demand, Sizes, Step
from jtssm.sharding.mesh import AXES
from jtssm.sharding.placement import batch_sharding, place


class Memory(NamedTuple):
    """Bytes of one device."""

    weights: int  # parameters
    optimizer: int  # its state
    variables: (
        int  # what else a state holds: ADMM variables, samples in flight, keys, padding of rows
    )
    samples: int  # x and y of a step
    outputs: int  # the state again, and the scalars that a step shows
    # with what the optimizer makes of them, and its state where it starts anew in a step: an upper bound
    gradients: int
    activations: int  # of all layers, with what is gathered for them: an upper bound
    # of a pipeline, inputs of microbatches that are kept until they run backward, and what pieces tell
    # each other
    microbatches: int
    halo: int  # rows of neighbours' images that arrive, and their gradients
    copies: int  # of a state that is packed in rows, or dealt: as it is used; an upper bound

    @property
    def arguments(self) -> int:
        """What a step is given."""
        return self.weights + self.optimizer + self.variables + self.samples

    @property
    def temporaries(self) -> int:
        """An upper bound of what lives within a step."""
        return self.gradients + self.activations + self.microbatches + self.halo + self.copies

    @property
    def total(self) -> int:
        """The most that a device needs where the state is donated: its bytes serve as outputs."""
        return self.arguments + self.temporaries


WITH_GRADIENT = 2  # parameters that are gathered, and their gradient before it is scattered
COPIES = 2  # of what is copied, as it is used and as it comes back
GRADIENTS = 3  # for each parameter: its gradient, its update, its new value
ADDED = 2  # and the sum of those of all microbatches, here and on all devices
TOLD = 4  # of what a piece takes, or gives: as it is made, in rows, as it is sent, as it arrives


def step_memory(
    method: Method,
    sizes: Sizes,
    step: Step,
    *,
    forms: str | Sequence[str] = "auto",
    samples: int | None = None,
) -> Memory:
    """What one device holds in a step on subnet x pr x pc devices; float32 samples, integer labels.

    Args:
      method: unplaced.
      sizes: of subnet, pr and pc.
      step: what it asks, `jtssm.sharding.cost.demand.step_demand`.
      forms: as in `jtssm.sharding.place`.
      samples: that a resident method keeps.

    Raises:
      ValueError: as `jtssm.sharding.place`.
    """
    _, state, given = placed_step(method, sizes, forms, samples)
    program = method.program
    named = {name: held(getattr(state, name)) for name in state._fields}
    kept = sum(named.pop(name) for name in program.weight_fields)
    rest, info = sum(named.values()), WORD * (3 + len(program.declared.shows))
    trained = WORD * max(
        round(sum(words for words, _ in device.updates)) for device in step.devices
    )
    weights, fresh = trained, 0.0
    if program.renews_optimizer:
        (optimizer,) = program.stages.optimizers
        weights = sum(held(getattr(state, name)) for name in ("homes", "shared"))
        fresh = trained * _state_words(optimizer, program.network.parameter_shapes())
    return Memory(
        weights,
        kept - weights,
        rest,
        held(given),
        kept + rest + info,
        gradients=(GRADIENTS + ADDED * program.declared.sums_once) * trained + round(fresh),
        activations=round(max(activation_bytes(device) for device in step.devices)),
        microbatches=microbatch_bytes(program, sizes),
        halo=round(max(halo_bytes(device) for device in step.devices)),
        copies=_copies(program, rest, kept),
    )


def _copies(program: Program, rest: int, kept: int) -> int:
    """Of weights and optimizer states of so many bytes, and what else a state holds; an upper bound."""
    if not program.copies_state:
        return 0
    # what changes in a loop of microbatches, where unequal pieces share arrays
    in_loop = program.batch.microbatches > 1
    return COPIES * (rest + kept * copies_weights(program)) + kept * in_loop


def copies_weights(program: Program) -> bool:
    """Whether a step takes its weights from where they lie and puts them back: those of pieces that are
    batched lie in rows, those of workers are shared, or dealt; others change in place."""
    pieces = isinstance(program, StageProgram) and not program.declared.apart
    return program.copies_state and not (pieces and program.declared.alike is None)


def activation_bytes(demand: Demand) -> float:
    """What the passes of a step hold beside the weights: an upper bound."""
    # the gradients of what lies within a layer, and copies, are of one layer at a time
    inner = max(((task.held - 1) * task.between for task in demand.tasks), default=0.0)
    return kept_bytes(demand) + WORD * inner


def kept_bytes(demand: Demand) -> float:
    """Of `activation_bytes` what adds up from layer to layer."""
    words = lambda task: task.held * task.activations + task.between + WITH_GRADIENT * task.gathered
    return WORD * sum(map(words, demand.tasks))


def microbatch_bytes(program: Program, sizes: Sizes) -> int:
    """Of microbatches between two pieces, or that wait in one; of every slot the largest piece's."""
    declared, stages, batch = program.declared, program.stages, program.batch
    if not declared.stored or batch.rows is None:
        return 0
    here, lie = batch.rows // sizes[2], slots(program, sizes[0])
    inputs = [held(stages.arriving(l)) for l in range(stages.num)]
    told = TOLD * max(a + b for a, b in zip(inputs, [*inputs[1:], 0], strict=True))
    each = zip(declared.stored, inputs, strict=True)
    kept = [(most, size if most else 0) for most, size in each]
    waiting = ([kept[l] for l in lie.at_slot(slot)] for slot in range(lie.local))
    lines = sum(max(ticks for ticks, _ in of) * max(size for _, size in of) for of in waiting)
    return here * (lie.local * told + lines)


def halo_bytes(demand: Demand) -> float:
    """What neighbours send of their images' rows."""
    return WORD * sum(m.words for m in demand.messages if m.what == "domain")


def optimizer_words(layered: Layered) -> list[float]:
    """Words of the optimizer's state for each parameter, piece by piece."""
    stages = layered.program.stages
    pieces = zip(stages.optimizers, stages.by_piece(layered.params), strict=True)
    return [_state_words(optimizer, params) for optimizer, params in pieces]


def _state_words(optimizer: GradientTransformation, params: Sequence[Tree]) -> float:
    """Words of an optimizer's state for each parameter."""
    leaves, structure = jax.tree.flatten(list(params))
    own = sum(prod(a.shape) for a in leaves)
    return _state_size(optimizer.init, tuple(leaves), structure) / own if own else 0.0


@lru_cache(maxsize=64)
def _state_size(init: Callable, leaves: tuple[Shaped, ...], structure: PyTreeDef) -> int:
    """Words of what an optimizer starts with; a planner asks again and again."""
    state = jax.eval_shape(init, jax.tree.unflatten(structure, leaves))
    return sum(prod(a.shape) for a in jax.tree.leaves(state))


# shapes of states, by the method's init: a planner asks for the same on every mesh
_STATES: WeakKeyDictionary[Callable, dict[tuple[PyTreeDef, tuple[Shaped, ...]], Tree]] = (
    WeakKeyDictionary()
)


def _state_shapes(method: Method, x: Tree, y: Shaped) -> Tree:
    """The state of an unplaced method that starts from samples of these shapes."""
    known = _STATES.setdefault(method.init, {})
    leaves, structure = jax.tree.flatten((x, y))
    key = (structure, tuple(leaves))
    if key not in known:
        start = lambda x, y: method.init(jax.random.key(0), x, y)
        known[key] = jax.eval_shape(start, x, y)
    return known[key]


def placed_step(
    method: Method,
    sizes: Sizes,
    forms: str | Sequence[str],
    samples: int | None,
    mesh: Mesh | None = None,
) -> tuple[Method, Tree, tuple[Tree, Shaped]]:
    """The method on a mesh, and its state and samples as shapes with shardings: nothing is computed.

    mesh: None: an abstract one of those sizes, which no device has to be there for.
    """
    abstract = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)
    placed = place(
        method, mesh or cast(Mesh, abstract), forms=forms if method.program.takes_forms else "auto"
    )
    lead: tuple = method.batch_shape or (samples,)
    state = _state_shapes(method, *method.program.samples_like((prod(lead),)))
    sharding = batch_sharding(placed)
    laid = lambda a: Shaped(a.shape, a.dtype, sharding=sharding)
    return placed, placed.spread(state), jax.tree.map(laid, method.program.samples_like(lead))
