"""What the cost model predicts of a step is what its compiled program sends and holds."""

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval

import jtssm
from jtssm import nn, sharding, solvers
from jtssm.nn import architectures, images
from jtssm.planning.trials import traced_bytes
from jtssm.sharding.cost import memory
from jtssm.sharding.cost.bytes_moved import step_bytes
from jtssm.sharding.cost.demand import method_forms, step_demand
from jtssm.sharding.cost.machines import Machine
from jtssm.sharding.cost.messages import predicted_bytes
from jtssm.sharding.cost.seconds import (
    collective_seconds,
    step_flops,
    step_seconds,
)
from jtssm.sharding.count import hlo
from tests.sharding.layers.traffic_cases import AS_WRITTEN

ADAM = optax.adam(1e-3)
NET = jtssm.mlp([24, 32, 48, 32, 8])
RESIDUAL = jtssm.sequence(
    [
        nn.convolution(8, 3, 1, "SAME", jax.nn.relu),
        nn.max_pool(2),
        nn.convolution(20, 3),
        nn.bottleneck(5),  # widened, both its ends would be told one sum of gradients of beta
        nn.convolution(8, 1, 1, "SAME", jax.nn.relu, "batch"),
        nn.dense(8),
    ],
    (8, 3, 1),
)
NORMED = jtssm.mlp([24, 32, 48, 32, 8], normalisation="batch")
PLATEAU = optax.chain(ADAM, optax.contrib.reduce_on_plateau())
PARTLY = optax.chain(PLATEAU, optax.masked(optax.set_to_zero(), [True, False, False, False]))
NESTEROV = optax.sgd(0.7, momentum=0.9, nesterov=True)
IMAGES = images.convnet((16, 16, 3), 8, channels=(4, 8), hidden=(16,))
DOMAIN = ("domain",) * 4 + ("model", "row")
DECODER = architectures.decoder(1, width=8, heads=4, sequence=5, vocabulary=32)
PAIRED = ("batch", "paired", "gathered", "gathered")
BATCH = {"optimizer": ADAM, "batch_size": 16}
ROUND = {"optimizer": ADAM, "batch_size": 8, "local_steps": 3}
SAMPLES = 64  # of methods that keep them all


class Case(NamedTuple):
    """A method on a mesh."""

    method: Any
    sizes: tuple[int, int, int]
    forms: Any = "auto"

    @property
    def samples(self):
        return SAMPLES if self.method.resident else None

    @property
    def step(self):
        chosen = method_forms(self.method, self.sizes, self.forms, self.samples)
        return step_demand(self.method, self.sizes, chosen, self.samples)


CASES = {
    "sgd": Case(solvers.sgd(NET, **BATCH), (1, 2, 4)),
    "sgd on pc": Case(solvers.sgd(IMAGES, **BATCH), (1, 1, 8)),
    "sgd on rows": Case(solvers.sgd(IMAGES, **BATCH), (1, 2, 2), DOMAIN),
    "sgd on tokens": Case(solvers.sgd(DECODER, **BATCH), (1, 2, 2), PAIRED),
    "pipeline": Case(solvers.pipeline(NET, subnets=4, microbatches=4, **BATCH), (4, 1, 2)),
    "pipeline, all forward first": Case(
        solvers.pipeline(NET, subnets=3, microbatches=16, schedule="gpipe", **BATCH), (3, 1, 1)
    ),
    "pipeline, normalised, on one device of subnet": Case(
        solvers.pipeline(NORMED, subnets=2, microbatches=2, **BATCH),
        (1, 2, 2),
        ("model", "row") * 2,
    ),
    "gsadmm on tokens": Case(
        solvers.gsadmm(DECODER, subnets=2, balance="memory", **BATCH), (2, 2, 2), PAIRED
    ),
    "gsadmm": Case(solvers.gsadmm(NET, subnets=4, **BATCH), (4, 1, 2)),
    "gsadmm on three axes": Case(solvers.gsadmm(NET, subnets=4, **BATCH), (2, 2, 2)),
    "gsadmm on rows": Case(
        solvers.gsadmm(IMAGES, subnets=2, schedule=solvers.Streaming(sweeps=2), **BATCH),
        (2, 2, 2),
        DOMAIN,
    ),
    "gsadmm on one device of subnet": Case(
        solvers.gsadmm(IMAGES, cuts=[3], **BATCH),
        (1, 2, 2),
        ("domain", "domain", "row", "batch", "model", "gathered"),
    ),
    "gsadmm in one piece": Case(solvers.gsadmm(NET, subnets=1, **BATCH), (1, 1, 4)),
    "gsam": Case(
        solvers.gsam(NET, subnets=4, schedule=solvers.Streaming(sweeps=2), **BATCH), (4, 2, 1)
    ),
    "gsadmm, 8 bits": Case(solvers.gsadmm(NET, subnets=4, grid=8, **BATCH), (4, 1, 2)),
    "gsadmm, stored": Case(solvers.gsadmm(NET, subnets=4, schedule="stored", **BATCH), (4, 1, 2)),
    "gsadmm, workers that meet": Case(
        solvers.gsadmm(NET, subnets=2, workers=2, outer_optimizer=NESTEROV, **ROUND), (2, 1, 2)
    ),
    "gsadmm, two workers a device": Case(
        solvers.gsadmm(NET, subnets=4, workers=4, **ROUND | {"optimizer": PLATEAU}), (2, 1, 2)
    ),
    "sgd, workers that meet": Case(solvers.sgd(IMAGES, workers=4, **ROUND), (1, 1, 4)),
    "gsam, stored": Case(solvers.gsam(NET, subnets=4, schedule="stored", **BATCH), (2, 1, 4)),
    "gsadmm, stored, on three axes": Case(
        solvers.gsadmm(NET, subnets=4, schedule="stored", **BATCH), (2, 2, 2)
    ),
    "gsam, stored, on pr": Case(
        solvers.gsam(NET, subnets=2, schedule="stored", **BATCH), (1, 4, 2), ("model", "row") * 2
    ),
    "gsadmm, stored, on rows": Case(
        solvers.gsadmm(IMAGES, cuts=[3], schedule="stored", **BATCH), (1, 2, 2), DOMAIN
    ),
    "gsam, parallel": Case(
        solvers.gsam(NET, subnets=2, schedule=solvers.Stored(order="parallel"), **BATCH), (2, 1, 2)
    ),
    "gsadmm, a device with fewer": Case(solvers.gsadmm(NET, subnets=4, **BATCH), (3, 2, 1)),
    "pdadmm": Case(solvers.pdadmm(NET), (4, 1, 2)),
    "pdadmm, a device with fewer": Case(solvers.pdadmm(NET), (3, 1, 1)),
    "pdadmm on pc": Case(solvers.pdadmm(NET, steps="gradient"), (1, 1, 8)),
    "pdadmm, 8 bits": Case(solvers.pdadmm(NET, grid=8), (4, 1, 1)),
    "ist": Case(solvers.ist(NET, subnets=4, **ROUND), (4, 1, 2)),
    "ist on three axes": Case(solvers.ist(NET, subnets=4, **ROUND), (2, 2, 2)),
    "ist, normalised": Case(
        solvers.ist(jtssm.mlp([24, 30, 45, 8], normalisation="batch"), subnets=4, **ROUND),
        (2, 2, 2),
    ),
    "ist, moments": Case(solvers.ist(NET, subnets=4, carry="moments", **ROUND), (2, 1, 2)),
    "ist, channels": Case(solvers.ist(RESIDUAL, subnets=4, **ROUND), (4, 1, 2)),
    "local_sgd": Case(solvers.local_sgd(NET, workers=4, **ROUND), (4, 1, 2)),
    "gsadmm, told the loss": Case(
        solvers.gsadmm(NET, subnets=2, optimizer=PLATEAU, batch_size=16), (2, 1, 2)
    ),
    "local_sgd, told the loss, with a frozen layer and an outer optimizer": Case(
        solvers.local_sgd(
            NET, workers=4, outer_optimizer=NESTEROV, **ROUND | {"optimizer": PARTLY}
        ),
        (4, 1, 2),
    ),
    "ensemble": Case(solvers.ensemble(IMAGES, members=4, **ROUND), (2, 1, 4)),
}


RARE = (  # each has a sister that differs from it in its mesh or its network
    "gsadmm, two workers a device",
    "pipeline, all forward first",
    "pipeline, normalised, on one device of subnet",
    "sgd, workers that meet",
    "sgd on pc",
    "gsadmm in one piece",
    "gsadmm, 8 bits",
    "gsadmm on one device of subnet",
    "gsam, stored",
    "gsam, parallel",
    "gsadmm, stored, on three axes",
    "gsadmm, stored, on rows",
    "pdadmm on pc",
    "pdadmm, 8 bits",
    "pdadmm, a device with fewer",
    "ist on three axes",
    "ist, normalised",
    "ensemble",
    "gsadmm on three axes",
    "gsadmm on tokens",
    "sgd",
)
# of unequal pieces on pr, with several switches
SWITCHES = ("gsadmm on rows", "gsadmm on three axes", "gsadmm on tokens")
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in RARE else n for n in CASES]


@functools.cache
def program(name):
    """The compiled step, and what it was compiled from."""
    case = CASES[name]
    mesh = sharding.make_mesh(*case.sizes)
    placed, *given = memory.placed_step(case.method, case.sizes, case.forms, case.samples, mesh)
    state, samples = given
    lowered = jax.jit(placed.step, donate_argnums=0).lower(state, *samples)
    compiled = lowered.compile(AS_WRITTEN if "gathered" in (placed.forms or ()) else None)
    return compiled, placed, state, samples


@pytest.fixture
def float32():
    """The model counts words of four bytes; tests/conftest.py turns float64 on."""
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("name", NAMES)
def test_predicted_bytes_are_those_of_the_compiled_program(name, float32):
    case, (compiled, placed, state, samples) = CASES[name], program(name)
    if name in SWITCHES:
        # two sweeps, or a microbatch's work and the sum behind it, are two switches: the text of the program
        # does not tell that a device takes the same branch of both ("on rows" device 0's of 39 360 bytes
        # and device 1's of 34 528); the trace by device does
        found = sharding.count_bytes(placed.step, state, *samples, by_device=True)
        expected = max(found, key=lambda moved: sum(moved.values()))
    else:
        expected = hlo.moved(compiled.as_text(), placed.mesh)
    assert expected
    assert predicted_bytes(case.step, case.sizes) == expected
    found = step_bytes(case.method, placed.mesh, forms=case.forms, samples=case.samples)
    assert found == expected


@pytest.mark.parametrize(("subnet", "held"), [(2, (2, 3)), (3, (1, 2, 2)), (4, (0, 1, 2, 2))])
def test_the_first_devices_are_asked_for_the_fewest_pieces(subnet, held):
    """Each of five layers once: what a device updates are the parameters of its own."""
    method = solvers.pdadmm(jtssm.mlp([24, 32, 48, 40, 32, 8]))
    step = step_demand(method, (subnet, 1, 1), (), SAMPLES)
    shapes = method.network.parameter_shapes()
    sizes = [sum(a.size for a in jax.tree.leaves(params)) for params in shapes]
    found = [[words for words, _ in device.updates] for device in step.devices]
    assert tuple(map(len, found)) == held
    assert [words for device in found for words in device] == sizes
    # what goes on is sent by the device before a boundary, what comes back by the one behind it
    assert {m.source for m in step.between if m.source is not None} == {
        d for d, num in enumerate(held) if num
    }


STORED = {
    "unequal pieces": Case(
        solvers.gsadmm(NET, subnets=2, schedule="stored", **BATCH),
        (2, 2, 2),
        ("gathered", "scattered", "gathered", "batch"),
    ),
    "gsam": Case(solvers.gsam(NET, subnets=4, schedule="stored", **BATCH), (2, 2, 2)),
    "a pipeline on rows": Case(
        solvers.pipeline(IMAGES, cuts=[3], microbatches=2, **BATCH), (2, 2, 2), DOMAIN
    ),
    "a pipeline that gathers": Case(
        solvers.pipeline(NET, subnets=2, microbatches=2, schedule="gpipe", **BATCH),
        (2, 2, 2),
        ("gathered", "scattered", "gathered", "batch"),
    ),
    "images": Case(solvers.gsadmm(IMAGES, cuts=[3], schedule="stored", **BATCH), (2, 2, 2), DOMAIN),
    "statistics": Case(
        solvers.gsadmm(NORMED, subnets=2, schedule="stored", **BATCH),
        (1, 2, 2),
        ("model", "row") * 2,
    ),
    "statistics in one piece": Case(
        solvers.gsam(NORMED, subnets=1, schedule="stored", **BATCH), (1, 1, 4)
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_of_several_switches_a_device_takes_its_own_branches(name, float32):
    """A stored schedule, or a pipeline, switches on the piece more than once a step: a compiled program's text shows
    the largest branch of each, the trace what a device hands in."""
    case = STORED[name]
    mesh = sharding.make_mesh(*case.sizes)
    placed, state, samples = memory.placed_step(case.method, case.sizes, case.forms, SAMPLES, mesh)
    assert traced_bytes(placed.step, state, *samples) == predicted_bytes(case.step, case.sizes)


@pytest.mark.parametrize("name", NAMES)
def test_predicted_memory_is_that_of_the_compiled_program(name, float32):
    """Arguments and outputs exact, temporaries between the bound and a fourth of it."""
    case, (compiled, *_) = CASES[name], program(name)
    forms = {"forms": case.forms, "samples": case.samples}
    found = memory.step_memory(case.method, case.sizes, case.step, **forms)
    truth = compiled.memory_analysis()
    assert found.arguments == truth.argument_size_in_bytes
    arrays = compiled.out_tree.num_leaves
    # programs for CPUs also give back a table of where their outputs lie
    assert found.outputs == truth.output_size_in_bytes - 8 * arrays
    assert truth.temp_size_in_bytes <= found.temporaries
    assert found.temporaries <= 4 * truth.temp_size_in_bytes
    assert found.total == found.arguments + found.temporaries


def test_the_halo_is_what_neighbours_send():
    """Two 3 x 3 convolutions of images 16 x 16, 8 samples on a device of pc: a row each way, and back."""
    case = CASES["sgd on rows"]
    found = memory.step_memory(case.method, case.sizes, case.step, forms=case.forms)
    first, second = 8 * 16 * 3, 8 * 8 * 4
    assert found.halo == 4 * (2 * first + 4 * second)
    assert memory.step_memory(CASES["sgd"].method, (1, 2, 4), CASES["sgd"].step).halo == 0


def products(jaxpr, times=1):
    """Multiply-adds of every dot_general in a jaxpr, loops as often as they run, of branches the largest."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            a, out = equation.invars[0].aval, equation.outvars[0].aval
            inner = np.prod([a.shape[d] for d in contracted])
            total += times * int(np.prod(out.shape) * inner)
        length = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        inner = [products(each, times * length) for each in jaxprs_in_params(equation.params)]
        total += max(inner, default=0) if equation.primitive.name == "cond" else sum(inner)
    return total


FLAT = {
    "gsadmm, stored": solvers.gsadmm(
        NET, subnets=3, schedule=solvers.Stored(weight_steps=5), **BATCH
    ),
    "gsam, stored": solvers.gsam(NET, subnets=3, schedule="stored", **BATCH),
    "gsam, parallel": solvers.gsam(
        NET, subnets=3, schedule=solvers.Stored(order="parallel"), **BATCH
    ),
    "pdadmm": solvers.pdadmm(NET),
    "pdadmm, gradient": solvers.pdadmm(NET, steps="gradient"),
    "pdadmm, exact": solvers.pdadmm(NET, steps="exact"),
    "pdadmm, 8 bits": solvers.pdadmm(NET, grid=8),
    "ist": solvers.ist(NET, subnets=4, **ROUND),
    "local_sgd": solvers.local_sgd(NET, workers=2, **ROUND),
    "gsadmm, workers": solvers.gsadmm(NET, subnets=3, workers=2, **ROUND),
    "gsadmm, microbatches": solvers.gsadmm(NET, subnets=3, **BATCH),
    "gsadmm, nothing twice": solvers.gsadmm(NET, subnets=3, recompute=False, **BATCH),
}


@pytest.mark.parametrize("name", FLAT)
def test_declared_work_is_the_products_of_the_traced_step(name):
    """But for solves, which have no dot_general; multiply-adds, all devices together."""
    method = FLAT[name]
    num = SAMPLES if method.resident else None
    lead = method.batch_shape or (SAMPLES,)
    x = jax.ShapeDtypeStruct((*lead, 24), np.float32)
    y = jax.ShapeDtypeStruct(lead, np.int32)
    flat = [
        jax.ShapeDtypeStruct((int(np.prod(lead)), *a.shape[len(lead) :]), a.dtype) for a in (x, y)
    ]
    state = jax.eval_shape(lambda x, y: method.init(jax.random.key(0), x, y), *flat)
    closed = jax.make_jaxpr(method.step)(state, x, y)
    live, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    traced = products(live)
    declared = step_flops(method, num) // 2
    assert declared - solves(method) == traced


def solves(method):
    """Multiply-adds of Cholesky factors and triangular solves."""
    if method.name != "pdadmm":
        return 0
    work = [w for l in range(len(NET.layers)) for w in method.program.declared.work(l, SAMPLES)]
    return sum(w.rows * w.inner * w.columns * w.times for w in work if w.solve)


def test_a_messages_seconds_by_hand():
    """Four devices, 8 MB handed in, 1 MB/s, 1 ms: rings, and the paper's logarithm."""
    ring = Machine("ring", 1e9, 1e9, 1e6, 1e-3, 1e-5, "made up")
    tree = replace(ring, algorithm="logarithmic")
    seconds = lambda machine, kind: collective_seconds(machine, kind, 8e6, {"pr": 2, "pc": 2})
    for kind, latencies, sent in (
        ("all_gather", 3, 24),
        ("reduce_scatter", 3, 6),
        ("all_reduce", 6, 12),
        ("all_to_all", 3, 6),
    ):
        np.testing.assert_allclose(seconds(ring, kind), latencies * 1e-3 + sent, rtol=1e-12)
        halved = {3: 2, 6: 4}[latencies]
        np.testing.assert_allclose(seconds(tree, kind), halved * 1e-3 + sent, rtol=1e-12)
    np.testing.assert_allclose(seconds(ring, "permute"), 1e-3 + 8, rtol=1e-12)
    slow = replace(ring, links=(("pc", 1e5),))
    np.testing.assert_allclose(seconds(slow, "permute"), 1e-3 + 80, rtol=1e-12)


def test_a_products_rate_depends_on_its_smallest_dimension():
    machine = Machine("m", 1e9, 1e18, 1e9, 0.0, 0.0, "made up", rates=((1, 0.1), (100, 1.0)))
    net = jtssm.mlp([200, 10])
    method = solvers.sgd(net, optimizer=ADAM, batch_size=1000)
    got = step_seconds(method, machine).products
    # 1000 x 200 x 10, forward and dW; between 1 and 100 the share rises as the square root
    np.testing.assert_allclose(got, 2 * 2 * 2e6 / 1e9 / (0.1 * 10**0.5), rtol=1e-6)


def test_virtual_devices_share_the_host():
    """Eight of them compute as fast as one; messages only add."""
    machine = Machine("m", 1e9, 1e12, 1e9, 0.0, 0.0, "made up", shared=True)
    method = solvers.sgd(jtssm.mlp([64, 64, 8]), optimizer=ADAM, batch_size=64)
    one, eight = (step_seconds(method, machine, pc=pc) for pc in (1, 8))
    np.testing.assert_allclose(eight.products, one.products, rtol=1e-12)
    assert eight.total > one.total


def test_what_hides_behind_products_is_no_more_than_either():
    machine = Machine("m", 1e12, 1e12, 1e8, 0.0, 0.0, "made up")
    method = solvers.sgd(NET, **BATCH)
    seconds = lambda overlap: step_seconds(method, machine, pc=8, overlap=overlap)
    plain, whole = seconds(0.0), seconds(1.0)
    assert plain.hidden == 0
    assert whole.hidden == min(plain.products, plain.all_reduce)
    np.testing.assert_allclose(seconds(0.5).hidden, whole.hidden / 2, rtol=1e-12)
    np.testing.assert_allclose(plain.total - whole.total, whole.hidden, rtol=1e-9)
