"""The cost model: its counts are those of the traced program, its limits are known."""

from dataclasses import replace
from math import inf

import jax
import numpy as np
import optax
import pytest

import jtssm
from jtssm import nn, solvers
from jtssm.sharding import cost
from jtssm.sharding.cost import seconds
from jtssm.sharding.cost.machine_table import MACHINES
from jtssm.sharding.cost.machines import Machine
from tests.sharding.cost.test_predicted import products

NET = jtssm.mlp([6, 8, 12, 8, 4])
BATCH = 8
WIDE = jtssm.mlp([196, *[512] * 9, 10])
PLAIN = {"optimizer": optax.adam(1e-3), "batch_size": BATCH}
SHARED = PLAIN | {"microbatches": 1}
SLOW = Machine("slow", 1e9, 1e9, 1e6, 1e-3, 1e-5, "made up")


def sgd(net=NET, batch=BATCH):
    return solvers.sgd(net, optimizer=optax.adam(1e-3), batch_size=batch)


@pytest.mark.parametrize(
    "method",
    [
        sgd(),
        *(solvers.gsadmm(NET, subnets=n, **SHARED) for n in (1, 2, 3, 4)),
        solvers.gsadmm(NET, subnets=3, schedule=solvers.Streaming(sweeps=3), **SHARED),
        solvers.gsam(NET, subnets=4, schedule=solvers.Streaming(sweeps=2), **SHARED),
    ],
    ids=lambda m: f"{m.name}-{len(m.program.stages.starts) - 1}",
)
def test_declared_passes_are_the_products_of_the_traced_step(method):
    x, y = np.zeros((BATCH, 6), np.float32), np.zeros(BATCH, np.int32)
    state = jax.eval_shape(lambda: method.init(jax.random.key(0), x, y))
    jaxpr = jax.make_jaxpr(method.step)(state, x, y).jaxpr
    assert 2 * products(jaxpr) == seconds.step_flops(method)


def test_a_step_on_one_device_by_hand():
    """2 layers, end to end: forward 2, dW 2, dX 1 product; 7 words a parameter; nothing moves."""
    net = jtssm.mlp([6, 8, 4])
    got = seconds.step_seconds(sgd(net), SLOW)
    first = max(2 * 8 * 48 / 1e9, 4 * (8 * 14 + 56) / 1e9) + 1e-5
    second = max(2 * 8 * 32 / 1e9, 4 * (8 * 12 + 36) / 1e9) + 1e-5
    np.testing.assert_allclose(got.products, 2 * first + 3 * second, rtol=1e-12)
    np.testing.assert_allclose(got.optimizer, 7 * 4 * 92 / 1e9 + 1e-5, rtol=1e-12)
    assert got.messages == 0
    np.testing.assert_allclose(got.total, got.products + got.optimizer)


def test_messages_by_hand():
    """n = 2 on 2 x 2 devices: f and q - f of 4 samples, width 12, at once; the larger piece's gradient."""
    method = solvers.gsadmm(NET, subnets=2, **SHARED)
    got = seconds.step_seconds(method, SLOW, subnet=2, pc=2)
    one = 1e-3 + 4 * 12 * 4 / 1e6
    np.testing.assert_allclose(got.permute, one, rtol=1e-12)
    # of three devices one has two neighbours; a stored schedule sends one after the other
    three = solvers.gsadmm(NET, subnets=3, **SHARED)
    widest = 2e-3 + 2 * 8 * 12 * 4 / 1e6
    np.testing.assert_allclose(
        seconds.step_seconds(three, SLOW, subnet=3).permute, widest, rtol=1e-12
    )
    stored = solvers.gsadmm(NET, subnets=2, schedule="stored", **SHARED)
    crossing = seconds.step_seconds(stored, SLOW, subnet=2, pc=2, samples=8).permute
    assert crossing >= 2 * one
    size = max(6 * 8 + 8 + 8 * 12 + 12, 12 * 8 + 8 + 8 * 4 + 4)
    np.testing.assert_allclose(got.all_reduce, 2 * 1e-3 + 4 * size / 1e6, rtol=1e-12)
    # where one message has room for half of it and a little more there are two, with their latencies
    parted = replace(SLOW, combined=2 * size + 8)
    again = seconds.step_seconds(method, parted, subnet=2, pc=2)
    np.testing.assert_allclose(again.total - got.total, 2 * 1e-3, rtol=1e-9)
    same = seconds.step_seconds(method, SLOW, subnet=1, pc=1)
    assert same.messages == 0
    np.testing.assert_allclose(seconds.all_reduce_seconds(SLOW, 4e6, 4), 6e-3 + 6.0, rtol=1e-12)


@pytest.mark.parametrize("machine", [*MACHINES.values(), SLOW], ids=lambda m: m.name)
def test_more_of_anything_never_costs_more(machine):
    ways = {"optimizer": optax.adam(1e-3), "batch_size": 110, "microbatches": 1}
    method = solvers.gsadmm(WIDE, subnets=10, **ways)
    base = seconds.step_seconds(method, machine, subnet=5, pc=2).total
    for field in ("flops", "memory", "link"):
        faster = replace(machine, **{field: 2 * getattr(machine, field)})
        assert seconds.step_seconds(method, faster, subnet=5, pc=2).total <= base
    for field in ("latency", "kernel"):
        slower = replace(machine, **{field: 2 * getattr(machine, field)})
        assert seconds.step_seconds(method, slower, subnet=5, pc=2).total > base


def test_pieces_on_their_own_devices_take_the_largest_ones_time():
    machine = replace(SLOW, link=1e18, latency=0.0)
    ways = {"optimizer": optax.adam(1e-3), "batch_size": 110, "microbatches": 1}
    method = solvers.gsadmm(WIDE, subnets=10, **ways)
    times = [seconds.step_seconds(method, machine, subnet=s).total for s in (1, 2, 5, 10)]
    assert times == sorted(times, reverse=True)
    middle = times[0] / 9.8  # ten layers, the first and last cheaper
    assert 0.9 * middle < times[3] < 1.2 * middle


def test_sums_of_gradients_and_pieces_that_step_in_turn_are_counted():
    """Words a weight: Adam's 7, three to add a gradient to a sum, three to keep two predictions."""
    machine = replace(SLOW, memory=4.0, kernel=0.0)  # a word a second
    net = jtssm.mlp([30, 20, 10])
    sizes = [31 * 20, 21 * 10]
    ways = {"optimizer": optax.adam(1e-3), "batch_size": 12}

    def optimizer(build, subnet, **more):
        method = build(net, subnets=2, **ways, **more)
        return seconds.step_seconds(method, machine, subnet=subnet).optimizer

    assert optimizer(solvers.gsadmm, 1, microbatches=1) == 7 * sum(sizes)
    first, last = (7 + 3 * 4 + 3) * sizes[0], (7 + 3 * 4) * sizes[1]
    assert optimizer(solvers.gsadmm, 1, microbatches=4) == first + last
    assert (
        optimizer(solvers.gsadmm, 1, microbatches=4, prediction=0.0) == first + last - 3 * sizes[0]
    )
    waited = 7 * sizes[0]  # for the other's step; sums are added in every tick
    assert optimizer(solvers.gsadmm, 2, microbatches=4) == first + waited
    assert optimizer(solvers.gsadmm, 2, microbatches=1) == 7 * sizes[0]
    # a pipeline's step at once
    assert optimizer(solvers.pipeline, 2, microbatches=4) == (7 + 3 * 4) * sizes[0]


def test_what_lies_between_a_layers_products_takes_an_activation_each_two():
    net = nn.transformer(1, width=8, heads=2, hidden=12, sequence=3, classes=4)
    method = solvers.sgd(net, optimizer=optax.adam(1e-3), batch_size=5)
    ideal = Machine("free", inf, inf, inf, 0, 0, "made up")
    found = seconds.step_seconds(method, replace(ideal, activation=1.0)).total
    # heads' queries, keys, values and results, and two of all pairs; hidden neurons; 5 samples, forward
    # and twice back, but for the gradient of the first layer's inputs
    assert found == 5 * ((3 * 4 * 8 + 2 * 2 * 9) * 2 + 3 * 2 * 12 * 3) / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: seconds.step_seconds(solvers.gsadmm(NET, schedule="stored", **SHARED), SLOW),
            r"samples: expected how many gsadmm keeps, e.g. 55000: it keeps them all; got None",
        ),
        (
            lambda: seconds.step_seconds(solvers.gsadmm(NET, subnets=4, **SHARED), SLOW, subnet=5),
            r"subnet: expected at most 4, the subnetworks there are; got 5",
        ),
        (
            lambda: cost.exchanged_bytes(sgd(), 2),
            r"method: expected one of workers \(ist, local_sgd, ensemble\); got sgd",
        ),
        (
            lambda: seconds.step_seconds(
                solvers.local_sgd(NET, workers=2, local_steps=2, **PLAIN), SLOW, subnet=3
            ),
            r"subnet: expected one of \[1, 2\], which divide 2 workers; got 3",
        ),
        (
            lambda: seconds.step_seconds(solvers.pdadmm(NET), SLOW, pr=2, samples=64),
            r"pr: expected 1, pdadmm does not split layers; got 2",
        ),
        (lambda: seconds.step_seconds(sgd(), SLOW, pc=3), r"pc: expected one of \[1, 2, 4, 8\]"),
        (lambda: seconds.step_seconds(sgd(), SLOW, pc=0), r"pc: expected an integer of at least 1"),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
