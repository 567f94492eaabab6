"""The contract, run on a method of one's own; and on ones that break it."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from examples.diloco import diloco
from jtssm import sharding, solvers, testing
from jtssm.cli import main
from jtssm.data import synthetic
from jtssm.solvers import methods

NET = jtssm.mlp([4, 16, 12, 3], normalisation="running")
X, Y = synthetic.separable(0, 120, 4, 3, np.float64)
OWN = diloco(NET, workers=2, optimizer=optax.adam(1e-2), local_steps=2, batch_size=10)


def test_a_method_of_ones_own_keeps_the_contract():
    testing.check_method(OWN, X, Y, mesh=sharding.make_mesh(subnet=2, pc=2))


def test_without_momentum_and_at_rate_one_it_is_local_sgd():
    """An outer step of the mean's whole movement."""
    ways = {"optimizer": optax.sgd(0.1), "local_steps": 2, "batch_size": 10}
    averaged = solvers.local_sgd(NET, workers=2, **ways)
    own = diloco(NET, workers=2, outer_rate=0.0, **ways)
    key = jax.random.key(0)
    state, other = averaged.init(key, X, Y), own.init(key, X, Y)
    jax.tree.map(np.testing.assert_array_equal, averaged.params(state), own.params(other))
    given = testing.minibatch(own, X, Y)
    moved, _ = jax.jit(averaged.step)(state, *given)
    stays, info = jax.jit(own.step)(other, *given)
    jax.tree.map(np.testing.assert_array_equal, own.params(stays), own.params(other))
    assert float(info.loss) == float(jax.jit(averaged.step)(state, *given)[1].loss)
    mean = [
        a - b
        for a, b in zip(
            *(jax.tree.leaves(m) for m in (own.params(other), averaged.params(moved))), strict=True
        )
    ]
    outer = optax.sgd(0.7, momentum=0.9, nesterov=True)
    ours = solvers.local_sgd(NET, workers=2, outer_optimizer=outer, **ways)
    there = [
        m.params(jax.jit(m.step)(m.init(key, X, Y), *given)[0])
        for m in (ours, diloco(NET, workers=2, **ways))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), *there)
    # nesterov with momentum 0.9 from rest moves 1.9 times as far
    swift, _ = jax.jit(diloco(NET, workers=2, outer_rate=1.0, **ways).step)(other, *given)
    for start, end, gradient in zip(
        *(jax.tree.leaves(a) for a in (other.params, swift.params)), mean, strict=True
    ):
        np.testing.assert_allclose(start - end, 1.9 * gradient, atol=1e-12)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(solvers.METHODS))
    for module in (solvers, methods):
        monkeypatch.setattr(module, "METHODS", methods.METHODS)
    solvers.register("diloco", diloco)


def test_the_command_line_trains_it_by_the_name_of_its_module(registered, tmp_path, capsys):
    ways = ["--workers", "2", "--local-steps", "2", "--batch-size", "20", "--outer-rate", "0.5"]
    out = ["--hidden", "16", "--epochs", "2", "--out", str(tmp_path / "run")]
    assert main(["train", "examples.diloco:diloco", *ways, *out]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())["results"]
    assert list(result) == ["diloco"]
    assert main(["train", "examples.diloco:nothing"]) == 2
    assert "expected package.module:function" in capsys.readouterr().err


def test_it_is_planned_and_swept_by_name(registered):
    net = jtssm.mlp([784, 512, 512, 10])
    best = jtssm.plan(net, 4, 64, "tpu-v5e", method="diloco", workers=4, local_steps=5).best
    assert best.method.name == "diloco"
    same = jtssm.plan(net, 4, 64, "tpu-v5e", method="local_sgd", workers=4, local_steps=5).best
    assert (best.shape, best.seconds, best.bytes) == (same.shape, same.seconds, same.bytes)
    records = jtssm.sweep(net, 4, 64, "tpu-v5e", method="diloco", workers=4, count=False)
    assert [r["mesh"] for r in records if r["best"]] == [" x ".join(map(str, best.shape))]


def _restless(method):
    """An init that draws anew at each call."""
    keys = itertools.count()
    return lambda key, x, y, params=None: method.init(jax.random.key(next(keys)), x, y, params)


BROKEN = {
    "step: the state keeps its structure": lambda m: m._replace(
        step=lambda state, x, y: m.step(state._replace(round=jnp.float64(0)), x, y)
    ),
    "the same key draws": lambda m: m._replace(init=_restless(m)),
    "predict: expected": lambda m: m._replace(predict=lambda state, x: m.predict(state, x)[:, :2]),
}


@pytest.mark.parametrize("promise", list(BROKEN))
def test_a_broken_promise_is_named(promise):
    with pytest.raises(AssertionError, match=promise):
        testing.check_method(BROKEN[promise](OWN), X, Y, resume=False)


BAD = [
    (("my method", diloco), "name: expected an identifier"),
    (("sgd", diloco), "name: expected one that is not taken"),
    (("other", 3), "constructor: expected a function"),
    (("other", lambda net, rate: None), r"constructor: expected arguments \(net, \*, ...\)"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_what_cannot_be_registered_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        solvers.register(*given)
    assert set(solvers.METHODS) == {
        "ensemble",
        "gsadmm",
        "gsam",
        "ist",
        "local_sgd",
        "pdadmm",
        "pipeline",
        "sgd",
    }
