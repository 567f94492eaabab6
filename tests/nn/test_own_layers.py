"""A layer with init, apply, shape and cost alone trains by every method that asks no more of it."""

import jax
import numpy as np
import optax
import pytest

from jtssm import nn, sharding, solvers
from jtssm.data import synthetic
from jtssm.sharding.layers import questions
from tests.nn.own_layer import Double, Grow

NET = nn.sequence([Grow(6), Double(), nn.dense(8, jax.nn.relu), nn.dense(3)], (4,))
X, Y = synthetic.separable(0, 24, 4, 3, np.float64)
PIECES = {"optimizer": optax.sgd(0.1), "batch_size": 8}
ROUND = {"optimizer": optax.sgd(0.1), "batch_size": 4, "local_steps": 2}
METHODS = {
    "sgd": solvers.sgd(NET, **PIECES),
    "gsadmm": solvers.gsadmm(NET, subnets=2, **PIECES),
    "gsadmm, stored": solvers.gsadmm(NET, subnets=2, schedule="stored", **PIECES),
    "gsam": solvers.gsam(NET, subnets=2, **PIECES),
    "gsam, stored": solvers.gsam(NET, subnets=2, schedule="stored", **PIECES),
    "local_sgd": solvers.local_sgd(NET, workers=2, **ROUND),
    "ensemble": solvers.ensemble(NET, members=2, **ROUND),
}
SHAPES = {"sgd": (1, 2, 2), "local_sgd": (2, 1, 2), "ensemble": (2, 1, 2)}


def trained(method):
    """The parameters after three steps."""
    state = method.init(jax.random.key(0), X, Y)
    x, y = X, Y
    if not method.resident:
        size = int(np.prod(method.batch_shape))
        x, y = X[:size].reshape(*method.batch_shape, -1), Y[:size].reshape(method.batch_shape)
    step = jax.jit(method.step)
    for _ in range(3):
        state, _ = step(state, x, y)
    return method.params(state)


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_on_one_device_and_on_a_mesh_in_the_form_batch(name):
    method = METHODS[name]
    expected = trained(method)
    start = NET.init(jax.random.key(0), np.float64)[0]["W"]  # one for each member of an ensemble
    assert (np.asarray(expected[0]["W"]) != np.asarray(start)).all()
    split = method.name in ("sgd", "gsadmm", "gsam")
    shape = SHAPES.get(name, (2, 2, 2))
    placed = sharding.place(method, sharding.make_mesh(*shape))
    if split:
        assert placed.forms[:2] == ("batch", "batch")
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(trained(placed)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_its_name_is_its_class_unless_it_says_another():
    assert Double().name == repr(Double())[:-2] == "Double"
    assert Grow(3, 2).name == "grow 3 2"


def test_a_form_is_taught_to_the_grid_by_registering_an_answer():
    class Scale(Double):
        """s x, column by column."""

        def init(self, key, shape, dtype):
            return {"s": np.ones(shape, dtype)}

        def apply(self, params, x, products):
            return x * params["s"][None, :]

    net = nn.sequence([nn.dense(8, jax.nn.tanh), Scale(), nn.dense(3)], (4,))
    forms = ["model", "model", "row"]
    method = solvers.sgd(net, **PIECES)
    mesh = sharding.make_mesh(1, 2, 1)
    with pytest.raises(ValueError, match=r"forms\[1\]: expected one of .*'Scale' has no such form"):
        sharding.place(method, mesh, forms=forms)
    questions.splits.register(Scale, lambda layer: {"model": {"s": 0}})
    questions.mixes.register(Scale, lambda layer: False)
    placed = sharding.place(method, mesh, forms=forms)
    for a, b in zip(
        jax.tree.leaves(trained(method)), jax.tree.leaves(trained(placed)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-10)
