"""Every kind of layer answers every question of every folder, and the answers fit its parameters."""

import importlib
import pkgutil
import typing
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtssm
from jtssm import nn, sharding
from jtssm.nn.ops import PLAIN, Window
from jtssm.sharding.layers import questions
from jtssm.solvers.layerwise import activations
from jtssm.solvers.workers.neurons import neurons, scaled
from tests.nn.own_layer import Grow

INIT = lambda key, x: {"W": jax.random.normal(key, (x.shape[-1], 3))}
KINDS = {
    "dense": (nn.dense(4, jnp.tanh), (6,)),
    "dense, running": (nn.dense(4, jnp.tanh, "running"), (6,)),
    "dense, outputs": (nn.dense(4, None, "batch", affine=False), (6,)),
    "convolution": (nn.convolution(4, 3, 2, "SAME", jnp.tanh), (8, 6, 2)),
    "convolution, groups": (nn.convolution(4, 3, groups=2, normalisation="layer"), (8, 6, 2)),
    "max pool": (nn.max_pool(2), (8, 6, 2)),
    "mean pool": (nn.mean_pool(2), (8, 6, 2)),
    "dropout": (nn.dropout_layer(0.5), (6,)),
    "bottleneck": (nn.bottleneck(2, 2, "running", widen=True), (8, 6, 2)),
    "attention": (nn.attention(4, 2), (5, 4)),
    "causal attention": (nn.attention(4, 2, causal=True), (5, 4)),
    "embedding": (nn.embedding(7, 4), (5,)),
    "scores": (nn.scores(4, 6), (5, 4)),
    "perceptron": (nn.perceptron(4, 6), (5, 4)),
    "mean of tokens": (nn.mean_token(4), (5, 4)),
    "repeated": (nn.repeated([nn.attention(4, 2), nn.perceptron(4, 6)], 3), (5, 4)),
    "a function": (nn.layers([(INIT, lambda p, x: x @ p["W"])], jnp.zeros((1, 6))).layers[0], (6,)),
    "a layer of the user's own": (Grow(3), (6,)),
}
ANSWERS = {
    questions.splits: dict,
    questions.window: (Window, type(None)),
    questions.mixes: bool,
    questions.groups: int,
    questions.pair: int,
    questions.prepares: bool,
    questions.bare: bool,
    neurons: (dict, type(None)),
    scaled: bool,
    activations.is_dense: bool,
    activations.activation: object,
}
OF_SAMPLES = {questions.between: int}  # of a layer and the shape of its samples


@pytest.fixture(params=KINDS)
def kind(request):
    """A layer, and the shape of its samples."""
    return KINDS[request.param]


def concrete(cls):
    """The kinds of layers in the package that stand for themselves."""
    found = {cls} if not cls.__abstractmethods__ and cls.__module__.startswith("jtssm") else set()
    return found.union(*map(concrete, cls.__subclasses__()))


def asked():
    """Every function of the package that is dispatched on a layer."""
    found = set()
    for module in pkgutil.walk_packages(jtssm.__path__, "jtssm."):
        if module.name.endswith("__main__"):
            continue
        for each in vars(importlib.import_module(module.name)).values():
            if hasattr(each, "registry") and hasattr(each, "dispatch"):
                default = each.registry[object]
                if typing.get_type_hints(default).get("layer") is nn.Layer:
                    found.add(each)
    return found


def test_the_table_holds_every_kind_and_every_question():
    assert concrete(nn.Layer) <= {type(layer) for layer, _ in KINDS.values()}
    assert asked() == {*ANSWERS, *OF_SAMPLES}


def test_every_kind_answers_every_question(kind):
    layer, shape = kind
    for question, answer in ANSWERS.items():
        assert isinstance(question(layer), answer), question.__name__
    for question, answer in OF_SAMPLES.items():
        assert isinstance(question(layer, shape), answer), question.__name__


def test_every_kind_answers_what_nn_itself_asks(kind):
    layer, shape = kind
    assert isinstance(layer.name, str)
    assert {type(a) for a in (layer.random, layer.integer)} == {bool}
    params = layer.init(jax.random.key(0), shape, jnp.float64)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, *shape)))
    assert layer.apply(params, x, PLAIN).shape == (3, *layer.shape(shape))
    assert isinstance(layer.cost(shape), int)
    assert set(layer.estimated) <= set(params)
    estimated = layer.estimate(params, x, PLAIN)
    assert jax.tree.structure(estimated) == jax.tree.structure(params)
    moved = {n for n in params if not np.array_equal(*map(_flat, (estimated[n], params[n])))}
    assert moved == set(layer.estimated)
    assert set(layer.uncast) <= {*params, "state"}
    assert all(each.over in ("samples", "neurons") for each in layer.statistics)


def _flat(tree):
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)] or [np.zeros(0)])


def test_a_form_splits_dimensions_that_the_parameters_have(kind):
    layer, shape = kind
    params = layer.init(jax.random.key(0), shape, jnp.float64)
    for form, split in questions.splits(layer).items():
        assert form in ("model", "row", "paired")
        assert jax.tree.structure(split) == jax.tree.structure(params)
        jax.tree.map(lambda a, d: a.shape[d], params, split)
        sizes = jax.tree.map(lambda a, d: a.shape[d] if d >= 0 else 0, params, split)
        wanted = prod(shape) if len(layer.shape(shape)) == 1 else shape[-1]
        if form == "row":
            assert set(jax.tree.leaves(sizes)) - {0} == {wanted}
        if form == "model":
            assert set(jax.tree.leaves(sizes)) <= {layer.shape(shape)[-1]}


def test_what_is_dealt_are_the_parameters_dimensions(kind):
    layer, shape = kind
    params = layer.init(jax.random.key(0), shape, jnp.float64)
    roles = neurons(layer)
    if roles is not None:
        image = len(layer.shape(shape)) > 1
        widths = {"in": shape[-1] if image else prod(shape), "out": layer.shape(shape)[-1]}
        assert set(roles) == set(params)
        for name, role in roles.items():
            told = [(widths[r], n) for r, n in zip(role, params[name].shape, strict=True) if r]
            assert told
            assert all(n == size for n, size in told)


def test_what_pdadmm_trains_is_the_activation_of_x_W_and_b(kind):
    layer, shape = kind
    if not activations.is_dense(layer):
        return
    params = layer.init(jax.random.key(0), shape, jnp.float64)
    x = np.random.default_rng(0).normal(size=(3, *shape))
    f = activations.activation(layer) or (lambda z: z)
    expected = f(x.reshape(3, -1) @ params["W"] + params["b"][None])
    np.testing.assert_allclose(layer.apply(params, x, PLAIN), expected, rtol=1e-14)


def test_a_layer_that_the_grid_does_not_know_has_the_forms_batch_and_gathered():
    net = nn.sequence([Grow(4), nn.dense(4)], (6,))
    params = net.parameter_shapes()
    fits = [f for f in sharding.layers.FORMS if not sharding.misfit(net, 0, params[0], f, 2)]
    assert fits == ["batch", "gathered"]
