"""The mesh of three axes, and arrays laid out on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import num_samples
from jtssm.protocol.axes import AXES, AxisNames


def make_mesh(
    subnet: int = 1, pr: int = 1, pc: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of subnet x pr x pc devices (the first ones, unless `devices` are given).

    Raises:
      ValueError: a size below 1, or fewer devices than the mesh has.

    Examples:
      >>> from jtssm import sharding
      >>> mesh = sharding.make_mesh(pr=2, pc=4)  # eight devices
      >>> dict(mesh.shape)
      {'subnet': 1, 'pr': 2, 'pc': 4}
    """
    shape = checks.count(subnet=subnet, pr=pr, pc=pc)
    devices = jax.devices() if devices is None else _devices(devices)
    if prod(shape) > len(devices):
        raise ValueError(
            f"subnet * pr * pc: expected at most {len(devices)}, the number of devices; got "
            f"{' * '.join(map(str, shape))} = {prod(shape)}; on CPU more virtual devices come from "
            f"jax.config.update('jax_num_cpu_devices', {prod(shape)}) before jax is used"
        )
    devices = devices[: prod(shape)]
    # jax.make_mesh would refuse shapes that split a physical axis of a TPU slice, (2, 2, 4) on 2x2x4 say
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


def _devices(given: Sequence[jax.Device] | np.ndarray) -> list[jax.Device]:
    """Different devices, from a list or an array of them."""
    listed = isinstance(given, (list, tuple, np.ndarray))
    devices = list(np.ravel(np.asarray(given, object))) if listed else []
    if not devices or not all(hasattr(d, "platform") and hasattr(d, "id") for d in devices):
        raise ValueError(
            f"devices: expected a list of devices, e.g. jax.devices(); got {checks.shown(given)}"
        )
    if len(set(devices)) < len(devices):
        raise ValueError(
            f"devices: expected different ones, e.g. jax.devices(); got {checks.shown(given)}"
        )
    return devices


def axis_names(mesh: Mesh, axes: Mapping[str, str] | None = None) -> AxisNames:
    """How the mesh calls our axes: by the given map, else by their own names where it has them.

    None for an axis of one device, too: along it nothing differs and nothing is to be summed. (A sum over
    it would be in the program all the same, with a copy of what is summed.)

    Raises:
      ValueError: the map names an axis we or the mesh do not have, or nothing matches.
    """
    if axes is not None and not isinstance(axes, Mapping):
        raise ValueError(
            f"axes: expected None or a map from {list(AXES)} to the mesh's axes, e.g. "
            f"{{'pc': 'data'}}; got {checks.shown(axes)}"
        )
    axes = {axis: axis for axis in AXES if axis in mesh.axis_names} if axes is None else dict(axes)
    for ours, theirs in axes.items():
        checks.one_of("axes", ours, AXES)
        checks.one_of(f"axes[{ours!r}]", theirs, mesh.axis_names)
    if not axes:
        raise ValueError(
            f"axes: expected a map from {list(AXES)} to the mesh's axes {list(mesh.axis_names)}, "
            f"e.g. {{'pc': {mesh.axis_names[0]!r}}}; got none that match"
        )
    if len(set(axes.values())) < len(axes):
        raise ValueError(f"axes: expected different axes of the mesh; got {axes}")
    along = {ours: theirs for ours, theirs in axes.items() if mesh.shape[theirs] > 1}
    return AxisNames(*(along.get(axis) for axis in AXES))


def axis_size(mesh: Mesh, name: str | tuple[str, ...] | None) -> int:
    """Devices along an axis, or along several; 1 where the mesh has no such axis."""
    names = (name,) if isinstance(name, str) else name or ()
    return prod(mesh.shape[n] for n in names)


def devices_of(mesh: Mesh | AbstractMesh) -> list[jax.Device]:
    """A mesh's devices; none of an abstract one."""
    return [] if isinstance(mesh, AbstractMesh) else list(mesh.devices.flat)


@overload
def put(x: jax.ShapeDtypeStruct, mesh: Mesh, spec: PartitionSpec) -> jax.ShapeDtypeStruct: ...


@overload
def put(x: ArrayLike, mesh: Mesh, spec: PartitionSpec) -> Array: ...


def put(
    x: ArrayLike | jax.ShapeDtypeStruct, mesh: Mesh, spec: PartitionSpec
) -> Array | jax.ShapeDtypeStruct:
    """x laid out on the mesh as `spec` says; tracers on Auto axes are left to shard_map.

    Of a `jax.ShapeDtypeStruct` the same with that sharding. Of several processes each holds the whole
    value, or it lies on the devices of all of them.
    """
    sharding = NamedSharding(mesh, spec)
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    if isinstance(x, jax.core.Tracer):
        return jax.reshard(x, sharding) if AxisType.Explicit in mesh.axis_types else x
    if jax.process_count() == 1 or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        data = put(jax.random.key_data(x), mesh, spec)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    # every process hands in its part; device_put would first compare the whole value between them
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def put_samples(x: Tree, mesh: Mesh, spec: PartitionSpec) -> Tree:
    """An array, or all arrays of a tree, laid out alike; see `put`."""
    return jax.tree.map(lambda a: put(a, mesh, spec), x)


def check_split(x: Tree, pc: int) -> None:
    """pc devices can share the samples evenly."""
    samples = num_samples(x)
    if samples % pc:
        raise ValueError(
            f"x: expected a multiple of {pc} samples, which 'pc' splits; got {samples}"
        )


def predicted(
    mapped: Callable[..., Callable[..., Array]],
    forward: Callable[[Tree, Tree], Array],
    spec: Tree,
    weights: Tree,
    x: Tree,
    mesh: Mesh,
    names: AxisNames,
) -> Array:
    """forward(weights, x) with x split over pc, or whole on every device where pc does not divide it.

    Statistics over the samples at hand are then the same: no padding enters them.
    """
    pc = names.present("pc")
    split = num_samples(x) % axis_size(mesh, names.pc) == 0
    samples = names.spec("pc") if split else PartitionSpec()
    work = forward if split else lambda weights, x: lax.pmean(forward(weights, x), pc)
    return mapped(work, (spec, samples), samples)(weights, put_samples(x, mesh, samples))
