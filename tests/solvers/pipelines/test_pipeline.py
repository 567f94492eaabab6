"""Whatever the schedule, the mesh and the number of microbatches: the numbers of sgd."""

from functools import cache
from itertools import pairwise, product

import jax
import numpy as np
import optax
import pytest

import jtssm
from jtssm import losses, sharding, solvers, testing
from jtssm.data import synthetic
from jtssm.nn.network import run_layers
from jtssm.nn.ops import PLAIN
from jtssm.sharding import cost
from tests import tree_networks
from tests.cases import few_of

NET = jtssm.mlp([4, 8, 6, 3], dropout=0.2)
LOSS = losses.cross_entropy(ignore_index=-100)
X, Y = synthetic.separable(0, 24, 4, 3, np.float64)
Y = np.where(np.arange(24) % 5 == 0, -100, Y)  # unequal weights in microbatches
WAYS = {"optimizer": optax.adamw(1e-2), "batch_size": 24, "loss": LOSS}


def trained(method, x=X, y=Y, steps=2):
    """(compiled step, state, info, whole parameters) after some steps."""
    state, step = method.init(jax.random.key(0), x, y), jax.jit(method.step)
    for _ in range(steps):
        state, info = step(state, x, y)
    return step, state, info, method.params(state)


@cache
def plain():
    return trained(solvers.sgd(NET, **WAYS))


def same(found, expected, atol=1e-10):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


SCHEDULES = list(product(("1f1b", "gpipe"), (1, 2, 3), (1, 2, 4)))


@pytest.mark.parametrize(("schedule", "n", "each"), few_of(SCHEDULES, [("gpipe", 2, 2)]))
def test_the_numbers_are_those_of_sgd(schedule, n, each):
    method = solvers.pipeline(NET, subnets=n, microbatches=each, schedule=schedule, **WAYS)
    step, state, info, params = trained(method)
    _, _, expected, weights = plain()
    same(params, weights)
    same(info, expected)
    assert info.samples == 19
    # a minibatch without weight moves nothing, the optimizer neither
    after, none = step(state, X, np.full_like(Y, -100))
    same(after.weights, state.weights, atol=0)
    assert none.samples == 0
    assert np.isnan(none.loss)


MESHES = [
    ("1f1b", 3, (3, 1, 2)),
    ("gpipe", 2, (2, 1, 1)),
    ("1f1b", 2, (2, 2, 1)),
    ("gpipe", 3, (2, 1, 2)),  # two slots a device, the first of them empty
    ("1f1b", 4, (2, 2, 2)),
]


@pytest.mark.parametrize(("schedule", "n", "sizes"), few_of(MESHES, MESHES[:1]))
def test_on_a_mesh_they_are_the_same(schedule, n, sizes):
    method = solvers.pipeline(NET, subnets=n, microbatches=3, schedule=schedule, **WAYS)
    mesh = sharding.make_mesh(*sizes)
    placed = sharding.place(method, mesh)
    _, state, info, params = trained(placed)
    _, _, expected, weights = plain()
    same(params, weights)
    same(info, expected)
    same(placed.predict(state, X[:6]), NET.apply(weights, X[:6]))
    moved = sharding.count_bytes(placed.step, state, X, Y, by_device=True)
    found = sharding.step_bytes(method, mesh, word=8)
    assert max(moved, key=lambda routes: sum(routes.values())) == found


def test_gradients_are_summed_over_pc_once_and_boundaries_cross_every_tick():
    method = solvers.pipeline(NET, subnets=3, microbatches=3, **WAYS)
    found = cost.step_bytes(method, jax.sharding.AbstractMesh((3, 1, 2), ("subnet", "pr", "pc")))
    own = [sum(a.size for a in jax.tree.leaves(p)) for p in NET.parameter_shapes()]
    pieces = [sum(own[a:b]) for a, b in pairwise(method.program.stages.starts)]
    over = {route.axes: size for route, size in found.items() if route.collective == "all_reduce"}
    assert over["pc",] == 4 * (max(pieces) + 1)  # and the weights of the minibatch
    widths = [NET.shapes[start][0] for start in method.program.stages.cuts]
    (crossing,) = (size for route, size in found.items() if route.collective == "permute")
    # the middle one sends both ways, microbatches of 8 samples, 4 of them here, in 3 + 2 ticks
    assert crossing == 4 * 4 * 5 * sum(widths)


def test_forward_runs_again_but_in_the_last_piece_and_nothing_else_is_added():
    plain_flops = cost.step_flops(solvers.sgd(NET, **WAYS))
    for n in (1, 2, 4):
        method = solvers.pipeline(NET, subnets=n, microbatches=4, **WAYS)
        again = sum(NET.costs()[: method.program.stages.starts[-2]])
        assert cost.step_flops(method) == plain_flops + 2 * 24 * again


def test_waiting_takes_n_minus_1_of_m_plus_n_minus_1_turns():
    """Equal layers, products alone: with M microbatches as long as M + 3 turns of one."""
    net = jtssm.mlp([16] * 5)
    machine = cost.Machine("m", 1e9, 1e18, 1e18, 0.0, 0.0, "made up")
    ways = {"optimizer": optax.sgd(0.1), "batch_size": 48, "subnets": 4}
    seconds = lambda each, subnet, schedule="1f1b": (
        cost.step_seconds(
            solvers.pipeline(net, microbatches=each, schedule=schedule, **ways),
            machine,
            subnet=subnet,
        ).products
    )
    turn = 4 * 2 * 48 * 16 * 16 / 1e9  # of all samples: forward twice, dW, dX
    for each in (1, 2, 8):
        np.testing.assert_allclose(seconds(each, 4), turn * (each + 3) / each, rtol=1e-12)
        assert seconds(each, 4) == seconds(each, 4, "gpipe")
    # pieces on one device do not wait: the first has no dX, the last runs forward once
    np.testing.assert_allclose(seconds(8, 1), (3 + 4 + 4 + 3) / 4 * turn, rtol=1e-12)


def test_1f1b_keeps_less_than_gpipe():
    ways = {"optimizer": optax.adam(1e-3), "batch_size": 2400, "subnets": 4, "microbatches": 24}
    net, sizes = jtssm.mlp([4, 16, 12, 8, 3]), (4, 1, 1)
    kept = []
    for schedule in ("1f1b", "gpipe"):
        method = solvers.pipeline(net, schedule=schedule, **ways)
        step = cost.step_demand(method, sizes, ("batch",) * 4, None)
        kept.append(cost.step_memory(method, sizes, step))
    more = kept[1].microbatches - kept[0].microbatches
    # on every device as much as on the second: 2 (4 - 2) inputs of 100 samples, 16 wide, or all 24
    assert more == 4 * 100 * 16 * (24 - 4)
    assert kept[1].total - kept[0].total == more


NORMED = jtssm.mlp([4, 8, 6, 3], normalisation="batch")


@pytest.mark.slow
def test_statistics_are_those_of_a_microbatch_on_any_mesh():
    """Against a twin: every second sample is of one microbatch, of whichever device."""
    ways = {"optimizer": optax.sgd(0.1), "batch_size": 24, "subnets": 2}
    y = np.asarray(synthetic.separable(0, 24, 4, 3, np.float64)[1])
    method = solvers.pipeline(NORMED, microbatches=2, **ways)
    start = method.params(method.init(jax.random.key(0), X, y))

    def mean_loss(params):
        seen = lambda m: run_layers(NORMED.layers, params, X[m::2], lambda i: PLAIN.to_train())
        loss = losses.find("cross_entropy").value
        return sum(loss(seen(m), y[m::2]).mean() for m in range(2)) / 2

    expected = jax.tree.map(lambda w, g: w - 0.1 * g, start, jax.jit(jax.grad(mean_loss))(start))
    placed = sharding.place(method, sharding.make_mesh(2, 1, 2))
    same(trained(placed, X, y, steps=1)[3], expected)


@pytest.mark.slow
def test_trees_cross_boundaries():
    net, (x, y) = tree_networks.encoder(), tree_networks.sentences(24)
    ways = {"optimizer": optax.sgd(0.1), "batch_size": 24}
    method = solvers.pipeline(net, subnets=3, microbatches=2, **ways)
    expected = trained(solvers.sgd(net, **ways), x, y)[3]
    same(trained(method, x, y)[3], expected, atol=1e-6)
    placed = sharding.place(method, sharding.make_mesh(3, 1, 2))
    same(trained(placed, x, y)[3], expected, atol=1e-6)


@pytest.mark.slow
def test_a_run_goes_on_from_a_checkpoint():
    y = np.where(Y < 0, 0, Y)
    testing.check_resumed(solvers.pipeline(NET, subnets=2, microbatches=2, **WAYS), X, y)


REFUSED = [
    ({"microbatches": 5}, r"microbatches: expected one of \[1, 2, 3, 4, 6, 8, 12, 24\]"),
    ({"microbatches": 0}, r"microbatches: expected an integer of at least 1"),
    ({"schedule": "zb"}, r"schedule: expected one of \['1f1b', 'gpipe'\]; got 'zb'"),
    ({"subnets": 6}, r"subnets: expected"),
    ({"optimizer": [optax.sgd(0.1)] * 3, "subnets": 2}, r"optimizer: expected"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        solvers.pipeline(NET, **WAYS | options)


def test_a_mesh_or_a_microbatch_that_does_not_divide_is_refused():
    method = solvers.pipeline(NET, subnets=2, microbatches=12, **WAYS)
    wrong = r"mesh: expected a 'pc' axis that divides batch_size / microbatches=2; got 4"
    with pytest.raises(ValueError, match=wrong):
        sharding.place(method, sharding.make_mesh(2, 1, 4))
    with pytest.raises(
        ValueError, match=r"pc: expected one of \[1, 2\], which divide 2 samples of a"
    ):
        cost.step_seconds(method, cost.MACHINES["tpu-v5e"], subnet=2, pc=4)
    with pytest.raises(ValueError, match="batch_size / microbatches: expected at least 2 samples"):
        solvers.pipeline(NORMED, microbatches=24, **WAYS)


def test_it_is_planned_and_what_does_not_go_is_told():
    plan = jtssm.plan(
        jtssm.mlp([64] * 5), 4, 32, "tpu-v5e", method="pipeline", microbatches=16, runners_up=1
    )
    assert {p.method.name for p in (plan.best, *plan.runners_up)} == {"pipeline"}
    assert plan.refused[1, 1, 4].startswith("pc: expected one of [1, 2], which divide 2 samples")
