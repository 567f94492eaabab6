"""Equal blocks as one layer: the numbers of blocks one by one, in a program that does not grow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtssm import nn, sharding, solvers
from jtssm.nn.ops import PLAIN
from jtssm.sharding import cost
from tests.nn.own_layer import Grow

WIDTH, HEADS, HIDDEN, TOKENS, TIMES = 8, 2, 12, 3, 3
BLOCK = [nn.attention(WIDTH, HEADS), nn.perceptron(WIDTH, HIDDEN)]
SHAPE = {"width": WIDTH, "heads": HEADS, "hidden": HIDDEN, "sequence": TOKENS, "classes": 4}
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, TOKENS, WIDTH)), RNG.integers(0, 4, 8)
WAYS = {"optimizer": optax.sgd(0.3, momentum=0.9), "batch_size": 8, "precision": "highest"}


@functools.cache
def pair():
    """(a network of 2 x TIMES blocks one by one, the same of two layers, as it has its parameters)."""
    apart, together = (nn.transformer(2 * TIMES, **SHAPE, together=k) for k in (1, TIMES))
    return apart, together, together.init(jax.random.key(0), jnp.float64)


def one_by_one(params):
    """The parameters of two layers of TIMES blocks as those of single blocks."""
    blocks = [
        {name[:-1]: a[t] for name, a in layer.items() if name[-1] == str(part)}
        for layer in params[:2]
        for t in range(TIMES)
        for part in range(2)
    ]
    return [*blocks, *params[2:]]


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), a, b)


def test_outputs_and_gradients_are_those_of_blocks_one_by_one():
    apart, together, params = pair()
    of = lambda net: jax.value_and_grad(lambda p: (net.apply(p, X) ** 2).sum())
    (value, gradient), (other, single) = of(together)(params), of(apart)(one_by_one(params))
    close((value, one_by_one(gradient)), (other, single))
    assert together.costs()[0] == sum(apart.costs()[: 2 * TIMES])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        lambda a: a.shape, together.parameter_shapes()
    )
    # every block is drawn for itself
    assert len({float(a) for a in params[0]["W10"][:, 0, 0]}) == TIMES


def test_what_lies_between_blocks_is_counted_as_that_of_single_ones():
    apart, together, _ = pair()
    run = cost.Run(8, 1, 1, 1, first=False)
    of = lambda net: [8 * task.between for task in cost.network_tasks(net, run, 8)]
    inputs = 8 * TOKENS * WIDTH  # of every layer but the first
    assert of(together)[0] == sum(of(apart)[: 2 * TIMES]) + (2 * TIMES - 1) * inputs


def test_a_program_does_not_grow_with_the_blocks():
    """Equations of a step of gsADMM on two subnetworks of one layer each."""

    def equations(times):
        net = nn.transformer(2 * times, **SHAPE, together=times)
        method = solvers.gsadmm(net, subnets=2, microbatches=2, **WAYS)
        state = method.init(jax.random.key(0), X, Y)
        return str(jax.make_jaxpr(method.step)(state, X, Y)).count("\n")

    assert equations(2) == equations(9)


@pytest.mark.parametrize(
    ("make", "sizes", "form"),
    [
        (functools.partial(solvers.gsadmm, subnets=2, microbatches=2), (2, 1, 2), "batch"),
        pytest.param(solvers.sgd, (1, 2, 2), "gathered", marks=pytest.mark.slow),
    ],
)
def test_a_mesh_gives_the_same_numbers_and_moves_what_it_should(make, sizes, form):
    _, net, params = pair()
    plain, mesh, forms = make(net, **WAYS), sharding.make_mesh(*sizes), [form] * 2 + ["batch"] * 2
    placed, found = sharding.place(plain, mesh, forms=forms), []
    for method in (plain, placed):
        state = method.init(jax.random.key(0), X, Y, params)
        if method is placed:
            moved = sharding.count_bytes(method.step, state, X, Y)
            assert cost.step_bytes(plain, mesh, forms=forms, word=8) == moved
        step = jax.jit(method.step)
        for i in range(4):
            state, info = step(state, np.roll(X, i, 0), np.roll(Y, i, 0))
        found.append((method.params(state), info.loss))
    close(*found)
    assert not np.allclose(found[0][0][0]["W11"], params[0]["W11"], atol=1e-3)


def test_norms_stay_in_full_where_layers_compute_in_bfloat16():
    _, net, params = pair()
    names = {"gamma0", "beta0", "gamma1", "beta1"}
    assert set(net.layers[0].uncast) == names
    method = solvers.sgd(net, **WAYS, compute_dtype=jnp.bfloat16)
    state = method.init(jax.random.key(0), X, Y, params)
    rounded = jax.tree.map(
        lambda a: a.astype(jnp.bfloat16).astype(a.dtype) if a.ndim > 2 else a, params
    )
    found, exact = method.predict(state, X), net.apply(rounded, X)
    assert 0 < abs(found - exact).max() < 0.1


def test_a_layer_of_ones_own_is_repeated():
    class Shift(nn.Layer):
        def init(self, key, shape, dtype):
            return {"by": jax.random.normal(key, shape, dtype)}

        def apply(self, params, x, products):
            return jnp.tanh(x + params["by"][None])

        def shape(self, shape):
            return shape

        def cost(self, shape):
            return 0

    layer = nn.repeated([Shift()], 4)
    params = layer.init(jax.random.key(0), (5,), jnp.float64)
    x = expected = RNG.normal(size=(2, 5))
    for by in np.asarray(params["by0"]):
        expected = np.tanh(expected + by[None])
    np.testing.assert_allclose(layer.apply(params, x, PLAIN), expected, rtol=1e-12)


def test_parameters_without_names_are_refused():
    class Bare(nn.Layer):
        def init(self, key, shape, dtype):
            return jnp.zeros(shape, dtype)

        def apply(self, params, x, products):
            return x + params[None]

        def shape(self, shape):
            return shape

        def cost(self, shape):
            return 0

    net = nn.sequence([nn.repeated([Bare()], 2)], (3,))
    with pytest.raises(ValueError, match=r"expected parameters by their names.*of 'Bare'.*got"):
        net.init(jax.random.key(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.repeated([], 2), r"layers: expected one to ten layers of a block.*got \[\]"),
        (lambda: nn.repeated(BLOCK, 0), "times: expected an integer of at least 1; got 0"),
        (lambda: nn.repeated([3], 2), r"layers\[0\]: expected a.*Layer.*got 3"),
        (
            lambda: nn.repeated([nn.dense(3), nn.dropout_layer(0.5)], 2),
            r"layers\[1\]: expected a layer.*draws nothing.*got 'dropout 0.5'",
        ),
        (
            lambda: nn.repeated([nn.dense(3, None, "batch")], 2),
            r"layers\[0\]: expected a layer.*keeps no statistics",
        ),
        (
            lambda: nn.repeated(nn.layers([jnp.tanh], jnp.zeros((1, 3))).layers, 2),
            r"layers\[0\]: expected a layer of jtssm or a nn.Layer of yours",
        ),
        (
            lambda: nn.sequence([nn.repeated([Grow(3)], 2)], (6,)),
            r"2 x \(.*\): expected a block that gives what it takes, \(6,\); got",
        ),
        (
            lambda: nn.transformer(6, **SHAPE, together=4),
            r"together: expected one of \[1, 2, 3, 6\], which divide 6 blocks; got 4",
        ),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
