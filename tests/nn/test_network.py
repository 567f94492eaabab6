"""Networks, their parameters, and where they are cut."""

from itertools import combinations, pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import nn, solvers
from jtssm.nn.cuts import balanced_starts, cut
from jtssm.nn.network import sequence
from jtssm.nn.perceptrons import dense
from jtssm.sharding.cost.products import passes
from tests.nn.own_layer import Double


def test_apply_is_the_product_and_the_activation_of_every_layer():
    net = jtssm.mlp([3, 4, 2], activation=jnp.tanh)
    params = net.init(jax.random.key(0), jnp.float64)
    x = np.random.default_rng(0).normal(size=(5, 3))
    hidden = np.tanh(x @ params[0]["W"] + np.asarray(params[0]["b"])[None])
    expected = hidden @ params[1]["W"] + np.asarray(params[1]["b"])[None]
    np.testing.assert_allclose(net.apply(params, x), expected, rtol=1e-14)


def test_images_are_flattened_row_by_row():
    net = jtssm.mlp([12, 2])
    params = net.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(5, 4, 3, 1)).astype(np.float32)
    np.testing.assert_array_equal(net.apply(params, x), net.apply(params, x.reshape(5, 12)))


@pytest.mark.parametrize(
    ("got", "wanted", "hint"),
    [
        ((3, 16, 16), (16, 16, 3), r": move axis 1 to 3, np\.moveaxis\(x, 1, 3\)$"),
        ((16, 16, 3), (3, 16, 16), r": move axis 3 to 1, np\.moveaxis\(x, 3, 1\)$"),
        ((4, 3, 2), (2, 3, 4), r": transpose its axes$"),
        ((768,), (16, 16, 3), r": as many numbers.*x\.reshape\(-1, 16, 16, 3\)$"),
        ((16, 16), (16, 16, 3), r" \(5, 16, 16\)$"),
        ((), (16, 16, 3), r" \(5,\)$"),
    ],
)
def test_samples_of_another_layout_are_refused_and_told_how_to_fit(got, wanted, hint):
    net = sequence([Double()], wanted)
    x = np.zeros((5, *got), np.float32)
    shape = ", ".join(map(str, wanted))
    with pytest.raises(ValueError, match=rf"x: expected \[samples, {shape}\]; got shape.*{hint}"):
        net.apply([{}], x)
    if hint.startswith(": move"):
        axes = (1, 3) if got[0] == 3 else (3, 1)
        assert net.apply([{}], np.moveaxis(x, *axes)).shape == (5, *wanted)


def test_initial_weights_follow_he_and_the_input_width():
    W = jtssm.mlp([400, 500, 10]).init(jax.random.key(1))[0]["W"]
    assert abs(float(W.std()) - np.sqrt(2 / 400)) < 0.002


@pytest.mark.parametrize("costs", [[5, 1, 1, 1, 8, 2], [1] * 7, [9, 1, 1], [3, 3, 3, 100]])
def test_balanced_cuts_have_the_smallest_possible_largest_cost(costs):
    for n in range(1, len(costs) + 1):
        options = [(0, *c, len(costs)) for c in combinations(range(1, len(costs)), n - 1)]
        largest = lambda starts: max(sum(costs[a:b]) for a, b in pairwise(starts))
        starts = balanced_starts(costs, n)
        assert starts in options
        assert largest(starts) == min(map(largest, options))


def test_ties_are_broken_towards_even_pieces():
    assert balanced_starts([1] * 6, 3) == (0, 2, 4, 6)


def test_the_user_may_say_where_to_cut():
    net = jtssm.mlp([4, 4, 4, 4, 4])
    assert cut(net, None, [1, 3]) == (0, 1, 3, 4)
    assert cut(net, 4, None) == (0, 1, 2, 3, 4)
    assert cut(net, None, None) == (0, 4)


UNEQUAL = jtssm.mlp([11, 20, 7, 12, 6, 5, 13, 18])


@pytest.mark.parametrize("sweeps", [1, 2])
def test_balanced_work_counts_the_pass_that_only_the_last_subnetwork_spares(sweeps):
    """By brute force over all cuts, with the products that the method declares for each subnetwork."""
    ways = {"optimizer": optax.sgd(0.1), "batch_size": 4, "schedule": solvers.Streaming(sweeps)}
    costs = UNEQUAL.costs()

    def largest(method):
        starts, work = method.program.stages.starts, method.program.declared.work
        of_piece = lambda l, a, b: sum(
            passes(run, i == a) * costs[i] for run in work(l, 4) for i in range(a, b)
        )
        return max(of_piece(l, a, b) for l, (a, b) in enumerate(pairwise(starts)))

    differ = 0
    for n in (1, 2, 3):
        options = combinations(range(1, len(costs)), n - 1)
        least = min(largest(solvers.gsadmm(UNEQUAL, cuts=list(c), **ways)) for c in options)
        found = solvers.gsadmm(UNEQUAL, subnets=n, balance="work", **ways)
        assert largest(found) == least
        assert found.program.stages.starts == cut(
            UNEQUAL, n, balance="work", passes=solvers.Streaming(sweeps).passes
        )
        forward = solvers.gsadmm(UNEQUAL, subnets=n, **ways)
        assert forward.program.stages.starts == cut(UNEQUAL, n, balance="forward")
        differ += largest(forward) > least
    assert differ


def test_balanced_memory_counts_parameters_where_work_counts_none():
    """An embedding of 400 x 4: no multiply-adds, most of the parameters; by brute force."""
    halves = [nn.attention(4, 2, causal=True), nn.perceptron(4, 16)]
    net = sequence([nn.embedding(400, 4), *halves, nn.scores(4, 5)], (3,))
    sizes = [sum(a.size for a in jax.tree.leaves(tree)) for tree in net.parameter_shapes()]
    assert sizes[0] > sum(sizes[1:])
    assert net.costs()[0] == 0
    for n in range(1, 5):
        options = [(0, *c, 4) for c in combinations(range(1, 4), n - 1)]
        largest = lambda starts: max(sum(sizes[a:b]) for a, b in pairwise(starts))
        assert largest(cut(net, n, balance="memory")) == min(map(largest, options))
    assert cut(net, 2, balance="memory") == (0, 1, 4)
    assert cut(net, 2) == (0, 2, 4)
    method = solvers.gsam(net, subnets=2, balance="memory", optimizer=optax.sgd(0.1), batch_size=2)
    assert method.program.stages.cuts == (1,)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"balance": "bytes"}, r"balance: expected one of .*'memory'.*got 'bytes'"),
        ({"balance": "work", "cuts": [2]}, r"balance: expected 'forward' with cuts.*got 'work'"),
    ],
)
def test_a_balance_that_means_nothing_is_refused(ask, message):
    for make in (solvers.gsadmm, solvers.gsam):
        with pytest.raises(ValueError, match=message):
            make(UNEQUAL, optimizer=optax.sgd(0.1), batch_size=2, **ask)


@pytest.mark.parametrize(
    ("subnets", "cuts", "message"),
    [
        (5, None, r"subnets: expected 1\.\.4, the network has 4 layers; got 5"),
        (0, None, r"subnets: expected 1\.\.4.*got 0"),
        (2.0, None, r"subnets: expected 1\.\.4.*got 2\.0"),
        (None, [2, 2], r"cuts: expected rising layer numbers within 1\.\.3; got \[2, 2\]"),
        (None, [0], r"cuts\[0\]: expected an integer of at least 1; got 0"),
        (None, [4], r"cuts: expected rising"),
        (3, [2], r"subnets: expected 2 with 1 cuts; got 3"),
    ],
)
def test_bad_cuts_are_refused(subnets, cuts, message):
    with pytest.raises(ValueError, match=message):
        cut(jtssm.mlp([4, 4, 4, 4, 4]), subnets, cuts)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([3], r"widths: expected a list of at least 2 positive integers.*got \[3\]"),
        ([], r"widths: expected a list of at least 2 positive integers.*got \[\]"),
        ([3, 0], r"widths\[1\]: expected an integer of at least 1; got 0"),
        ([3, 2.5], r"widths\[1\]: expected an integer of at least 1; got 2\.5"),
        ([3, -1, 2], r"widths\[1\]: expected an integer of at least 1; got -1"),
    ],
)
def test_bad_widths_are_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        jtssm.mlp(widths)


def test_a_network_without_layers_is_refused():
    with pytest.raises(ValueError, match="layers: expected at least one layer"):
        sequence([], (3,))


def test_layers_of_the_users_own_join_a_network():
    net = sequence([Double(), dense(2)], (3,))
    params = net.init(jax.random.key(0), jnp.float64)
    x = np.ones((4, 3))
    np.testing.assert_allclose(net.apply(params, x), 2 * x @ params[1]["W"])
    assert net.costs() == [0, 6]
