"""Parameters that two modules share stay one: both uses lie in one layer, which no cut parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from jtssm import nn, sharding, solvers
from jtssm.nn.interop.tied import Tie, spans

X = np.random.default_rng(0).normal(size=(8, 8))
Y = np.arange(8) % 3
TOKENS = np.random.default_rng(1).integers(0, 11, (8, 6))


class Head(nnx.Module):
    """Logits by the embedding that it is given."""

    def __init__(self, embed):
        self.embed = embed

    def __call__(self, x):
        return self.embed.attend(x.mean(axis=1))


class Around(linen.Module):
    """A product after a module that it is given."""

    inner: linen.Module

    @linen.compact
    def __call__(self, x):
        return linen.Dense(8)(self.inner(x))


def embedding():
    embed = nnx.Embed(11, 8, rngs=nnx.Rngs(0))
    return [embed, nnx.Linear(8, 8, rngs=nnx.Rngs(1)), Head(embed)]


def of_nnx():
    return nn.from_nnx(embedding(), jnp.zeros((1, 6), jnp.int32)), TOKENS


def of_linen():
    one = linen.Dense(8)
    modules = [linen.Dense(8), one, jnp.tanh, one, linen.Dense(3)]
    return nn.from_linen(modules, jnp.zeros((1, 8))), X


def of_functions():
    pair = {"w": jnp.eye(8) / 2, "none": None}, lambda p, x: x @ p["w"]
    last = lambda key, x: jax.random.normal(key, (8, 3)), lambda w, x: x @ w
    return nn.layers([pair, jnp.tanh, pair, last], jnp.zeros((1, 8))), X


MAKERS = {"nnx": of_nnx, "linen": of_linen, "functions": of_functions}


def trained(method, x):
    state = method.init(jax.random.key(0), x, Y)
    for _ in range(3):
        state, _ = jax.jit(method.step)(state, x, Y)
    return method.params(state)


@pytest.mark.parametrize(
    ("kind", "layers", "size"), [("nnx", 1, 160), ("linen", 3, 171), ("functions", 2, 88)]
)
def test_what_is_shared_counts_once(kind, layers, size):
    net, _ = MAKERS[kind]()
    assert len(net.layers) == layers
    assert sum(a.size for a in jax.tree.leaves(net.init(jax.random.key(0)))) == size


def by_hand(net, loss, params):
    """Three steps of plain optax."""
    for _ in range(3):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))
    return params


def cross_entropy(outputs):
    return optax.losses.softmax_cross_entropy_with_integer_labels(outputs, Y).mean()


@pytest.mark.parametrize("mesh", [None, (1, 2, 2)])
def test_a_tied_linen_module_trains_as_in_flax(mesh):
    net, x = of_linen()
    one = linen.Dense(8)
    model = linen.Sequential([linen.Dense(8), one, jnp.tanh, one, linen.Dense(3)])
    first, both, last = (p["params"] for p in net.init(jax.random.key(0), jnp.float64))
    start = {"params": {"layers_0": first, "layers_1": both[0], "layers_4": last}}
    expected = by_hand(net, lambda p: cross_entropy(model.apply(p, x)), start)["params"]
    method = solvers.sgd(net, optimizer=optax.sgd(0.1), batch_size=8)
    method = method if mesh is None else sharding.place(method, sharding.make_mesh(*mesh))
    found = [p["params"] for p in trained(method, x)]
    for mine, theirs in ((found[0], "layers_0"), (found[1][0], "layers_1"), (found[2], "layers_4")):
        close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12)
        jax.tree.map(close, mine, expected[theirs])


def test_tied_embeddings_train_as_in_nnx_and_come_back_tied():
    net, x = of_nnx()
    method = solvers.sgd(net, optimizer=optax.sgd(0.1), batch_size=8)
    modules = net.modules(trained(method, x))
    graph, params = nnx.split(nnx.Sequential(*embedding()))
    params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    expected = by_hand(net, lambda p: cross_entropy(nnx.merge(graph, p)(x)), params)
    model = nnx.Sequential(*modules)
    assert modules[2].embed.embedding is modules[0].embedding
    found = nnx.state(model, nnx.Param)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    jax.tree.map(close, nnx.to_pure_dict(found), nnx.to_pure_dict(expected))


def test_an_array_in_two_functions_stays_one():
    net, x = of_functions()
    method = solvers.sgd(net, optimizer=optax.sgd(0.1), batch_size=8)
    params = trained(method, x)
    first, _, second, _ = net.modules(params)
    assert first[0]["w"] is second[0]["w"]
    w, last = params[0]["params"][0]["w"], params[1]["params"]
    np.testing.assert_allclose(net.apply(params, x), jnp.tanh(x @ w) @ w @ last, rtol=1e-6)
    assert np.abs(w - np.eye(8) / 2).max() > 1e-3


def test_a_module_within_another_is_tied_too():
    one = linen.Dense(8)
    net = nn.from_linen([one, jnp.tanh, Around(one)], jnp.zeros((1, 8)))
    (params,) = net.init(jax.random.key(0), jnp.float64)
    p, _, around = params["params"]
    dense = lambda p, x: x @ p["kernel"] + p["bias"][None]
    expected = dense(around["Dense_0"], dense(p, jnp.tanh(dense(p, X))))
    np.testing.assert_allclose(net.apply([params], X), expected, rtol=1e-12)


class Renamed(linen.Module):
    """Calls a copy of the module that it is given, under another name."""

    inner: linen.Module

    @linen.compact
    def __call__(self, x):
        return self.inner.clone(parent=self, name="other")(x)


class Normed(nnx.Module):
    """A product that it is given, and batch normalisation of its own."""

    def __init__(self, product):
        self.product = product
        self.norm = nnx.BatchNorm(8, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(self.product(x))


def test_what_cannot_be_one_is_refused_by_the_names_of_both():
    one = linen.Dense(8)
    with pytest.raises(ValueError, match=r"got Dense and Renamed, which share inner: put both"):
        nn.from_linen([one, Renamed(one)], jnp.zeros((1, 8)))
    one = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"got Normed and Normed, which share something and have"):
        nn.from_nnx([Normed(one), Normed(one)], jnp.zeros((1, 8)))
    assert nn.from_nnx([Normed(one), one], jnp.zeros((1, 8))).estimated


def test_a_chain_of_ties_ends_at_the_first():
    one = linen.Dense(8)
    outer = Around(one)
    net = nn.from_linen([one, outer, outer], jnp.zeros((1, 8)))
    assert sum(a.size for a in jax.tree.leaves(net.init(jax.random.key(0)))) == 2 * 72
    (params,) = net.init(jax.random.key(0), jnp.float64)
    assert np.isfinite(net.apply([params], X)).all()


def test_a_cut_keeps_them_together_or_names_them():
    net, x = of_linen()
    method = solvers.gsadmm(net, subnets=3, optimizer=optax.sgd(0.1), batch_size=8)
    assert len(trained(method, x)) == 3
    with pytest.raises(
        ValueError, match=r"subnets: expected 1\.\.3.*layer 1, Dense \+ tanh \+ Dense"
    ):
        nn.cut(net, 4, None)


def test_runs_are_as_short_as_no_tie_crosses_them():
    tie = lambda owner, module: Tie(module, (), owner, ())
    runs = lambda num, found: [(r.start, r.stop) for r in spans(num, found)]
    assert runs(3, []) == [(0, 1), (1, 2), (2, 3)]
    assert runs(5, [tie(1, 3)]) == [(0, 1), (1, 4), (4, 5)]
    assert runs(6, [tie(0, 2), tie(1, 4)]) == [(0, 5), (5, 6)]
    assert runs(5, [tie(0, 1), tie(2, 3)]) == [(0, 2), (2, 4), (4, 5)]
