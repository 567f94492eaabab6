"""The step of every method, compiled for TPUs that are not there: run by `make test-tpu`.

libtpu compiles for a topology that is only described, so what is read here is what a TPU would be
given; nothing runs. A program's text is that of one device. The body of a loop stands in it once:
programs for TPUs, unlike those for CPUs, do not say how often a loop runs.
"""

import functools
import importlib.util
import os
import sys
from collections import defaultdict
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

import jtssm
from jtssm import sharding, solvers
from jtssm.sharding import cost, counting


def missing() -> str:
    """Why nothing can be compiled for a TPU here, found without importing libtpu; "" if it can."""
    if os.environ.get("JTSSM_TPU") != "1":
        return "not asked for: make test-tpu compiles for TPUs"
    if sys.version_info < (3, 12):
        return "Python too old: libtpu needs 3.12 or later; PYTHON=python3.13 make test-tpu"
    if importlib.util.find_spec("libtpu") is None:
        return "libtpu is not installed: make test-tpu makes an environment that has it"
    return ""


if reason := missing():
    pytest.skip(reason, allow_module_level=True)

# name -> what describes it beside its name. megacore: one device a chip, as on a host of v4; jax
# makes no mesh of its single cores
TOPOLOGIES = {"v5e:2x4": {}, "v5e:4x4": {}, "v4:2x2x2": {"chip_config_name": "megacore"}}


class Row(NamedTuple):
    """A method, where it is laid out, and what then crosses the mesh."""

    method: Any
    shapes: dict[int, tuple[int, int, int]]  # number of devices -> subnet, pr, pc
    # axes of the mesh, joined by "+" -> kinds of the collectives along them, all of them; those of
    # no more than a step's Info (`SCALARS`) are left out
    crosses: dict[str, set[str]]


FEATURES, CLASSES, SAMPLES = 64, 10, 256
NET = jtssm.mlp([FEATURES, 128, 256, 256, 128, 128, CLASSES])
ADAM = optax.adam(1e-3)
BATCH = {"optimizer": ADAM, "batch_size": 64}
ROUND = {"optimizer": ADAM, "batch_size": 16, "local_steps": 3}

LAYERS_SPLIT = {8: (1, 2, 4), 16: (1, 2, 8)}
ALL_AXES = {8: (2, 2, 2), 16: (4, 2, 2)}
NO_LAYER_SPLIT = {8: (2, 1, 4), 16: (2, 1, 8)}
WORKERS = {8: (4, 1, 2), 16: (4, 1, 4)}

# outputs of a layer are gathered over pr, and dX is summed over it; gradients are summed over pc
SPLIT = {"pr": {"all_gather", "all_reduce"}, "pc": {"all_reduce"}}
BOUNDARIES = {"subnet": {"permute"}, "pc": {"all_reduce"}}
# of sgd alone, whose layers take the forms that move least: some sums are scattered
FORMS = SPLIT | {"pr": {"all_gather", "all_reduce", "reduce_scatter"}}

METHODS = {
    "sgd": Row(solvers.sgd(NET, **BATCH), LAYERS_SPLIT, FORMS),
    "gsadmm": Row(solvers.gsadmm(NET, subnets=4, **BATCH), ALL_AXES, BOUNDARIES | SPLIT),
    "gsadmm, stored": Row(
        solvers.gsadmm(NET, subnets=4, schedule="stored", **BATCH), ALL_AXES, BOUNDARIES | SPLIT
    ),
    "gsam, 2 sweeps": Row(
        solvers.gsam(NET, subnets=4, sweeps=2, **BATCH), ALL_AXES, BOUNDARIES | SPLIT
    ),
    "gsam, stored": Row(
        solvers.gsam(NET, subnets=4, schedule="stored", **BATCH), ALL_AXES, BOUNDARIES | SPLIT
    ),
    "pdadmm": Row(solvers.pdadmm(NET), NO_LAYER_SPLIT, BOUNDARIES),
    "pdadmm, 8 bits": Row(solvers.pdadmm(NET, grid=8), NO_LAYER_SPLIT, BOUNDARIES),
    "ist": Row(
        solvers.ist(NET, subnets=4, **ROUND),
        WORKERS,
        {"subnet": {"all_to_all", "all_reduce"}, "pc": {"all_reduce"}},
    ),
    "local_sgd": Row(
        solvers.local_sgd(NET, workers=4, **ROUND),
        WORKERS,
        {"subnet": {"all_reduce"}, "pc": {"all_reduce"}},
    ),
    "ensemble": Row(solvers.ensemble(NET, members=4, **ROUND), WORKERS, {"pc": {"all_reduce"}}),
}
SCALARS = 4 * len(jtssm.Info._fields)  # bytes of a step's Info, which all devices share
# Of what the shards of a step's arguments take on their own. A TPU stores matrices in tiles of 8 x 128:
# the 10 columns of an output layer take as much as 128.
PADDING = 1.2


class Program(NamedTuple):
    """A step compiled for a mesh of TPUs, and the shapes and shardings of its arguments."""

    compiled: Any
    mesh: Mesh
    state: Any
    samples: tuple

    @property
    def text(self) -> str:
        return self.compiled.as_text()


@pytest.fixture(autouse=True)
def float32():
    """tests/conftest.py turns float64 on, of which TPUs have none."""
    with jax.enable_x64(False):
        yield


def every(names=METHODS):
    """A test of these methods on all topologies."""
    cells = [(topology, name) for topology in TOPOLOGIES for name in names]
    return pytest.mark.parametrize(("topology", "name"), cells)


@functools.cache
def devices(topology):
    options = TOPOLOGIES[topology]
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices


@functools.cache
def program(topology, name):
    """The method's step for the topology; compiled once for all tests."""
    row, tpus = METHODS[name], devices(topology)
    mesh = sharding.make_mesh(*row.shapes[len(tpus)], devices=tpus)
    placed = sharding.place(row.method, mesh)
    state, samples = abstract_state(row.method, mesh), abstract_samples(placed)
    compiled = jax.jit(placed.step, donate_argnums=0).lower(state, *samples).compile()
    return Program(compiled, mesh, state, samples)


def abstract_state(method, mesh):
    """Shapes and shardings of the placed state. Nothing is computed: there is no device to do it.

    On a mesh of Explicit axes shardings go with the shapes; they are read off there.
    """
    explicit = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Explicit,) * 3)
    placed = sharding.place(method, explicit)
    everywhere = NamedSharding(explicit, jax.P())
    shape = lambda *args: jax.ShapeDtypeStruct(*args, sharding=everywhere)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (
        shape(key.shape, key.dtype),
        shape((SAMPLES, FEATURES), np.float32),
        shape((SAMPLES,), np.int32),
    )
    state = jax.eval_shape(lambda *args: placed.spread(placed.init(*args)), *arguments)
    laid = lambda a: NamedSharding(mesh, a.sharding.spec)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=laid(a)), state)


def abstract_samples(placed):
    """What a step takes: a minibatch, a round of them, or all samples."""
    leading = (SAMPLES,) if placed.resident else placed.batch_shape
    laid = sharding.batch_sharding(placed)
    shape = lambda *args: jax.ShapeDtypeStruct(*args, sharding=laid)
    return shape((*leading, FEATURES), np.float32), shape(leading, np.int32)


def shard_bytes(tree):
    """Bytes that one device holds of a tree, without padding."""
    size = lambda a: int(np.prod(a.sharding.shard_shape(a.shape))) * a.dtype.itemsize
    return sum(map(size, jax.tree.leaves(tree)))


def along(mesh, group):
    """The axes along which the devices of a group differ, joined by "+"."""
    places = np.array(np.unravel_index(group, mesh.devices.shape))
    differ = (places != places[:, :1]).any(axis=1)
    return "+".join(axis for axis, d in zip(mesh.axis_names, differ, strict=True) if d)


def crossing(topology, name):
    """Bytes that a device hands in along axes of the mesh: {axes: {kind: bytes}}."""
    found, mesh = defaultdict(lambda: defaultdict(int)), program(topology, name).mesh
    text = program(topology, name).text
    for c in filter(lambda c: c.moves, counting.collectives(text)):
        found[along(mesh, c.groups[0])][c.kind] += c.bytes
    for p in counting.permutes(text):
        found[along(mesh, p.pairs[0])]["permute"] += p.bytes
    return found


@every()
def test_the_step_compiles_for_all_devices_of_the_topology(topology, name):
    compiled, mesh, *_ = program(topology, name)
    text = compiled.as_text()
    assert {d.platform for d in mesh.devices.flat} == {"tpu"}
    assert f"num_partitions={len(devices(topology))}" in text
    assert ":T(8,128)" in text  # laid out in the tiles of a TPU
    assert "f64[" not in text


@every()
def test_only_declared_collectives_cross_each_axis(topology, name):
    kinds = {
        axes: {kind for kind, size in sizes.items() if size > SCALARS}
        for axes, sizes in crossing(topology, name).items()
    }
    assert {axes: found for axes, found in kinds.items() if found} == METHODS[name].crosses


@every()
def test_boundaries_are_crossed_by_the_declared_bytes(topology, name):
    """By neighbours' permutes, all pairs together; each of the pr devices sends a copy of its own."""
    method, mesh = METHODS[name].method, program(topology, name).mesh
    subnet, pr = mesh.shape["subnet"], mesh.shape["pr"]
    num = SAMPLES if method.resident else method.parts.batch_size
    sent = [m for m in method.moves(num) if (m.axis, m.collective) == ("subnet", "permute")]
    if sent:
        slots = -(-(len(method.parts.starts) - 1) // subnet)
        sent = [m for m in sent if m.source // slots != m.target // slots]
    declared = sum(int(np.prod(m.shape)) * m.times * (m.itemsize or 4) for m in sent)
    found = [
        p for p in counting.permutes(program(topology, name).text)
        if along(mesh, p.pairs[0]) == "subnet"
    ]  # fmt: skip
    assert sum(p.bytes * len(p.pairs) for p in found) == pr * declared


@every(["ist", "local_sgd", "ensemble"])
def test_workers_exchange_the_declared_bytes(topology, name):
    subnet = program(topology, name).mesh.shape["subnet"]
    declared = cost.exchanged_bytes(METHODS[name].method, subnet)
    found = crossing(topology, name)["subnet"]
    assert {kind: found[kind] for kind in declared} == declared


@every()
def test_gradients_are_summed_over_the_samples_as_declared(topology, name):
    """A step's scalars may travel with them, and norms of ADMM, which the declaration leaves out."""
    method, mesh = METHODS[name].method, program(topology, name).mesh
    num = SAMPLES if method.resident else method.parts.batch_size
    loops = getattr(method.parts, "passes", None) is None  # over local steps, or over minibatches
    declared = sum(
        4 * int(np.prod(m.shape)) * (1 if loops else m.times)
        for m in method.moves(num) if m.axis == "pc"
    ) / mesh.shape["pr"]  # fmt: skip
    found = crossing(topology, name)["pc"]["all_reduce"]
    assert declared <= found <= 1.01 * declared + SCALARS


@every()
def test_a_device_holds_its_shards_and_little_padding(topology, name):
    compiled, _, state, samples = program(topology, name)
    memory, shards = compiled.memory_analysis(), shard_bytes((state, samples))
    assert shards <= memory.argument_size_in_bytes <= PADDING * shards


@every()
def test_a_donated_state_is_updated_in_place_where_it_lies(topology, name):
    compiled, _, state, _ = program(topology, name)
    assert compiled.memory_analysis().alias_size_in_bytes >= shard_bytes(state)
    after = jax.tree.leaves(compiled.output_shardings[0])
    for a, to in zip(jax.tree.leaves(state), after, strict=True):
        assert to.is_equivalent_to(a.sharding, len(a.shape))
