"""The step of every method, compiled for TPUs that are not there: run by `make test-tpu`.

libtpu compiles for a topology that is only described, so what is read here is what a TPU would be
given; nothing runs. A program's text is that of one device, its lines in the order they run in. The
body of a loop stands in it once: programs for TPUs, unlike those for CPUs, do not say how often.
"""

import functools
import importlib.util
import os
import re
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
from jtssm.nn import images
from jtssm.nn.network import sequence
from jtssm.nn.perceptrons import dense
from jtssm.sharding import cost
from jtssm.sharding.count import hlo, hlo_text
from jtssm.sharding.layers.halo import Halo
from jtssm.sharding.layers.questions import window
from jtssm.sharding.mesh import AXES
from jtssm.sharding.slots import Slots


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

TOPOLOGIES = ("v5e:2x4", "v5e:4x4", "v4:2x2x2")


class Row(NamedTuple):
    """A method, where it is laid out, and what then crosses the mesh."""

    method: Any
    shapes: dict[int, tuple[int, int, int]]  # number of devices -> subnet, pr, pc
    # axes of the mesh, joined by "+" -> kinds of the collectives along them, all of them; those of
    # no more than a step's Info (`SCALARS`) are left out
    crosses: dict[str, set[str]]
    forms: Any = "auto"
    # Of what the shards of a step's arguments take on their own. A TPU stores matrices in tiles of
    # 8 x 128: the 10 columns of an output layer take as much as 128.
    padding: float = 1.2


# In jax's default precision a TPU multiplies bfloat16, and what only products read is sent as such:
# half the bytes, which no declaration knows of. See `LARGE`.
EXACT = {"precision": "highest"}
FEATURES, CLASSES, SAMPLES = 64, 10, 256
NET = jtssm.mlp([FEATURES, 128, 256, 256, 128, 128, CLASSES])
ADAM = optax.adam(1e-3)
CLIPPED = optax.chain(optax.clip_by_global_norm(1.0), ADAM)
BATCH = {"optimizer": ADAM, "batch_size": 64, **EXACT}
ROUND = {"optimizer": ADAM, "batch_size": 16, "local_steps": 3, **EXACT}

LAYERS_SPLIT = {8: (1, 2, 4), 16: (1, 2, 8)}
IMAGES_SPLIT = {8: (1, 2, 4), 16: (1, 4, 4)}  # of four slabs the inner ones have two neighbours
ALL_AXES = {8: (2, 2, 2), 16: (4, 2, 2)}
TWO_PIECES = {8: (2, 2, 2), 16: (2, 4, 2)}
NO_LAYER_SPLIT = {8: (2, 1, 4), 16: (2, 1, 8)}
WORKERS = {8: (4, 1, 2), 16: (4, 1, 4)}

# outputs of a layer are gathered over pr, and dX is summed over it; gradients are summed over pc
SPLIT = {"pr": {"all_gather", "all_reduce"}, "pc": {"all_reduce"}}
BOUNDARIES = {"subnet": {"permute"}, "pc": {"all_reduce"}}
# of sgd alone, whose layers take the forms that move least: some sums are scattered
FORMS = SPLIT | {"pr": {"all_gather", "all_reduce", "reduce_scatter"}}
# weights that are whole on devices which have other rows, or other samples, along pr
WHOLE = {"pr+pc": {"all_reduce"}}

IMAGES = images.convnet((16, 16, 8), CLASSES, channels=(16, 32), hidden=(64,))
DOMAIN = ["domain"] * 4 + ["model", "row"]
CONVOLUTIONS = sequence(
    [*(images.convolution(c, 3, 2, "SAME", jax.nn.relu) for c in (16, 32, 64)), dense(CLASSES)],
    (16, 16, 8),
)
MIXED = ["model", "scattered", "gathered", "row"]
FEW_CHANNELS = 8.0  # padding: of a tile's 128 lanes 8 to 64 channels fill a part

METHODS = {
    "sgd": Row(solvers.sgd(NET, **BATCH), LAYERS_SPLIT, FORMS),
    "sgd, clipped": Row(solvers.sgd(NET, **BATCH | {"optimizer": CLIPPED}), LAYERS_SPLIT, FORMS),
    "sgd, domain": Row(
        solvers.sgd(IMAGES, **BATCH),
        IMAGES_SPLIT,
        SPLIT | WHOLE | {"pr": {"permute", "all_gather", "all_reduce"}},
        DOMAIN,
        FEW_CHANNELS,
    ),
    "sgd, mixed forms": Row(
        solvers.sgd(CONVOLUTIONS, **BATCH),
        IMAGES_SPLIT,
        SPLIT | {"pr": {"all_gather", "all_reduce", "all_to_all", "reduce_scatter"}},
        MIXED,
        FEW_CHANNELS,
    ),
    "gsadmm": Row(solvers.gsadmm(NET, subnets=4, **BATCH), ALL_AXES, BOUNDARIES | SPLIT),
    "gsadmm, stored": Row(
        solvers.gsadmm(NET, subnets=4, schedule="stored", **BATCH), ALL_AXES, BOUNDARIES | SPLIT
    ),
    "gsadmm, domain": Row(
        solvers.gsadmm(IMAGES, subnets=2, **BATCH),
        TWO_PIECES,
        BOUNDARIES | FORMS,  # weights that are whole are summed over pr, and over pc once a step
        DOMAIN,
        FEW_CHANNELS,
    ),
    "gsam, 2 sweeps": Row(
        solvers.gsam(NET, subnets=4, schedule=solvers.Streaming(sweeps=2), **BATCH),
        ALL_AXES,
        BOUNDARIES | SPLIT,
    ),
    "gsam, stored": Row(
        solvers.gsam(NET, subnets=4, schedule="stored", **BATCH), ALL_AXES, BOUNDARIES | SPLIT
    ),
    "pdadmm": Row(solvers.pdadmm(NET, **EXACT), NO_LAYER_SPLIT, BOUNDARIES),
    "pdadmm, 8 bits": Row(solvers.pdadmm(NET, grid=8, **EXACT), NO_LAYER_SPLIT, BOUNDARIES),
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
FEW = 512  # bytes of a gather that a TPU may do as a sum
SCALARS = 4 * 8  # bytes of the longest of a step's Info, which all devices share

# images of which there is something to compute while edges travel; in jax's default precision
LARGE = images.convnet((64, 64, 32), CLASSES, channels=(32, 32), hidden=())
ROWS = METHODS | {
    "large images": Row(
        solvers.sgd(LARGE, optimizer=ADAM, batch_size=32),
        {8: (1, 2, 4)},
        {},
        ["domain"] * 4 + ["row"],
    )
}


class Program(NamedTuple):
    """A step compiled for a mesh of TPUs, and the shapes and shardings of its arguments."""

    compiled: Any
    placed: Any  # the method
    state: Any
    samples: tuple

    @property
    def mesh(self) -> Mesh:
        return self.placed.mesh

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
    # one device a chip, as on a host of v4; jax makes no mesh of its single cores
    options = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices


@functools.cache
def program(topology, name):
    """The method's step for the topology; compiled once for all tests."""
    row, tpus = ROWS[name], devices(topology)
    mesh = sharding.make_mesh(*row.shapes[len(tpus)], devices=tpus)
    placed = sharding.place(row.method, mesh, forms=row.forms)
    state, samples = abstract_state(row, mesh), abstract_samples(placed)
    compiled = jax.jit(placed.step, donate_argnums=0).lower(state, *samples).compile()
    return Program(compiled, placed, state, samples)


def abstract_state(row, mesh):
    """Shapes and shardings of the placed state. Nothing is computed: there is no device to do it.

    On a mesh of Explicit axes shardings go with the shapes; they are read off there.
    """
    explicit = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Explicit,) * 3)
    placed = sharding.place(row.method, explicit, forms=row.forms)
    everywhere = NamedSharding(explicit, jax.P())
    shape = lambda *args: jax.ShapeDtypeStruct(*args, sharding=everywhere)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (
        shape(key.shape, key.dtype),
        shape((SAMPLES, *in_shape(placed)), np.float32),
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
    return shape((*leading, *in_shape(placed)), np.float32), shape(leading, np.int32)


def in_shape(method):
    """Shape of one sample."""
    return method.network.shapes[0]


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
    for c in filter(lambda c: c.moves, hlo.collectives(text)):
        found[along(mesh, c.groups[0])][c.kind] += c.bytes
    for p in hlo.permutes(text):
        found[along(mesh, p.pairs[0])]["permute"] += p.bytes
    return found


def by_axes(counted):
    """Bytes by axes of the mesh and kind, of two kinds of sums together.

    Where shards are small or parts of tiles, XLA does a reduce-scatter as an all-reduce on a TPU.
    """
    found = defaultdict(int)
    for route, size in counted.items():
        kind = {"reduce_scatter": "all_reduce"}.get(route.collective, route.collective)
        found[route.axes, kind] += size
    return found


def assert_same(found, expected, mesh, *, besides=0):
    """The same bytes by axes and kind; besides: bytes by which sums may differ.

    A gather of few numbers XLA may do, on a TPU, as the sum of what all hold, zeros but for their own.
    """
    for axes, kind in {*found, *expected}:
        less = expected[axes, "all_gather"] - found[axes, "all_gather"]
        assert 0 <= less <= FEW, axes
        if kind == "all_gather":
            continue
        size = int(np.prod([mesh.shape[name] for name in axes]))
        more = (
            found[axes, kind] - expected[axes, kind] - (less * size if kind == "all_reduce" else 0)
        )
        assert abs(more) <= (besides if kind == "all_reduce" else 0), (axes, kind)


def in_branches(text):
    """Lines of all computations that a conditional may run."""
    bodies, _ = hlo_text.computations(text)
    lines = [line for body in bodies.values() for line in body]
    todo, seen = [name for line in lines for name in hlo_text.branches(line)], set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += [
                n for line in bodies[name] for n in hlo_text.called(line) + hlo_text.branches(line)
            ]
    return "\n".join(line for name in seen for line in bodies[name])


def halos(lines):
    """(line that starts to send an edge, the lines that run before it must have arrived)."""
    for i, line in enumerate(lines):
        if match := re.search(r"%(\S+) = .* collective-permute-start\(", line):
            done = f" collective-permute-done(%{match[1]})"
            yield line, lines[i + 1 : next(j for j, other in enumerate(lines) if done in other)]


def convolved(bodies, line):
    """Shape of what a line gives if it convolves images with weights, else ()."""
    inside = [line, *(other for name in hlo_text.called(line) for other in bodies[name])]
    if "conv_general_dilated" not in line or not any(" convolution(" in each for each in inside):
        return ()
    return hlo_text.arrays(line)[0][1]


@every()
def test_the_step_compiles_for_all_devices_of_the_topology(topology, name):
    compiled, mesh = program(topology, name).compiled, program(topology, name).mesh
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
    """By neighbours' permutes, all pairs together; each of the pr devices sends its own copy."""
    method, mesh = METHODS[name].method, program(topology, name).mesh
    subnet, pr = mesh.shape["subnet"], mesh.shape["pr"]
    num = SAMPLES if method.resident else method.program.batch.size
    sent = [m for m in method.moves(num) if (m.axis, m.collective) == ("subnet", "permute")]
    if sent:
        slots = Slots(method.program.stages.num, subnet)
        sent = [m for m in sent if slots.device(m.source) != slots.device(m.target)]
    declared = sum(int(np.prod(m.shape)) * m.times * (m.itemsize or 4) for m in sent)
    found = [
        p for p in hlo.permutes(program(topology, name).text) if along(mesh, p.pairs[0]) == "subnet"
    ]
    loop = method.program.batch.microbatches  # whose permutes stand in the text once
    assert loop * sum(p.bytes * len(p.pairs) for p in found) == pr * declared


@every(["ist", "local_sgd", "ensemble"])
def test_workers_exchange_the_declared_bytes(topology, name):
    subnet = program(topology, name).mesh.shape["subnet"]
    declared = cost.exchanged_bytes(METHODS[name].method, subnet)
    found = crossing(topology, name)["subnet"]
    assert {kind: found[kind] for kind in declared} == declared


@every()
def test_a_device_hands_in_the_bytes_of_the_trace(topology, name):
    """To the byte but for scalars: equal ones are merged, and a norm's sums stand in no trace."""
    compiled, placed, state, samples = program(topology, name)
    found = by_axes(hlo.moved(compiled.as_text(), placed.mesh))
    traced = by_axes(sharding.count_bytes(placed.step, state, *samples))
    assert_same(found, traced, placed.mesh, besides=SCALARS)


@every([name for name in METHODS if name.startswith("sgd")])
def test_a_step_of_sgd_moves_what_the_formulas_say(topology, name):
    row, mesh = METHODS[name], program(topology, name).mesh
    found = by_axes(hlo.moved(program(topology, name).text, mesh))
    declared = by_axes(cost.step_bytes(row.method, mesh, forms=row.forms))
    assert_same(found, declared, mesh, besides=SCALARS if name == "sgd, clipped" else 0)


@every()
def test_no_permute_stands_in_a_branch(topology, name):
    """There it would wait for devices that take another branch, for ever."""
    assert not hlo.permutes(in_branches(program(topology, name).text))


@every(["gsadmm, domain"])
def test_edges_of_a_subnetworks_images_are_gathered_in_its_branch(topology, name):
    """Rows above and below, of 16 x 16 images of 8 channels and, pooled, of 8 x 8 of 16."""
    lines = in_branches(program(topology, name).text).splitlines()
    gathers = [line for line in lines if re.search(r" all-gather(-start)?\(", line)]
    shapes = {shape[-3:] for line in gathers for _, shape in hlo_text.arrays(line)}
    assert {(2, 16, 8), (2, 8, 16)} <= shapes


# of slabs of rows weights are whole on every device of pr
@every([name for name in METHODS if METHODS[name].forms != DOMAIN])
def test_gradients_are_summed_over_the_samples_as_declared(topology, name):
    """A step's scalars may travel with them, and norms of ADMM, which are not declared."""
    method, mesh = METHODS[name].method, program(topology, name).mesh
    num = SAMPLES if method.resident else method.program.batch.size
    # over local steps, or over minibatches
    loops = method.resident or not method.program.takes_forms
    declared = (
        sum(
            4 * int(np.prod(m.shape)) * (1 if loops else m.times)
            for m in method.moves(num)
            if m.axis == "pc"
        )
        / mesh.shape["pr"]
    )
    found = crossing(topology, name)["pc"]["all_reduce"]
    assert declared <= found <= 1.01 * declared + SCALARS


@every()
def test_a_device_holds_its_shards_and_little_padding(topology, name):
    compiled, _, state, samples = program(topology, name)
    memory, shards = compiled.memory_analysis(), shard_bytes((state, samples))
    assert shards <= memory.argument_size_in_bytes <= METHODS[name].padding * shards


@every()
def test_a_donated_state_is_updated_in_place_where_it_lies(topology, name):
    compiled, _, state, _ = program(topology, name)
    assert compiled.memory_analysis().alias_size_in_bytes >= shard_bytes(state)
    after = jax.tree.leaves(compiled.output_shardings[0])
    for a, to in zip(jax.tree.leaves(state), after, strict=True):
        assert to.is_equivalent_to(a.sharding, len(a.shape))


def test_edges_travel_while_inner_rows_are_convolved():
    """Two edges of two convolutions, each way; samples have no gradient, the pools need no edges.

    Between a start and its end XLA puts as much work as it thinks the way takes. That is the inner
    rows' convolution where nothing smaller is at hand, as in the first layer.
    """
    text = program("v5e:2x4", "large images").text
    assert "is_scheduled=true" in text
    bodies, entry = hlo_text.computations(text)
    sent = list(halos(bodies[entry]))
    forward = [between for line, between in sent if "transpose(" not in line]
    assert (len(forward), len(sent)) == (4, 6)
    assert all(any(" fusion(" in line for line in between) for _, between in sent)
    i0, i1 = Halo.of(window(LARGE.layers[0]), 64, 2).inner
    found = [{convolved(bodies, line) for line in between} for between in forward]
    assert sum((8, i1 - i0, 64, 32) in shapes for shapes in found) == 2  # while both edges travel


def test_in_default_precision_edges_are_sent_as_bfloat16():
    """Half the bytes forward, where only products read them; gradients are added as float32."""
    sent = hlo.permutes(program("v5e:2x4", "large images").text)
    edges = [(8, 1, 64, 32), (8, 1, 32, 32)]
    forward = sorted([("bf16", edge) for edge in edges] * 2)
    assert sorted((p.dtype, p.shape) for p in sent) == [*forward, *[("f32", edges[1])] * 2]


def test_a_mesh_may_split_an_axis_of_the_slice():
    """jax's own function gives pc both axes of 2, and cannot split the one of 4 for the rest."""
    shape, tpus = (2, 2, 4), devices("v4:2x2x4")
    with pytest.raises(NotImplementedError, match="Failed to find assignment"):
        jax.make_mesh(shape, AXES, devices=tpus)
    mesh = sharding.make_mesh(*shape, devices=tpus)
    assert mesh.devices.shape == shape
    assert {d.id for d in mesh.devices.flat} == {d.id for d in tpus}
