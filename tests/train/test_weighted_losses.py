"""Weighted means over samples and positions: the same number in steps, on meshes and in evaluations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import jtssm
from jtssm import losses, nn, sharding, solvers, testing

V, T, B = 7, 6, 16
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, T, 5))
Y = RNG.integers(0, V, (32, T))
Y[:, 3:][RNG.random((32, 3)) < 0.6] = -100  # padding, more of it in some shares than in others
Y[:4] = -100
MASKED = losses.cross_entropy(ignore_index=-100)
NET = nn.from_linen([linen.Dense(8), linen.tanh, linen.Dense(V)], X[:1])


def by_optax(net, params, x, y):
    """Plain jax: the mean over all labels that count."""
    f = net.apply(params, x)
    value = optax.losses.softmax_cross_entropy_with_integer_labels(f, jnp.maximum(y, 0))
    return (value * (y >= 0)).sum() / (y >= 0).sum()


def descended(params, steps):
    """Minibatches by plain jax and optax."""
    optimizer = optax.adam(1e-2)
    state, seen = optimizer.init(params), []
    for i in range(steps):
        rows = slice(i % 2 * B, i % 2 * B + B)
        mean = partial(by_optax, NET, x=X[rows], y=Y[rows])
        loss, gradient = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(gradient, state)
        params, seen = optax.apply_updates(params, updates), [*seen, float(loss)]
    return params, seen


SHARED = {"optimizer": optax.adam(1e-2), "batch_size": B, "loss": MASKED}
LIKE_PLAIN = {
    "sgd": (solvers.sgd(NET, **SHARED), (1, 1, 1)),
    "sgd, 4 shares": (solvers.sgd(NET, **SHARED), (1, 1, 4)),
    "sgd, grid": (solvers.sgd(NET, **SHARED), (1, 2, 2)),
    "gsadmm, 1 piece": (solvers.gsadmm(NET, subnets=1, **SHARED), (1, 1, 2)),
    "local_sgd, 1 worker": (
        solvers.local_sgd(NET, workers=1, local_steps=1, **SHARED),
        (1, 1, 4),
    ),
}


@pytest.mark.parametrize("name", LIKE_PLAIN)
def test_masks_that_leave_devices_unequal_numbers_of_tokens(name):
    method, shape = LIKE_PLAIN[name]
    placed = sharding.place(method, sharding.make_mesh(*shape))
    params = NET.init(jax.random.key(3), jnp.float64)
    state, step, seen = (
        placed.init(jax.random.key(0), X, Y.clip(-100), params),
        jax.jit(placed.step),
        [],
    )
    lead = method.batch_shape
    for i in range(4):
        rows = slice(i % 2 * B, i % 2 * B + B)
        state, info = step(state, X[rows].reshape(*lead, T, 5), Y[rows].reshape(*lead, T))
        seen.append(float(info.loss))
    expected, losses_seen = descended(params, 4)
    np.testing.assert_allclose(seen, losses_seen, rtol=1e-10)
    for a, b in zip(*map(jax.tree.leaves, (placed.params(state), expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)
    assert float(info.samples) == (Y[B:] >= 0).sum()


IN_PIECES = {
    "gsadmm": (solvers.gsadmm(NET, subnets=2, **SHARED), (2, 1, 2)),
    "gsadmm, 2 sweeps": (
        solvers.gsadmm(NET, subnets=2, schedule=solvers.Streaming(sweeps=2), **SHARED),
        (2, 1, 2),
    ),
    "gsadmm, stored": (solvers.gsadmm(NET, subnets=2, schedule="stored", **SHARED), (2, 1, 2)),
    "gsam, stored": (solvers.gsam(NET, subnets=2, schedule="stored", **SHARED), (2, 1, 2)),
    "ensemble": (
        solvers.ensemble(NET, members=2, local_steps=2, **SHARED | {"batch_size": 8}),
        (2, 1, 2),
    ),
    "sgd": LIKE_PLAIN["sgd, grid"],
}


@pytest.mark.parametrize(
    "name",
    [n if n in ("gsadmm", "sgd") else pytest.param(n, marks=pytest.mark.slow) for n in IN_PIECES],
)
def test_bytes_and_numbers_on_a_mesh(name):
    method, shape = IN_PIECES[name]
    mesh = sharding.make_mesh(*shape)
    testing.check_placed(method, X, Y, mesh)
    testing.check_bytes(method, X, Y, mesh)


def test_a_cut_network_takes_the_step_of_plain_training_where_nothing_is_delayed():
    """The last piece's W-step is that of the weighted mean."""
    method = solvers.gsadmm(
        NET,
        subnets=2,
        schedule=solvers.Stored(weight_steps=1),
        **SHARED | {"batch_size": 32, "optimizer": optax.sgd(0.1)},
    )
    params = NET.init(jax.random.key(3), jnp.float64)
    state = method.init(jax.random.key(0), X, Y, params)
    state, info = method.step(state, X, Y)
    np.testing.assert_allclose(info.loss, by_optax(NET, params, X, Y), rtol=0.2)
    cut = method.program.stages.starts[1]
    gradient = jax.grad(lambda p: by_optax(NET, p, X, Y))(params)
    for a, b, g in zip(
        *map(jax.tree.leaves, (method.params(state)[cut:], params[cut:], gradient[cut:])),
        strict=True,
    ):
        np.testing.assert_allclose(a, b - 0.1 * g, atol=1e-12)


@pytest.mark.slow
def test_pdadmm_leaves_samples_without_weight_where_they_are():
    net, rng = jtssm.mlp([5, 8, V]), np.random.default_rng(1)
    x, y = rng.normal(size=(24, 5)), rng.integers(0, V, 24)
    some = np.where(np.arange(24) < 16, y, -100)
    alone = solvers.pdadmm(net)
    masked = solvers.pdadmm(net, loss=MASKED)
    state = masked.init(jax.random.key(0), x, some)
    new, _ = masked.step(state, x, some)
    m = np.asarray(new.z[-1] + new.r[-1])
    np.testing.assert_allclose(new.z[-1][16:], m[16:], atol=1e-12)  # z_L <- m: they ask for nothing
    assert np.abs(np.asarray(new.z[-1] - m)[:16]).max() > 1e-3
    twice = losses.cross_entropy(class_weights=[2.0] * V)
    one, two = (
        solvers.pdadmm(net, loss=loss).step(alone.init(jax.random.key(0), x, y), x, y)[0]
        for loss in ("cross_entropy", twice)
    )
    for a, b in zip(*map(jax.tree.leaves, (one.weights, two.weights)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)  # weights count by their ratio
    mesh = sharding.make_mesh(2, 1, 4)
    testing.check_placed(masked, x, some, mesh)
    testing.check_bytes(masked, x, some, mesh)


def test_training_and_evaluation_mean_the_same_number():
    still = solvers.sgd(NET, **SHARED | {"optimizer": optax.sgd(0.0)})
    validation = {"train": (X, Y)}
    metrics = {"perplexity": losses.perplexity(ignore_index=-100), "top2": top2}
    result = jtssm.fit(
        still, (X, Y), epochs=1, key=jax.random.key(0), validation=validation, metrics=metrics
    )
    line = result.history[-1]
    assert line["loss"] == pytest.approx(line["train_loss"], rel=1e-12)
    assert line["accuracy"] == pytest.approx(line["train_accuracy"], rel=1e-12)
    expected = by_optax(NET, result.params, X, Y)
    assert line["train_loss"] == pytest.approx(float(expected), rel=1e-12)
    assert line["train_perplexity"] == pytest.approx(float(jnp.exp(expected)), rel=1e-12)
    outputs = np.asarray(NET.apply(result.params, X))
    best = np.argsort(outputs, axis=-1)[..., -2:]
    right = (best == Y[..., None]).any(-1)[Y >= 0].mean()
    assert line["train_top2"] == pytest.approx(right, rel=1e-12)


def top2(outputs, y):
    _, best = jax.lax.top_k(outputs, 2)
    return (best == y[..., None]).any(-1).astype(outputs.dtype)


def test_evaluation_takes_batches_streams_and_other_parameters():
    method = solvers.sgd(NET, **SHARED)
    state = method.init(jax.random.key(0), X, Y)
    whole = jtssm.evaluate(method, state, (X, Y))
    small = jtssm.evaluate(method, state, (X, Y), batch_size=5)
    streamed = jtssm.evaluate(
        method, state, ((X[i : i + 10], Y[i : i + 10]) for i in range(0, 32, 10))
    )
    for other in (small, streamed):
        assert other.keys() == whole.keys()
        np.testing.assert_allclose(list(other.values()), list(whole.values()), rtol=1e-12)
    zero = lambda state: jax.tree.map(np.zeros_like, method.params(state))
    flat = jtssm.evaluate(method, state, (X, Y), params=zero)
    assert flat["loss"] == pytest.approx(np.log(V), rel=1e-12)
    with pytest.raises(ValueError, match=r"metrics\['a'\]: expected a function"):
        jtssm.evaluate(method, state, (X, Y), metrics={"a": 3})


# momentum goes on without a gradient, and reduce_on_plateau wants the loss
TOLD = optax.chain(optax.sgd(0.1, momentum=0.9), optax.contrib.reduce_on_plateau(patience=1))
RUNNING = SHARED | {"optimizer": TOLD}
TWO_SWEEPS = solvers.Streaming(sweeps=2)
SKIPPING = {
    "sgd": (solvers.sgd(NET, **RUNNING), (1, 1, 4)),
    "gsadmm": (solvers.gsadmm(NET, subnets=2, schedule=TWO_SWEEPS, **RUNNING), (2, 1, 2)),
    "local_sgd": (
        solvers.local_sgd(NET, workers=2, local_steps=1, **RUNNING | {"batch_size": B // 2}),
        (2, 1, 2),
    ),
}


def trained(method, ids, params):
    """What is trained, as plain trees, after minibatches of those numbers, each drained; -1: no labels."""
    state, step, drain = (
        method.init(jax.random.key(0), X, Y.clip(-100), params),
        jax.jit(method.step),
        jax.jit(method.drain),
    )
    lead, infos = method.batch_shape, []
    for i in ids:
        rows = slice(i * B, i * B + B) if i >= 0 else slice(0, B)
        y = Y[rows] if i >= 0 else np.full((B, T), -100)
        state, info = step(state, X[rows].reshape(*lead, T, 5), y.reshape(*lead, T))
        state, infos = drain(state), [*infos, info]
    state = sharding.gathered(state)
    return jax.tree.leaves([getattr(state, n) for n in method.program.weight_fields]), infos


@pytest.mark.parametrize("name", SKIPPING)
def test_a_minibatch_in_which_nothing_counts_is_as_if_it_never_was(name):
    alone, shape = SKIPPING[name]
    params = NET.init(jax.random.key(3), jnp.float64)
    plain, _ = trained(alone, [0, 1], params)
    for method in (alone, sharding.place(alone, sharding.make_mesh(*shape))):
        found, infos = trained(method, [0, -1, 1, -1], params)
        again, _ = trained(method, [0, 1], params)
        assert len(found) > len(jax.tree.leaves(params))
        for a, b, c in zip(found, again, plain, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_allclose(a, c, atol=1e-10)
        assert np.isnan(infos[-1].loss)
        assert infos[-1].samples == 0


def test_a_worker_without_weight_stands_still_while_the_others_go_on():
    method = SKIPPING["local_sgd"][0]
    params, half = NET.init(jax.random.key(3), jnp.float64), B // 2
    x, y = X[B:].reshape(1, 2, half, T, 5), Y[B:].reshape(1, 2, half, T).copy()
    y[0, 1] = -100
    state = method.init(jax.random.key(0), X, Y, params)
    new, info = method.step(state, x, y)
    g = jax.grad(lambda p: by_optax(NET, p, x[0, 0], y[0, 0]))(params)
    expected = jax.tree.map(lambda a, g: a - 0.05 * g, params, g)  # the mean of one step and none
    for a, b in zip(*map(jax.tree.leaves, (method.params(new), expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)
    for a, b in zip(*map(jax.tree.leaves, (new.opt_state, state.opt_state)), strict=True):
        np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_allclose(info.loss, by_optax(NET, params, x[0, 0], y[0, 0]), rtol=1e-12)


@pytest.mark.parametrize("make", [solvers.gsadmm, solvers.gsam])
def test_stored_schedules_leave_the_last_piece_where_nothing_counts(make):
    method = make(NET, subnets=2, schedule="stored", **RUNNING)
    state = method.init(jax.random.key(0), X, Y)
    new, _ = jax.jit(method.step)(state, X, np.full_like(Y, -100))
    moved = [
        any((a != b).any() for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in zip(new.weights, state.weights, strict=True)
    ]
    assert moved == [True, False]  # the first one counts its steps: it has q and p to fit


def test_an_epoch_shows_the_mean_of_the_minibatches_that_count():
    few = np.full_like(Y, -100)
    few[-3:] = np.maximum(Y[-3:], 0)
    still = solvers.sgd(NET, **SHARED | {"optimizer": optax.sgd(0.0), "batch_size": 4})
    result = jtssm.fit(
        still, (X, few), epochs=1, key=jax.random.key(0), validation={"train": (X, few)}
    )
    line = result.history[-1]
    assert result.divergence is None
    assert line["samples"] == 3 * T  # of 8 minibatches 5 at least have none
    assert line["loss"] == pytest.approx(line["train_loss"], rel=1e-12)


def test_smoothing_and_class_weights_are_what_optax_has():
    y, outputs = RNG.integers(0, V, 9), jnp.asarray(RNG.normal(size=(9, V)))
    smooth = losses.cross_entropy(label_smoothing=0.1)
    soft = optax.smooth_labels(jax.nn.one_hot(y, V, dtype=outputs.dtype), 0.1)
    np.testing.assert_allclose(
        smooth.value(outputs, y), optax.losses.softmax_cross_entropy(outputs, soft)
    )
    table = np.linspace(0.5, 2, V)
    weighed = losses.summed(losses.cross_entropy(class_weights=table), outputs, jnp.asarray(y))
    value = optax.losses.softmax_cross_entropy_with_integer_labels(outputs, y)
    np.testing.assert_allclose(
        weighed.loss / weighed.weight, (value * table[y]).sum() / table[y].sum()
    )


def own(outputs, y):
    """Squared distance to the one-hot label, one number a position."""
    return ((outputs - jax.nn.one_hot(y, V)) ** 2).sum(-1)


def test_a_function_is_a_loss_and_the_mean_is_taken_for_it():
    method = solvers.sgd(NET, **SHARED | {"loss": own, "optimizer": optax.sgd(0.1)})
    y = np.maximum(Y, 0)
    params = NET.init(jax.random.key(3), jnp.float64)
    state = method.init(jax.random.key(0), X, y, params)
    state, info = method.step(state, X[:B], y[:B])
    mean = lambda p: own(NET.apply(p, X[:B]), y[:B]).mean()
    np.testing.assert_allclose(info.loss, mean(params), rtol=1e-12)
    for a, b, g in zip(
        *map(jax.tree.leaves, (method.params(state), params, jax.grad(mean)(params))), strict=True
    ):
        np.testing.assert_allclose(a, b - 0.1 * g, atol=1e-12)


BAD = [
    (
        lambda o, y: own(o, y).mean(),
        Y,
        r"loss: expected one number a sample.*got \(\) of '<lambda>'",
    ),
    (lambda o, y: o @ y, Y, r"loss: expected a function of outputs \(2, 6, 7\)"),
    (MASKED._replace(weight=lambda y: y[:, 0]), Y, r"loss: expected weights of the shape"),
    (MASKED, Y[:, 0], r"y: expected shape \(32, 6\) for cross_entropy"),
    (MASKED, Y - 1, r"y: expected labels 0..6, or -100"),
    (
        "cross_entropy",
        Y,
        r"y: expected labels 0..6, the network has 7 outputs; got -100..6: where -100 .*ignore_index=-100",
    ),
    ("sigmoid_cross_entropy", Y, r"y: expected shape \(32, 6, 7\)"),
]


@pytest.mark.parametrize(("loss", "y", "message"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_meant_is_refused_by_name(loss, y, message):
    method = solvers.sgd(NET, **SHARED | {"loss": loss})
    with pytest.raises(ValueError, match=message):
        jtssm.fit(method, (X, y), epochs=1, key=jax.random.key(0))


def test_bad_arguments_of_a_loss_are_named():
    for given, message in (
        ({"ignore_index": "pad"}, "ignore_index: expected None or an integer"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected"),
        ({"class_weights": [1.0, -1.0]}, "class_weights: expected one number a class"),
    ):
        with pytest.raises(ValueError, match=message):
            losses.cross_entropy(**given)
    for given in (float, jax.nn.relu, 3):
        with pytest.raises(ValueError, match=r"loss: expected one of .* a function \(outputs, y\)"):
            losses.find(given)


def test_a_network_of_labels_a_position_and_one_of_targets_are_planned():
    adam = {"optimizer": optax.adam(1e-2)}
    for loss in (MASKED, "squared_error"):
        plan = jtssm.plan(NET, 4, 16, "tpu-v5e", method="sgd", loss=loss, **adam)
        assert plan.best.seconds.total > 0
