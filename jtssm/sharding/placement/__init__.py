"""`place`: a method on a mesh, the same functions with shard_map inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax.sharding import AbstractMesh, Mesh, NamedSharding

from jtssm import checks
from jtssm.protocol.method import Method
from jtssm.protocol.pieces import Parts
from jtssm.protocol.workers import WorkerParts
from jtssm.sharding.distributed import check_present
from jtssm.sharding.layers.choose import choose_forms
from jtssm.sharding.mesh import axis_names, axis_size
from jtssm.sharding.placement.pieces import Placing, check_elementwise
from jtssm.sharding.placement.switch import Place
from jtssm.sharding.placement.whole import place_whole
from jtssm.sharding.placement.workers import place_workers


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
        "auto": those that repeat least work and, of these, move least.

    Returns:
      A method whose `params` gathers the weights in host memory (numpy) and whose other functions
      are jitted by the caller, as ever.

    Raises:
      ValueError: "subnet" is larger than the number of pieces; "pc" does not divide the batch, "pr" no
        layer; an optimizer that is not elementwise where subnetworks are split over pr; unknown names;
        forms that do not fit. A method of workers (ist, local_sgd, ensemble): "subnet" does not divide
        them, pr * pc (both split samples) does not divide their batch. Several processes: one of them
        has no devices in the mesh.

    Where "subnet" does not divide the number of pieces n, every device has ceil(n / subnet) slots, the
    last of which stay empty: a step takes as long, and a device holds as much, as with full slots.

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
    parts = method.parts
    names = axis_names(mesh, axes)
    check_present(mesh)
    if isinstance(parts, WorkerParts):
        if not isinstance(forms, str) or forms != "auto":
            raise ValueError(
                f"forms: expected 'auto', {parts.name} splits no layer; got {checks.shown(forms)}"
            )
        return place_workers(method, mesh, names)
    sizes = axis_size(mesh, names.subnet), axis_size(mesh, names.pr), axis_size(mesh, names.pc)
    _check_sizes(parts, sizes)
    samples = None if parts.batch_size is None else parts.batch_size // sizes[2]
    whole = parts.gradient is not None
    forms = choose_forms(
        parts.network, parts.starts, samples, sizes[1], sizes[2], forms,
        apart=sizes[0] > 1, open_ends=whole, compute_dtype=parts.compute_dtype,
    )  # fmt: skip
    if whole:
        return place_whole(method, mesh, names, forms)
    net = parts.network
    shapes = net.parameter_shapes()
    alike = parts.alike or tuple(range(len(parts.starts) - 1))
    at = Place(net, parts.starts, forms, names, sizes, alike)
    for l, optimizer in enumerate(parts.optimizers if sizes[1] > 1 else ()):
        check_elementwise(at, l, optimizer, shapes)
    return Placing(parts, mesh, at).method(method)


def _check_sizes(parts: Parts, sizes: Sequence[int]) -> None:
    subnet, pr, pc = sizes
    num = len(parts.starts) - 1
    if subnet > num:
        raise ValueError(
            f"mesh: expected a 'subnet' axis of at most {num}, the number of pieces that "
            f"{parts.name} has; got {subnet}"
        )
    if pr > 1 and not parts.splits_layers:
        raise ValueError(
            f"mesh: expected pr=1, {parts.name} does not split layers; got {pr}: use subnet or pc"
        )
    if parts.batch_size is not None and parts.batch_size % pc:
        raise ValueError(
            f"mesh: expected a 'pc' axis that divides batch_size={parts.batch_size}; got {pc}"
        )


def num_splits(method: Method) -> int:
    """Over how many devices the samples are split; 1 for an unplaced method."""
    return 1 if method.mesh is None else axis_size(method.mesh, method.axes.pc)


def batch_sharding(method: Method, stacked: bool = False) -> NamedSharding | None:
    """How a minibatch (`stacked`: a chunk of them) lies on the mesh; None for an unplaced method."""
    if method.mesh is None:
        return None
    axes = method.batch_axes or ("pc",)
    return NamedSharding(method.mesh, method.axes.spec(*([None] if stacked else []), *axes))


def samples_sharding(method: Method) -> NamedSharding | None:
    """How samples [samples, ...] that pc splits lie on the mesh; None for an unplaced method."""
    return None if method.mesh is None else NamedSharding(method.mesh, method.axes.spec("pc"))
