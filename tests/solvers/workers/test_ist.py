"""Independent subnet training against a ragged twin, and what a round must and must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import nn, solvers
from jtssm.data import synthetic
from jtssm.nn import perceptrons
from jtssm.nn.dropout import dropout_layer
from jtssm.solvers.workers.deal import Cut

from . import ist_twin as twin

X, Y = synthetic.separable(0, 720, 6, 3, np.float64)
KEY = jax.random.key(5)


def batches(rounds, steps, subnets, size):
    """A list of rounds' x and of their y."""
    rng = np.random.default_rng(1)
    shape = (steps, subnets, size)
    ids = [rng.choice(len(X), shape) for _ in range(rounds)]
    return [X[i] for i in ids], [Y[i] for i in ids]


def run(method, xs, ys, params):
    state = method.init(KEY, X, Y, params)
    step = jax.jit(method.step)
    for x, y in zip(xs, ys, strict=True):
        state, info = step(state, x, y)
    return state, info


def close(one, other, atol=1e-10):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), list(one), list(other)
    )


# widths that N divides twice, once, not at all; two equal widths; an activation that is not 0 at 0
@pytest.mark.parametrize(
    ("widths", "normalisation", "subnets", "deal"),
    [
        ([6, 16, 3], "batch", 4, "stratified"),
        pytest.param([6, 8, 8, 3], None, 2, "stratified", marks=pytest.mark.slow),
        ([6, 13, 7, 3], None, 3, "stratified"),
        ([6, 13, 7, 3], "layer", 3, "uniform"),
        pytest.param([6, 13, 7, 3], "running", 4, "stratified", marks=pytest.mark.slow),
        pytest.param([6, 10, 12, 3], "batch", 4, "uniform", marks=pytest.mark.slow),
    ],
)
def test_a_round_equals_ragged_subnets_cut_out_by_index(widths, normalisation, subnets, deal):
    net = jtssm.mlp(widths, jax.nn.sigmoid, normalisation=normalisation)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.3, momentum=0.9))
    method = solvers.ist(
        net, subnets=subnets, optimizer=optimizer, local_steps=3, batch_size=6, deal=deal
    )
    params = net.init(jax.random.key(2), jnp.float64)
    xs, ys = batches(2, 3, subnets, 6)
    state, _ = run(method, xs, ys, params)
    homes = subnets if deal == "stratified" else 1
    close(method.params(state), twin.rounds(net, optimizer, params, KEY, xs, ys, homes))
    assert not np.allclose(method.params(state)[0]["W"], params[0]["W"])


IMAGES = X.repeat(16, axis=1).reshape(-1, 8, 6, 2)[:720]


def images(kind):
    """Networks of images, whose channels are dealt: uneven, flattened, pooled, in residual blocks."""
    relu = jax.nn.relu
    layers = {
        "convolutions, without normalisation": [
            nn.convolution(5, 3, 1, "SAME", jax.nn.sigmoid),
            nn.max_pool(2),
            nn.convolution(4, 3, 2, "SAME", relu),
            nn.dense(7, relu),
            nn.dense(3),
        ],
        "convolutions to the end": [
            nn.convolution(6, 3, 1, "VALID", relu, "layer"),
            nn.dropout_layer(0.0),
            nn.convolution(3, 1),
            nn.mean_pool(4),
            nn.dense(3, normalisation="batch"),
        ],
        "residual blocks": [
            nn.convolution(8, 3, 2, "SAME", relu, "batch"),
            nn.bottleneck(5, widen=True),
            nn.bottleneck(5),
            nn.convolution(6, 1, 1, "SAME", relu),
            nn.mean_pool(2),
            nn.dense(3),
        ],
    }
    return jtssm.sequence(layers[kind], (8, 6, 2))


@pytest.mark.parametrize(
    ("kind", "subnets", "deal"),
    [
        ("convolutions, without normalisation", 2, "stratified"),
        pytest.param("convolutions to the end", 3, "uniform", marks=pytest.mark.slow),
        ("residual blocks", 4, "stratified"),
    ],
)
def test_channels_are_dealt_as_neurons_are(kind, subnets, deal):
    net, optimizer = images(kind), optax.sgd(0.1, momentum=0.9)
    method = solvers.ist(
        net, subnets=subnets, optimizer=optimizer, local_steps=2, batch_size=6, deal=deal
    )
    params = net.init(jax.random.key(2), jnp.float64)
    rng = np.random.default_rng(1)
    ids = [rng.choice(len(X), (2, subnets, 6)) for _ in range(2)]
    xs, ys = [IMAGES[i] for i in ids], [Y[i] for i in ids]
    state = method.init(KEY, IMAGES, Y, params)
    step = jax.jit(method.step)
    for x, y in zip(xs, ys, strict=True):
        state, _ = step(state, x, y)
    homes = subnets if deal == "stratified" else 1
    found = method.params(state)
    close(found, twin.rounds(net, optimizer, params, KEY, xs, ys, homes))
    np.testing.assert_allclose(
        method.predict(state, IMAGES[:7]), net.apply(found, IMAGES[:7]), atol=1e-12
    )


def test_moments_travel_with_the_weights_they_are_of():
    """Counts run on, a moment that nobody owned keeps its value, what all share has the mean's."""
    net = jtssm.mlp([6, 13, 7, 3], normalisation="batch")
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale(-0.05))
    method = solvers.ist(
        net, subnets=3, optimizer=optimizer, local_steps=2, batch_size=6, carry="moments"
    )
    params = net.init(jax.random.key(2), jnp.float64)
    xs, ys = batches(4, 2, 3, 6)
    state, _ = run(method, xs, ys, params)
    found = twin.rounds(net, optimizer, params, KEY, xs, ys, 3, carry=True)
    close(method.params(state), found, atol=1e-9)
    fresh = twin.rounds(net, optimizer, params, KEY, xs, ys, 3)
    assert not np.allclose(found[0]["W"], fresh[0]["W"], atol=1e-3)


def test_moments_that_belong_to_no_parameter_do_not_travel():
    net = jtssm.mlp([6, 8, 3])
    masked = optax.masked(optax.adam(0.1), [True, False])
    with pytest.raises(ValueError, match=r"carry: expected 'fresh' with an optimizer whose state"):
        solvers.ist(net, subnets=2, optimizer=masked, local_steps=2, batch_size=4, carry="moments")
    with pytest.raises(ValueError, match=r"carry: expected one of .*'moments'.*; got 'all'"):
        solvers.ist(
            net, subnets=2, optimizer=optax.adam(0.1), local_steps=2, batch_size=4, carry="all"
        )


def test_what_cannot_be_dealt_is_refused_by_name():
    ways = {"subnets": 2, "optimizer": optax.sgd(0.1), "local_steps": 1, "batch_size": 4}
    grouped = [nn.convolution(4, 3, groups=2), nn.dense(3)]
    with pytest.raises(ValueError, match=r"which can be dealt; got layer 0, 'convolution 3x3 4'"):
        solvers.ist(nn.sequence(grouped, (8, 6, 2)), **ways)
    narrow = [nn.convolution(8, 3), nn.bottleneck(1, widen=True), nn.mean_pool(2), nn.dense(3)]
    with pytest.raises(ValueError, match=r"subnets: expected at most 1, the width of layer 1, "):
        solvers.ist(nn.sequence(narrow, (8, 6, 2)), **ways)
    with pytest.raises(
        ValueError, match=r"net: expected at least one hidden layer, .*; got 1 layer"
    ):
        solvers.ist(nn.sequence([nn.mean_pool(2), nn.dense(3)], (8, 6, 2)), **ways)


def test_the_scale_of_a_dealt_input_is_the_users():
    net = jtssm.mlp([6, 8, 3])
    method = solvers.ist(
        net, subnets=2, optimizer=optax.sgd(0.1), local_steps=2, batch_size=4, scale=1.5
    )
    params = net.init(jax.random.key(2), jnp.float64)
    xs, ys = batches(1, 2, 2, 4)
    state, _ = run(method, xs, ys, params)
    close(method.params(state), twin.rounds(net, optax.sgd(0.1), params, KEY, xs, ys, 2, scale=1.5))


@pytest.mark.parametrize(
    ("width", "subnets", "homes"), [(16, 4, 4), (13, 4, 4), (7, 3, 1), (5, 5, 5)]
)
def test_every_neuron_has_one_owner_and_subnets_differ_by_at_most_one(width, subnets, homes):
    net = jtssm.mlp([6, width, 3])
    (mine,) = twin.owners(net, subnets, homes, KEY, 0).values()
    assert sorted(np.concatenate(mine)) == list(range(width))
    sizes = [len(neurons) for neurons in mine]
    assert max(sizes) - min(sizes) <= 1
    cut = Cut(0, width, homes, subnets)
    assert cut.slots == homes * int(np.ceil(np.ceil(width / homes) / subnets))
    assert cut.taken.sum() == width


def test_a_round_is_counted_in_pythons_integers():
    """numpy's of 8 bits would run over: 100 steps of 2 subnets and 3 samples are 600."""
    method = solvers.ist(
        jtssm.mlp([6, 8, 3]),
        subnets=np.int8(2),
        optimizer=optax.sgd(0.1),
        local_steps=np.int8(100),
        batch_size=np.int8(3),
    )
    assert [type(n) for n in method.batch_shape] == [int] * 3
    assert method.batch_shape == (100, 2, 3)


@pytest.mark.parametrize("homes", [1, 3])
def test_deals_are_fair_and_differ_from_round_to_round(homes):
    """400 deals of 9 neurons to 3: each is everyone's a third of the time; strata share out evenly."""
    cut = Cut(0, 9, homes, 3)
    deals = jax.vmap(cut.draw)(jax.random.split(KEY, 400))  # [deals, H, N, share]
    places = np.asarray(jax.vmap(cut.whole)(deals))  # [deals, N, 3]
    often = np.stack([[(places[:, w] == n).any(axis=1).mean() for n in range(9)] for w in range(3)])
    np.testing.assert_allclose(often, 1 / 3, atol=0.09)  # 4 standard errors
    together = ((places == 0).any(2) & (places == 1).any(2)).any(1).mean()
    # uniform: 2 of 8 others share neuron 0's subnet; stratified: neighbours of a home never do
    assert abs(together - (0.25 if homes == 1 else 0.0)) < 0.09


def test_all_local_steps_reach_the_model_and_unowned_weights_keep_their_value():
    """An optimizer that adds 1: after a round owned weights have risen by R, the others are untouched."""
    add_one = optax.GradientTransformation(
        lambda params: (), lambda g, s, p=None: (jax.tree.map(jnp.ones_like, g), s)
    )
    net = jtssm.mlp([6, 8, 12, 3])
    method = solvers.ist(net, subnets=2, optimizer=add_one, local_steps=5, batch_size=4)
    params = net.init(jax.random.key(2), jnp.float64)
    state, _ = run(method, *batches(1, 5, 2, 4), params)
    rise = jax.tree.map(lambda a, b: np.asarray(a - b), method.params(state), params)
    for layer, name in ((0, "W"), (0, "b"), (1, "b"), (2, "W"), (2, "b")):
        np.testing.assert_allclose(rise[layer][name], 5.0)
    owned = twin.owners(net, 2, 2, KEY, 0)
    block = np.zeros((8, 12))
    for w in range(2):
        block[np.ix_(owned[0][w], owned[1][w])] = 5.0
    np.testing.assert_allclose(rise[1]["W"], block)
    assert (rise[1]["W"] == 0).sum() == 48  # bit for bit


def test_optimizer_states_start_anew_at_a_deal_and_schedules_run_on():
    """Steps of 1, 2, 3, ... whatever the round; momentum would make the second round's larger."""
    counted = optax.scale_by_schedule(lambda count: count + 1.0)
    ones = optax.stateless(lambda g, p=None: jax.tree.map(jnp.ones_like, g))
    optimizer = optax.chain(ones, counted, optax.trace(0.5))
    net = jtssm.mlp([6, 4, 3])
    method = solvers.ist(net, subnets=2, optimizer=optimizer, local_steps=2, batch_size=4)
    params = net.init(jax.random.key(2), jnp.float64)
    state, _ = run(method, *batches(2, 2, 2, 4), params)
    first, second = 1 + (2 + 0.5), 3 + (4 + 0.5 * 3)
    np.testing.assert_allclose(method.params(state)[0]["W"] - params[0]["W"], first + second)


def test_injected_hyperparameters_run_on_too():
    rates = optax.linear_schedule(1.0, 0.0, 8)
    net = jtssm.mlp([6, 4, 3])
    shared = {"subnets": 2, "local_steps": 2, "batch_size": 4}
    xs, ys = batches(3, 2, 2, 4)
    params = net.init(jax.random.key(2), jnp.float64)
    plain, injected = (
        solvers.ist(net, optimizer=o, **shared)
        for o in (optax.adam(rates), optax.inject_hyperparams(optax.adam)(learning_rate=rates))
    )
    one, other = (run(m, xs, ys, params)[0] for m in (plain, injected))
    close(plain.params(one), injected.params(other))


@pytest.mark.parametrize("normalisation", [None, "batch"])
def test_one_subnet_is_plain_training(normalisation):
    net = jtssm.mlp([6, 8, 3], normalisation=normalisation)
    method = solvers.ist(net, subnets=1, optimizer=optax.sgd(0.1), local_steps=4, batch_size=10)
    plain = solvers.sgd(net, optimizer=optax.sgd(0.1), batch_size=10)
    params = net.init(jax.random.key(2), jnp.float64)
    (x,), (y,) = batches(1, 4, 1, 10)
    state, info = run(method, [x], [y], params)
    other, losses = plain.init(KEY, X, Y, params), []
    for xb, yb in zip(x[:, 0], y[:, 0], strict=True):
        other, seen = plain.step(other, xb, yb)
        losses.append(seen)
    close(method.params(state), plain.params(other))
    np.testing.assert_allclose(info.loss, np.mean([s.loss for s in losses]))
    np.testing.assert_allclose(info.accuracy, np.mean([s.accuracy for s in losses]))
    assert info.samples == 40


def test_empty_places_hold_zeros_and_nothing_depends_on_them():
    """13 neurons for 4 subnets: 4 places for 3 or 4 of them; the homes' own empty places stay 0 too."""
    net = jtssm.mlp([6, 13, 3], jax.nn.sigmoid)
    method = solvers.ist(net, subnets=4, optimizer=optax.adamw(0.1), local_steps=2, batch_size=4)
    state, _ = run(method, *batches(2, 2, 4, 4), None)
    cut = Cut(0, 13, 4, 4)
    W = np.asarray(state.homes[0]["W"])
    assert W.shape == (4, 4, 6)
    assert (W[~cut.inside] == 0).all()
    assert (W[cut.inside] != 0).all()
    np.testing.assert_allclose(
        method.predict(state, X), net.apply(method.params(state), X), atol=1e-12
    )


def test_statistics_are_those_of_the_whole_network_and_no_optimizer_moves_them():
    net = jtssm.mlp([6, 12, 3], normalisation="running")
    method = solvers.ist(
        net, subnets=4, optimizer=optax.adamw(0.1, weight_decay=1.0), local_steps=2, batch_size=4
    )
    state, _ = run(method, *batches(2, 2, 4, 4), None)
    kept = method.params(state)
    np.testing.assert_array_equal(kept[0]["var"], 1.0)
    state = jax.jit(method.estimate)(state, X)
    params = method.params(state)
    close(params, net.estimate(kept, X))
    z = X @ np.asarray(params[0]["W"])
    np.testing.assert_allclose(params[0]["mean"], z.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(params[0]["var"], z.var(axis=0), atol=1e-12)
    close(method.predict(state, X[:5]), net.apply(params, X)[:5])  # not of the samples at hand


def test_subnets_draw_their_own_dropout():
    """All subnets see the same minibatches and, of one home each, equal weights: only dropout differs."""
    layers = [perceptrons.dense(4, jax.nn.relu), dropout_layer(0.5), perceptrons.dense(3)]
    net = jtssm.sequence(layers, (6,))
    method = solvers.ist(net, subnets=2, optimizer=optax.sgd(0.1), local_steps=1, batch_size=40)
    same = jax.tree.map(lambda a: jnp.full_like(a, 0.1), net.init(KEY, jnp.float64))
    same[2]["W"] = same[2]["W"].at[:, 0].set(0.2)
    x, y = X[None, :40][:, None].repeat(2, 1), Y[None, :40][:, None].repeat(2, 1)
    state = method.init(KEY, X, Y, same)
    state, _ = jax.jit(method.step)(state, x, y)
    W = np.asarray(method.params(state)[0]["W"])
    assert len(np.unique(W[0].round(12))) == 4  # no two neurons saw the same mask
    again, _ = jax.jit(method.step)(method.init(KEY, X, Y, same), x, y)
    close(method.params(again), method.params(state))


def test_whole_networks_of_several_depths_are_learned():
    net = jtssm.mlp([6, 16, 16, 16, 3], normalisation="batch")
    method = solvers.ist(net, subnets=4, optimizer=optax.sgd(0.3), local_steps=5, batch_size=12)
    result = jtssm.fit(method, (X, Y), epochs=20, key=KEY, validation=(X, Y))
    assert result.history[-1]["validation_accuracy"] > 0.98
