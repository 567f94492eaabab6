"""Normalisation and dropout as layers of a network, under plain training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import sharding, solvers
from jtssm.data import synthetic
from jtssm.nn import perceptrons
from jtssm.nn.dropout import dropout_layer
from jtssm.nn.ops import PLAIN

X, Y = synthetic.separable(0, 120, 4, 3, np.float64)
KEY = jax.random.key(0)


def normal(z, axis):
    return (z - z.mean(axis=axis, keepdims=True)) / np.sqrt(z.var(axis=axis, keepdims=True) + 1e-5)


@pytest.mark.parametrize("name", ["batch", "running", "layer"])
def test_each_normalises_what_its_docstring_says(name):
    net = jtssm.mlp([4, 6, 3], normalisation=name)
    params = net.init(KEY, jnp.float64)
    params[0]["gamma"] = params[0]["gamma"] * 2.0 + jnp.arange(6)
    params[0]["beta"] = params[0]["beta"] + 0.5
    if name == "running":  # the statistics of other samples
        params = net.estimate(params, X[60:])
    z = X[:60] @ np.asarray(params[0]["W"])
    other = X[60:] @ np.asarray(params[0]["W"])
    expected = {
        "batch": normal(z, 0),
        "layer": normal(z, 1),
        "running": (z - other.mean(0)) / np.sqrt(other.var(0) + 1e-5),
    }[name]
    hidden = np.maximum(expected * np.asarray(params[0]["gamma"]) + 0.5, 0)
    outputs = net.apply(params, X[:60])
    logits = hidden @ np.asarray(params[1]["W"])
    if name == "layer":
        np.testing.assert_allclose(outputs, logits + np.asarray(params[1]["b"]), atol=1e-10)
    elif name == "batch":
        np.testing.assert_allclose(outputs, normal(logits, 0), atol=1e-10)
        assert set(params[1]) == {"W"}  # the outputs have neither gamma nor beta
    else:
        mean, var = (np.asarray(params[1][name]) for name in ("mean", "var"))
        np.testing.assert_allclose(outputs, (logits - mean) / np.sqrt(var + 1e-5), atol=1e-10)


def test_while_training_running_statistics_are_the_minibatchs():
    batch, running = (perceptrons.dense(6, jax.nn.relu, name) for name in ("batch", "running"))
    params = running.init(KEY, (4,), jnp.float64)
    train = PLAIN.to_train()
    np.testing.assert_array_equal(running.apply(params, X, train), batch.apply(params, X, train))


@pytest.mark.parametrize(
    ("normalisation", "shape"),
    [
        ("batch", (1, 1, 4)),
        *(pytest.param(kind, (1, 2, 2), marks=pytest.mark.slow) for kind in ("running", "layer")),
    ],
)
def test_statistics_and_dropout_are_the_same_on_a_mesh(normalisation, shape):
    net = jtssm.mlp([4, 8, 3], normalisation=normalisation, dropout=0.25)
    method = solvers.sgd(net, optimizer=optax.adamw(0.01), batch_size=20)
    placed = sharding.place(method, sharding.make_mesh(*shape))
    found = []
    for m in (method, placed):
        state, step = m.init(KEY, X, Y), jax.jit(m.step)
        for i in range(3):
            state, info = step(state, X[20 * i :][:20], Y[20 * i :][:20])
        state = jax.jit(m.estimate)(state, X)
        found.append((info.loss, m.predict(state, X), m.predict(state, X[:7])))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-10)


def test_fit_estimates_statistics_before_each_evaluation():
    net = jtssm.mlp([4, 8, 3], normalisation="running")
    method = solvers.sgd(net, optimizer=optax.sgd(0.1), batch_size=20)
    result = jtssm.fit(method, (X, Y), epochs=4, key=KEY, validation=(X, Y))
    assert result.history[-1]["validation_accuracy"] > 0.95
    z = X @ np.asarray(result.params[0]["W"])
    np.testing.assert_allclose(result.params[0]["mean"], z.mean(axis=0), atol=1e-10)


def test_dropout_keeps_its_share_scales_it_and_is_off_in_prediction():
    layer = dropout_layer(0.25)
    keys = jax.random.split(KEY, 2000)
    x = jnp.full((2000, 5), 3.0)
    train = PLAIN.to_train(lambda: keys)
    dropped = np.asarray(layer.apply({}, x, train))
    assert set(np.unique(dropped)) == {0.0, 4.0}
    np.testing.assert_allclose((dropped > 0).mean(axis=0), 0.75, atol=0.04)
    np.testing.assert_array_equal(layer.apply({}, x, PLAIN), x)


def test_every_step_drops_others():
    """A rate of 0 in the optimizer: only dropout makes the loss of equal minibatches differ."""
    net = jtssm.mlp([4, 8, 3], dropout=0.5)
    method = solvers.sgd(net, optimizer=optax.sgd(0.0), batch_size=20)
    state, losses = method.init(KEY, X, Y), set()
    for _ in range(3):
        state, info = method.step(state, X[:20], Y[:20])
        losses.add(float(info.loss))
    assert len(losses) == 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: jtssm.mlp([4, 3], normalisation="group"),
            r"normalisation: expected None or one of \['batch', 'layer', 'running'\]; got 'group'",
        ),
        (
            lambda: jtssm.mlp([4, 4, 3], dropout=1.0),
            r"dropout: expected a share of at least 0 and below 1, e\.g\. 0\.5; got 1\.0",
        ),
        (lambda: jtssm.mlp([4, 4, 3], dropout=-0.1), r"dropout: expected a share"),
        (
            lambda: solvers.gsadmm(
                jtssm.mlp([4, 4, 3], dropout=0.5),
                optimizer=optax.sgd(1),
                batch_size=2,
                schedule="stored",
            ),
            r"net: expected layers without dropout.*for gsadmm; got layer 1, 'dropout 0\.5'",
        ),
        (
            lambda: solvers.gsam(
                jtssm.mlp([4, 3], normalisation="running"),
                optimizer=optax.sgd(1),
                batch_size=2,
                schedule="stored",
            ),
            r"for gsam; got layer 0, 'dense 3 running': use normalisation='batch' or 'layer'",
        ),
        (
            lambda: solvers.pdadmm(jtssm.mlp([4, 4, 3], normalisation="layer")),
            r"net: .*'dense 4 relu layer'",
        ),
    ],
)
def test_misuse_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_network_of_minibatch_statistics_is_cut_too():
    net = jtssm.mlp([4, 8, 8, 3], normalisation="batch")
    method = solvers.gsadmm(net, subnets=2, optimizer=optax.sgd(0.1), batch_size=20)
    result = jtssm.fit(method, (X, Y), epochs=15, key=KEY, validation=(X, Y))
    assert result.history[-1]["validation_accuracy"] > 0.95
