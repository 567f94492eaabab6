"""Networks that users already have: as layers, trained, cut, and given back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jtssm
from jtssm import sharding, solvers
from jtssm.nn.interop.functions import layers
from jtssm.nn.interop.linen import from_linen
from jtssm.nn.interop.nnx import from_nnx
from jtssm.nn.ops import PLAIN
from jtssm.solvers.pieces import training

SGD = optax.sgd(0.05)


class Block(nnx.Module):
    """A residual block with batch normalisation, and dropout if asked for."""

    def __init__(self, channels, rngs, rate=0.0):
        self.conv = nnx.Conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(channels, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(x + self.drop(self.norm(self.conv(x))))


class Pooled(nnx.Module):
    """The mean over the pixels, and a product."""

    def __init__(self, channels, classes, rngs):
        self.out = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, x):
        return self.out(x.mean(axis=(1, 2)))


def residual(blocks=2, rate=0.0, channels=4):
    """Modules of a small ResNet-like network for images 6 x 6 x 3 of 5 classes."""
    rngs = nnx.Rngs(0)
    inner = [Block(channels, rngs, rate) for _ in range(blocks)]
    first = nnx.Conv(3, channels, (3, 3), rngs=rngs)
    return [first, jax.nn.relu, *inner, Pooled(channels, 5, rngs)]


IMAGE = jnp.zeros((1, 6, 6, 3))


class Encoder(nn.Module):
    """A transformer's block of linen modules."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        attend = nn.MultiHeadDotProductAttention(2, dropout_rate=self.rate, deterministic=not train)
        x = x + attend(nn.LayerNorm()(x))
        return x + nn.Dense(4)(nn.gelu(nn.Dense(8)(x)))


class Tokens(nn.Module):
    """Embeddings of tokens and of places."""

    @nn.compact
    def __call__(self, x):
        places = self.param("places", nn.initializers.normal(0.1), (x.shape[1], 4))
        return nn.Embed(11, 4)(x) + places[None]


class Classes(nn.Module):
    """Four classes from the mean token."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(x.mean(axis=1))


def transformer(rate=0.0, blocks=2):
    blocks = [Encoder(rate) for _ in range(blocks)]
    return from_linen([Tokens(), *blocks, Classes()], jnp.zeros((1, 7), jnp.int32))


def images(num=8):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num, 6, 6, 3)), rng.integers(0, 5, num).astype(np.int32)


def tokens(num=8):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 11, (num, 7)).astype(np.int32)
    return x, (x.sum(axis=1) % 4).astype(np.int32)


def trained(method, x, y, steps):
    """(state with statistics, losses) after so many steps on one minibatch."""
    flat = x.reshape(-1, *method.network.shapes[0])
    state = method.init(jax.random.key(0), flat, y.reshape(-1))
    step, losses = jax.jit(method.step), []
    for _ in range(steps):
        state, info = step(state, x, y)
        losses.append(float(info.loss))
    return jax.jit(method.estimate)(jax.jit(method.drain)(state), flat), losses


def by_hand(modules, x, y, steps):
    """A user's own nnx loop: the modules after so many steps of SGD."""
    model = nnx.clone(nnx.Sequential(*modules))
    optimizer = nnx.Optimizer(model, SGD, wrt=nnx.Param)
    model.train()

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    for _ in range(steps):
        optimizer.update(model, nnx.grad(loss)(model))
    return model


@pytest.fixture
def float32():
    with jax.enable_x64(False):
        yield


def test_sgd_trains_nnx_modules_as_their_own_loop_does(float32):
    modules, (x, y) = residual(), images()
    x = x.astype(np.float32)
    expected = by_hand(modules, x, y, 3)
    net = from_nnx(modules, IMAGE)
    method = solvers.sgd(net, optimizer=SGD, batch_size=8, precision="highest")
    state, losses = trained(method, x, y, 3)
    found = net.modules(method.params(state))
    assert losses[2] < losses[0]
    for mine, theirs in zip(found, expected.layers, strict=True):
        if isinstance(mine, nnx.Module):
            ours, own = (nnx.to_pure_dict(nnx.state(m, nnx.Param)) for m in (mine, theirs))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, own)


def test_the_modules_come_back_trained_and_predict_without_jtssm():
    modules, (x, y) = residual(), images()
    before = nnx.to_pure_dict(nnx.state(modules[2], nnx.Param))
    net = from_nnx(modules, IMAGE)
    result = jtssm.fit(
        solvers.gsadmm(net, subnets=2, optimizer=SGD, batch_size=4),
        (x, y),
        epochs=2,
        key=jax.random.key(1),
    )
    model = nnx.Sequential(*result.module())
    model.eval()
    np.testing.assert_allclose(model(x), result.predict(x), atol=1e-12)
    # those given stay as they are
    jax.tree.map(
        np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(modules[2], nnx.Param))
    )
    new = nnx.to_pure_dict(nnx.state(result.module()[2], nnx.Param))
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), before, new))) > 1e-4


def test_linen_modules_come_back_with_their_variables():
    net, (x, y) = transformer(), tokens()
    method = solvers.sgd(net, optimizer=SGD, batch_size=8)
    state, _ = trained(method, x, y, 2)
    h = x
    for module, variables in net.modules(method.params(state)):
        h = module.apply(variables, h)
    np.testing.assert_allclose(h, method.predict(state, x), atol=1e-12)


def test_functions_are_layers_too():
    params = {"W": jnp.ones((3, 2)) / 3, "b": jnp.zeros(2)}
    affine = lambda p, x: x @ p["W"] + p["b"][None]
    draw = lambda key, x: jax.random.normal(key, (x.shape[-1], 3)) / 2
    net = layers([(draw, lambda W, x: x @ W), jnp.tanh, (params, affine)], np.zeros((1, 4)))
    assert net.shapes == ((4,), (3,), (3,), (2,))
    assert net.costs() == [12, 0, 6]
    x = np.random.default_rng(0).normal(size=(6, 4))
    (W,), _, found = (jax.tree.leaves(p) for p in net.init(jax.random.key(3), jnp.float64))
    expected = jnp.tanh(x @ W) @ found[0] + found[1][None]
    np.testing.assert_allclose(net.apply(net.init(jax.random.key(3), jnp.float64), x), expected)
    back = net.modules(net.init(jax.random.key(3), jnp.float64))
    assert back[1] is jnp.tanh
    assert back[2][1] is affine
    np.testing.assert_array_equal(back[2][0]["W"], params["W"])


def builds(net):
    """Methods that train any layers."""
    shared = {"optimizer": SGD, "batch_size": 8}
    return {
        "sgd": solvers.sgd(net, **shared),
        "gsadmm": solvers.gsadmm(net, subnets=2, **shared),
        "gsam": solvers.gsam(net, subnets=2, schedule=solvers.Streaming(sweeps=2), **shared),
        "local_sgd": solvers.local_sgd(net, workers=2, local_steps=2, **shared),
    }


MESHES = {"sgd": (1, 2, 2), "gsadmm": (2, 2, 2), "gsam": (2, 1, 2), "local_sgd": (2, 1, 2)}
SLOW = (
    ("images", "sgd"),
    ("images", "gsam"),
    ("images", "local_sgd"),
    ("tokens", "gsam"),
    ("tokens", "local_sgd"),
    ("tokens", "gsadmm"),
)
CASES = [
    pytest.param(kind, name, marks=pytest.mark.slow) if (kind, name) in SLOW else (kind, name)
    for kind in ("images", "tokens")
    for name in MESHES
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_mesh_gives_the_numbers_of_one_device(kind, name):
    """Means of nnx.BatchNorm over all devices, dropout of each sample, integers as samples."""
    if kind == "images":
        net, (x, y) = from_nnx(residual(1, 0.3), IMAGE), images(8)
    else:
        net, (x, y) = transformer(0.3 * (name != "sgd"), blocks=1), tokens(8)
    method = builds(net)[name]
    if name == "local_sgd":
        x, y = (np.stack([np.stack([a, a[::-1]])] * 2) for a in (x, y))
    placed = sharding.place(method, sharding.make_mesh(*MESHES[name]))
    flat, results = x.reshape(-1, *net.shapes[0]), []
    for each in (method, placed):
        state, losses = trained(each, x, y, 3)
        outputs = np.asarray(jax.jit(each.predict)(state, flat[:8]))
        results.append((losses, each.params(state), outputs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-10), *results)


def test_under_gsadmm_a_minibatch_drops_the_same_neurons_on_every_pass():
    """One minibatch through and out again: exactly a step of SGD with the masks it entered with."""
    net, (x, y) = from_nnx(residual(rate=0.4), IMAGE), images()
    assert [layer.random for layer in net.layers] == [False, False, True, True, False]
    ways = {"microbatches": 1, "schedule": solvers.Streaming(delay_power=0)}
    method = solvers.gsadmm(net, cuts=[3], optimizer=SGD, batch_size=8, **ways)
    state = method.init(jax.random.key(5), x, y)
    key = jax.random.fold_in(state.key, 0)  # the tick at which it enters

    def loss(params):
        h = jnp.asarray(x)
        for i, (layer, p) in enumerate(zip(net.layers, params, strict=True)):
            h = layer.apply(p, h, training(PLAIN, key, i, jnp.arange(8)))
        return optax.softmax_cross_entropy_with_integer_labels(h, y).mean()

    params = net.init(jax.random.key(5), jnp.float64)
    expected = jax.tree.map(lambda p, g: p - 0.05 * g, params, jax.grad(loss)(params))
    done = method.drain(jax.jit(method.step)(state, x, y)[0])
    for found, wanted in zip(method.params(done), expected, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),
            found["params"],
            wanted["params"],
        )


@pytest.mark.parametrize("flavour", ["nnx", "linen"])
def test_statistics_are_those_of_the_samples_under_the_whole_network(flavour):
    """Prediction with them is what training saw on the same samples, whatever the momentum."""
    x, y = images()
    if flavour == "nnx":
        net = from_nnx(residual(), IMAGE)
    else:
        net = from_linen([Normed(), Normed(), Flat()], IMAGE)
    method = solvers.gsadmm(net, subnets=2, optimizer=SGD, batch_size=8)
    state = jax.jit(method.step)(method.init(jax.random.key(0), x, y), x, y)[0]
    state = method.estimate(method.drain(state), x)
    h = jnp.asarray(x)
    for layer, p in zip(net.layers, method.params(state), strict=True):
        h = layer.apply(p, h, PLAIN.to_train())
    np.testing.assert_allclose(method.predict(state, x), h, atol=1e-12)


class Normed(nn.Module):
    """A convolution, batch normalisation with a slow average, dropout."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(momentum=0.999, use_running_average=not train)(x)
        return nn.relu(nn.Dropout(0.3, deterministic=not train)(x))


class Flat(nn.Module):
    """A product of all pixels."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize(
    ("kind", "cut"),
    [
        ("residual", 2),
        ("transformer", 4),
        *(
            pytest.param(kind, cut, marks=pytest.mark.slow)
            for kind, cut in (
                ("residual", 3),
                ("residual", 4),
                ("transformer", 2),
                ("transformer", 3),
            )
        ),
    ],
)
def test_networks_cut_in_two_three_and_four_learn(kind, cut):
    if kind == "residual":
        net, (x, y) = from_nnx(residual(), IMAGE), images(16)
    else:
        net, (x, y) = transformer(), tokens(16)
    method = solvers.gsadmm(net, subnets=cut, optimizer=optax.adam(1e-2), batch_size=16)
    _, losses = trained(method, x, y, 60)
    assert len(method.program.stages.starts) == cut + 1
    first = next(a for a in losses if a > 0)  # the first minibatches are on their way
    assert losses[-1] < 0.6 * first


class Counting(nnx.Module):
    """Counts its calls."""

    def __init__(self):
        self.calls = nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        return x


FLAT = layers([(jnp.ones((4, 4)), lambda W, x: x @ W) for _ in range(2)], np.zeros((1, 4)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_nnx([], IMAGE), r"modules: expected a list of modules"),
        (lambda: from_nnx(residual()), r"sample_input: expected samples .*Conv"),
        (
            lambda: from_nnx([3], IMAGE),
            r"modules: expected nnx modules or functions; got 3",
        ),
        (
            lambda: from_nnx(residual(), jnp.zeros((1, 6, 6, 4))),
            r"expected that module 0, Conv",
        ),
        (lambda: from_nnx([Counting()], IMAGE), r"changes other variables"),
        (
            lambda: from_linen([nn.Dense(3)], jnp.zeros(4)),
            r"sample_input: expected samples",
        ),
        (lambda: layers([(1, 2)], IMAGE), r"functions: expected a function"),
        (lambda: layers([jnp.sum], IMAGE), r"expected that module 0, sum.* samples first"),
        (
            lambda: layers([(jnp.ones(3, int), lambda p, x: x)], IMAGE),
            r"of floats; got int",
        ),
        (
            lambda: solvers.pdadmm(FLAT),
            r"net: expected a last layer that is dense, .*; got '<lambda>'",
        ),
        (
            lambda: solvers.ist(FLAT, subnets=2, optimizer=SGD, local_steps=2, batch_size=2),
            r"net: expected layers whose parameters belong to neurons",
        ),
        (
            lambda: solvers.gsadmm(
                from_nnx(residual(), IMAGE),
                subnets=2,
                optimizer=SGD,
                batch_size=2,
                schedule="stored",
            ),
            r"without dropout and running statistics for gsadmm; got layer 2, 'Block'.*streaming",
        ),
        (lambda: jtssm.mlp([4, 3]).modules([{}]), r"layer 0, 'dense 3', which is jtssm's own"),
        (
            lambda: solvers.sgd(transformer(), optimizer=SGD, batch_size=2).init(
                jax.random.key(0), np.zeros((2, 7)), np.zeros(2, int)
            ),
            r"x: expected integers",
        ),
        (
            lambda: solvers.sgd(transformer(), optimizer=SGD, batch_size=2).init(
                jax.random.key(0), np.full((2, 7), 2**31), np.zeros(2, int)
            ),
            r"x: expected integers that int32 holds, .*; got 2147483648",
        ),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
