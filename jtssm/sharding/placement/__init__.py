"""`place`: a method on a mesh, the same functions with shard_map inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import singledispatch

from jax.sharding import AbstractMesh, Mesh, NamedSharding

from jtssm import checks
from jtssm.protocol.method import Method
from jtssm.protocol.program import Program
from jtssm.protocol.stages import StageProgram
from jtssm.protocol.whole import WholeProgram
from jtssm.protocol.workers import WorkerProgram
from jtssm.sharding import gloo
from jtssm.sharding.distributed import check_present
from jtssm.sharding.layers.choose import program_forms
from jtssm.sharding.mesh import AxisNames, axis_names, axis_size
from jtssm.sharding.placement.comparing import agreed
from jtssm.sharding.placement.elementwise import check_elementwise
from jtssm.sharding.placement.pieces import Placing
from jtssm.sharding.placement.switch import Place
from jtssm.sharding.placement.whole import place_whole
from jtssm.sharding.placement.workers import place_workers
from jtssm.sharding.receiving import let_compute_first


def place(
    method: Method,
    mesh: Mesh,
    *,
    axes: Mapping[str, str] | None = None,
    forms: str | Sequence[str] = "auto",
) -> Method:
    """The method on a mesh: the same protocol, the same numbers, state sharded by `init`.

    Args:
      method: an unplaced method.
      mesh: from `make_mesh`, or the user's own (Auto or Explicit axes).
      axes: our axis -> the mesh's name for it, e.g. {"subnet": "stage", "pc": "data"}; by default
        the axes that bear our names. An axis the mesh lacks has size 1.
      forms: how layers are split over pr, one of `sharding.FORMS` for each ("batch", "gathered", "model",
        "scattered", "row", "domain", "paired"; `jtssm.sharding.layers.forms` says what they are);
        "auto": those that repeat least work and, of these, move least. Any layer takes "gathered": a
        device of pr holds its part of each parameter and of what the optimizer keeps for it.

    Returns:
      A method whose `params` gathers the weights in host memory (numpy) and whose other functions
      are jitted by the caller, as ever.

    Raises:
      ValueError: "subnet" is larger than the number of pieces; "pc" does not divide the batch, or the
        workers that lie along it, "pr" no layer; an optimizer that is not elementwise where
        subnetworks are split over pr; unknown names; forms that do not fit. A method of workers (ist,
        local_sgd, ensemble): "subnet" does not divide them, pr * pc (both split samples) does not
        divide their batch. Several processes: one of them has no devices in the mesh.

    With several processes all of them call `init` and `spread` of the placed method; `init` raises
    ValueError in every process where method, mesh, forms, key or versions are not the same in all.

    Where "subnet" does not divide the number of pieces n, every device has ceil(n / subnet) slots, the
    first of which stay empty: a step takes as long, and a device holds as much, as with full slots.

    Where CPUs of several processes meet, gloo's thread is made to wait for its turn (Linux: SCHED_BATCH).

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import sharding, solvers
      >>> from jtssm.data import synthetic
      >>> method = solvers.sgd(jtssm.mlp([4, 8, 3]), optimizer=optax.adam(1e-2), batch_size=40)
      >>> placed = sharding.place(method, sharding.make_mesh(pc=2))  # two devices
      >>> x, y = synthetic.separable(0, 40, 4, 3)
      >>> state = placed.init(jax.random.key(0), x, y)
      >>> state, info = jax.jit(placed.step)(state, x, y)
      >>> len(state.pace.sharding.device_set)
      2
    """
    checks.instance("method", method, Method, "solvers.sgd(net, ...)")
    checks.instance("mesh", mesh, (Mesh, AbstractMesh), "sharding.make_mesh(pc=2)")
    check_present(mesh)
    if gloo.meet(mesh):
        let_compute_first()
    return agreed(_placed(method.program, mesh, axis_names(mesh, axes), forms))


@singledispatch
def _placed(program: Program, mesh: Mesh, names: AxisNames, forms: str | Sequence[str]) -> Method:
    """A program on a mesh; each kind has an answer."""
    raise NotImplementedError(type(program).__name__)


@_placed.register
def _(program: StageProgram, mesh: Mesh, names: AxisNames, forms: str | Sequence[str]) -> Method:
    sizes = _sizes(program, mesh, names)
    chosen, stages = program_forms(program, sizes, forms), program.stages
    alike = program.declared.alike or tuple(range(stages.num))
    at = Place(stages.network, stages.starts, chosen, names, sizes, alike, gloo.meet(mesh))
    shapes = stages.network.parameter_shapes()
    for l, optimizer in enumerate(stages.optimizers if sizes[1] > 1 else ()):
        check_elementwise(at, l, optimizer, shapes)
    return Placing(program, mesh, at).method()


@_placed.register
def _(program: WholeProgram, mesh: Mesh, names: AxisNames, forms: str | Sequence[str]) -> Method:
    chosen = program_forms(program, _sizes(program, mesh, names), forms)
    return place_whole(program, mesh, names, chosen)


@_placed.register
def _(program: WorkerProgram, mesh: Mesh, names: AxisNames, forms: str | Sequence[str]) -> Method:
    program_forms(program, (1, 1, 1), forms)  # refuses any
    return place_workers(program, mesh, names)


def _sizes(program: Program, mesh: Mesh, names: AxisNames) -> tuple[int, int, int]:
    """Of the three axes, which a program of pieces can be split over."""
    subnet, pr, pc = (axis_size(mesh, name) for name in names)
    num, size, workers = program.stages.num, program.batch.rows, program.batch.workers
    if subnet > num:
        raise ValueError(
            f"mesh: expected a 'subnet' axis of at most {num}, the number of pieces that "
            f"{program.name} has; got {subnet}"
        )
    if pr > 1 and not program.declared.splits_layers:
        raise ValueError(
            f"mesh: expected pr=1, {program.called} does not split layers; got {pr}: use subnet or pc"
        )
    if workers is not None and workers % pc:
        raise ValueError(f"mesh: expected a 'pc' axis that divides workers={workers}; got {pc}")
    if workers is None and size is not None and size % pc:
        of = "batch_size" if program.batch.microbatches == 1 else "batch_size / microbatches"
        raise ValueError(f"mesh: expected a 'pc' axis that divides {of}={size}; got {pc}")
    return subnet, pr, pc


def num_splits(method: Method) -> int:
    """Over how many devices the samples are split; 1 for an unplaced method."""
    at = method.placement
    return 1 if at is None else axis_size(at.mesh, at.axes.pc)


def batch_sharding(method: Method, stacked: bool = False) -> NamedSharding | None:
    """How a minibatch (`stacked`: a chunk of them) lies on the mesh; None for an unplaced method."""
    at = method.placement
    if at is None:
        return None
    spec = at.axes.spec(*([None] if stacked else []), *method.batch_axes)
    return NamedSharding(at.mesh, spec)


def samples_sharding(method: Method) -> NamedSharding | None:
    """How samples [samples, ...] that pc splits lie on the mesh; None for an unplaced method."""
    at = method.placement
    return None if at is None else NamedSharding(at.mesh, at.axes.spec("pc"))
