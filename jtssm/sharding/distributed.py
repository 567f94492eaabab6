"""Several processes, each with devices of its own: how they meet, and who holds which samples.

All of them run the same program on one global mesh; a mesh has devices of every process.
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import permutations
from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jtssm.arrays import Array, Tree, crc
from jtssm.nn.boundary import num_samples


def is_first() -> bool:
    """Whether this is the process that writes files and shows what happens."""
    return jax.process_index() == 0


def largest(value: int) -> int:
    """The largest number that a process has; all processes must ask."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.asarray(value)).max())


def told_by_all(value: Any) -> list[Any]:
    """What each process says, as JSON holds it; all processes must ask."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(len(text))).reshape(-1)
    # of few lengths, each of which compiles a program
    padded = np.zeros(max(256, 1 << (int(lengths.max()) - 1).bit_length()), np.uint8)
    padded[: len(text)] = text
    said = multihost_utils.process_allgather(padded)
    return [json.loads(a[:n].tobytes()) for a, n in zip(said, lengths, strict=True)]


def check_present(mesh: Mesh | AbstractMesh) -> None:
    """Every process has devices in the mesh.

    Raises:
      ValueError: one has none; it could not take part in what the others do.
    """
    if jax.process_count() == 1 or not isinstance(mesh, Mesh):  # an AbstractMesh is of no process
        return
    present = {device.process_index for device in mesh.devices.flat}
    absent = sorted(set(range(jax.process_count())) - present)
    if absent:
        raise ValueError(
            f"mesh: expected devices of each of the {jax.process_count()} processes, e.g. all "
            f"{jax.device_count()}; got {mesh.devices.size}, none of them of processes {absent}"
        )


def introduce(mesh: Mesh | AbstractMesh | None) -> None:
    """On CPUs let each group of devices of several processes meet alone, before programs with many.

    XLA's CPU client connects a group when its devices first exchange something. Where two processes begin
    with different groups each waits for the other, and gives up after 30 s. All processes must ask.
    """
    if not isinstance(mesh, Mesh) or jax.process_count() == 1:
        return
    if mesh.devices.flat[0].platform == "cpu":
        long = [d for d, size in enumerate(mesh.devices.shape) if size > 1]
        for num in range(1, len(long) + 1):
            for over in permutations(long, num):
                rest = [d for d in range(mesh.devices.ndim) if d not in over]
                size = prod(mesh.devices.shape[d] for d in over)
                for group in mesh.devices.transpose(*rest, *over).reshape(-1, size):
                    _meet(tuple(group))


@cache
def _meet(group: tuple[jax.Device, ...]) -> None:
    """Sum one number over devices, of which this process has some and not all."""
    here = [device for device in group if device.process_index == jax.process_index()]
    if not 0 < len(here) < len(group):
        return
    mesh = Mesh(np.array(group), ("group",))
    ones = [jax.device_put(np.ones(1, np.float32), device) for device in here]
    split = NamedSharding(mesh, PartitionSpec("group"))
    one = jax.make_array_from_single_device_arrays((len(group),), split, ones)
    total = jax.shard_map(
        lambda x: jax.lax.psum(x, "group"),
        mesh=mesh,
        in_specs=PartitionSpec("group"),
        out_specs=PartitionSpec(),
    )
    jax.block_until_ready(jax.jit(total)(one))


class ProcessSamples(NamedTuple):
    """Training samples of which each process holds a share of its own; see `jtssm.fit`.

    Every process holds equally many. Processes whose devices train on the same rows of a minibatch, as
    where only "pr" or "subnet" lies between them, hold the same samples in the same order. In a single
    process it is the pair (x, y).
    """

    x: Tree  # [samples of this process, ...], an array or a tree of them
    y: np.ndarray  # [samples of this process, ...]


class ProcessBatches(NamedTuple):
    """A stream of batches that each process has of its own, with samples of which no other need know.

    Every process takes its share of each step from its own. Those of processes whose devices train on
    the same rows of a minibatch must be the same. `fit` needs a mesh and `steps_per_epoch` with it, and
    raises ValueError without. In a single process it is the iterable.
    """

    batches: Iterable[tuple[Tree, np.ndarray]]  # (x [samples, ...], y [samples, ...])


class Shares(NamedTuple):
    """How processes share the positions of a minibatch (or of all samples that stay in place)."""

    num: int  # of shares
    mine: np.ndarray  # [positions]: where in this process's share each lies; 0 for another's
    owners: tuple[int, ...]  # of each process the share

    @property
    def size(self) -> int:
        """Positions of a share."""
        return self.mine.size // self.num


def whole(size: int) -> Shares:
    """The shares of processes which all hold everything."""
    return Shares(1, np.arange(size), (0,) * jax.process_count())


def shares(sharding: NamedSharding | None, shape: Sequence[int]) -> Shares:
    """The shares in an array of leading dimensions `shape` that lies on the mesh as `sharding` says.

    Raises:
      ValueError: no mesh, or processes whose shares overlap or differ in size.
    """
    if jax.process_count() == 1:
        return whole(prod(shape))
    if sharding is None:
        raise ValueError(
            "train: expected a mesh with ProcessSamples, e.g. make_mesh(pc=8); got none"
        )
    positions, held = np.arange(prod(shape)).reshape(shape), defaultdict(list)
    device: jax.Device
    for device, index in sharding.devices_indices_map(tuple(shape)).items():
        held[device.process_index].append(positions[index].ravel())
    parts = {process: tuple(np.unique(np.concatenate(p))) for process, p in held.items()}
    distinct = sorted(set(parts.values()))
    if sum(map(len, distinct)) != positions.size or len({len(p) for p in distinct}) > 1:
        raise ValueError(
            f"mesh: expected, with ProcessSamples, that two processes share all their rows of a "
            f"minibatch or none, and have equally many; got shares of {[len(p) for p in distinct]} of "
            f"{positions.size} rows: use another shape of mesh, or give every process all samples"
        )
    mine = np.zeros(positions.size, int)
    part = list(parts[jax.process_index()])
    mine[part] = np.arange(len(part))
    owners = tuple(distinct.index(parts[process]) for process in range(jax.process_count()))
    return Shares(len(distinct), mine, owners)


def check_shares(owners: Sequence[int], samples: ProcessSamples, check: Callable) -> int:
    """Every process's samples pass `check`, are equally many, and the same where the share is.

    All processes end here alike, with what is wrong on one of them; or with a checksum of all shares.

    Raises:
      ValueError: whatever `check` says; or the shares do not fit together.
    """
    x, y = jax.tree.map(np.asarray, tuple(samples))
    refused = None
    try:
        check(x, y)
    except ValueError as error:
        refused = error
    digest = crc((x, y))
    mine = np.asarray([refused is not None, num_samples(x), digest], np.uint32)
    said = multihost_utils.process_allgather(mine).reshape(-1, 3)
    if refused is not None:
        raise refused
    if said[:, 0].any():
        raise ValueError(
            f"train: the samples of process {said[:, 0].argmax()} are refused; see what it says"
        )
    if len(set(said[:, 1].tolist())) > 1:
        raise ValueError(
            f"train: expected equally many samples in each process; got {said[:, 1].tolist()}"
        )
    distinct = sorted(set(zip(owners, said[:, 2].tolist(), strict=True)))
    if len(distinct) > len(set(owners)):
        groups = [[p for p, o in enumerate(owners) if o == owner] for owner in sorted(set(owners))]
        raise ValueError(
            f"train: expected the same samples in processes whose devices train on the same rows of a "
            f"minibatch, on this mesh {groups}; got different ones"
        )
    return zlib.crc32(repr(distinct).encode())


def put_rows(x: Tree, rows: np.ndarray, sharding: NamedSharding | None) -> Tree:
    """x[rows] on the mesh, or on the default device; a process reads the rows of its own devices only.

    Args:
      x: an array [samples, ...] or a tree of them.
      rows: indices of samples.
      sharding: it splits none but the dimensions of rows.
    """
    return jax.tree.map(lambda a: _put_rows(a, rows, sharding), x)


def _put_rows(a: np.ndarray, rows: np.ndarray, sharding: NamedSharding | None) -> Array:
    if sharding is None or jax.process_count() == 1:
        return jax.device_put(a[rows.ravel()].reshape(*rows.shape, *a.shape[1:]), sharding)
    read: dict[tuple, np.ndarray] = {}  # devices of a process may hold the same rows

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # only of an array that nothing splits
        lead = index[: rows.ndim]
        key = tuple((s.start, s.stop) for s in lead)
        if key not in read:
            read[key] = a[rows[lead]]
        return read[key]

    return jax.make_array_from_callback((*rows.shape, *a.shape[1:]), sharding, part)
