"""Published networks: their sizes against the literature, their blocks against plain computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtssm.nn import architectures, residual, tokens
from jtssm.nn.architectures import ARCHITECTURES, find_architecture
from jtssm.nn.network import sequence
from jtssm.nn.ops import PLAIN

RNG = np.random.default_rng(0)
# parameters, and multiply-adds of one sample. VGG-16, ResNet-50: torchvision's tables (15.47 and 4.09 G);
# AlexNet in two groups: 0.72 G. Transformer: 12 blocks of 12 d^2 + 13 d, as GPT-2's, and the head.
# Decoder: GPT-2's smallest (124 439 808, openai/gpt-2), whose table of words is its head, too
SIZES = {
    "alexnet": (60_965_224, 724_406_816),
    "decoder": (
        124_439_808 + 769 * 50_257,
        12 * (1024 * 12 * 768**2 + 2 * 1024**2 * 768) + 1024 * 768 * 50_257,
    ),
    "mlp": (36_818_954, 36_806_656),
    "resnet50": (25_557_032, 4_089_184_256),
    "transformer": (12 * 7_087_872 + 2 * 768 + 769_000, 12 * 4_026_531_840 + 768_000),
    "vgg16": (138_357_544, 15_470_264_320),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_has_the_published_size(name):
    net = find_architecture(name)()
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(shapes)) == SIZES[name][0]
    assert sum(net.costs()) == SIZES[name][1]
    x = jax.ShapeDtypeStruct((2, *net.shapes[0]), np.float32)
    assert jax.eval_shape(net.apply, shapes, x).shape == (2, *net.shapes[-1])


def test_resnet_50_has_the_papers_stages():
    net = architectures.resnet50()
    assert len(net.layers) == 2 + 16 + 2
    expected = {0: (224, 224, 3), 1: (112, 112, 64), 2: (56, 56, 64), 3: (56, 56, 256)}
    expected |= {6: (28, 28, 512), 10: (14, 14, 1024), 16: (7, 7, 2048), 18: (7, 7, 2048)}
    expected |= {19: (1, 1, 2048), 20: (1000,)}
    assert {i: net.shapes[i] for i in expected} == expected


def test_equal_blocks_are_one_layer():
    net = architectures.resnet50()
    assert net.layers[3] is net.layers[4]
    assert (
        len({id(layer) for layer in net.layers[2:18]}) == 8
    )  # the first of a stage, and the others
    net = architectures.transformer()
    assert len({id(layer) for layer in net.layers}) == 2 + 2


def normalised(z, gamma, beta, axes):
    spread = np.sqrt(z.var(axis=axes, keepdims=True) + 1e-5)
    return (z - z.mean(axis=axes, keepdims=True)) / spread * gamma + beta


def drawn(layer, shape):
    """Parameters, gamma, beta and the biases anything but 1 and 0."""
    params = layer.init(jax.random.key(1), shape, jnp.float64)
    return {name: np.asarray(a) + 0.3 * RNG.normal(size=a.shape) for name, a in params.items()}


def applied(layer, params, x):
    return jax.jit(lambda params, x: layer.apply(params, x, PLAIN))(params, x)


def by_pixels(x, W, stride):
    """The SAME convolution of W [3, 3, i, o], the odd pixel of padding at the end."""
    n = x.shape[1]
    outputs = -(-n // stride)
    total = max(0, (outputs - 1) * stride + 3 - n)
    x = np.pad(x, ((0, 0), *[(total // 2, total - total // 2)] * 2, (0, 0)))
    end = (outputs - 1) * stride + 1
    return sum(
        x[:, i : i + end : stride, j : j + end : stride] @ W[i, j]
        for i in range(3)
        for j in range(3)
    )


@pytest.mark.parametrize(
    ("stride", "widen", "normalisation"),
    [(1, False, "batch"), (2, True, "batch"), (2, True, "layer")],
)
def test_a_bottleneck_block_is_what_the_paper_draws(stride, widen, normalisation):
    layer = residual.bottleneck(3, stride, normalisation, widen=widen)
    x = RNG.normal(size=(4, 6, 6, 5 if widen else 12))
    p = drawn(layer, x.shape[1:])
    axes = (0, 1, 2) if normalisation == "batch" else (1, 2, 3)
    norm = lambda z, k: normalised(z, p[f"gamma{k}"], p[f"beta{k}"], axes)
    z = np.maximum(norm(x @ p["W0"][0, 0], 0), 0)
    z = np.maximum(norm(by_pixels(z, p["W1"], stride), 1), 0)
    z = norm(z @ p["W2"][0, 0], 2)
    beside = norm(x[:, ::stride, ::stride] @ p["W3"][0, 0], 3) if widen else x
    assert layer.shape(x.shape[1:]) == z.shape[1:]
    np.testing.assert_allclose(applied(layer, p, x), np.maximum(z + beside, 0), atol=1e-10)


def test_running_statistics_of_a_block_are_those_of_the_samples_they_were_estimated_on():
    running, batch = (residual.bottleneck(2, 2, kind, widen=True) for kind in ("running", "batch"))
    assert set(running.estimated) == {f"{a}{k}" for a in ("mean", "var") for k in range(4)}
    params, x = (
        running.init(jax.random.key(0), (5, 5, 3), jnp.float64),
        RNG.normal(size=(6, 5, 5, 3)),
    )
    assert set(params) - set(running.estimated) == set(
        batch.init(jax.random.key(0), (5, 5, 3), "f4")
    )
    expected = applied(batch, {k: a for k, a in params.items() if k not in running.estimated}, x)
    assert abs(applied(running, params, x) - expected).max() > 1e-3
    found = jax.jit(lambda params: running.estimate(params, x, PLAIN))(params)
    np.testing.assert_allclose(applied(running, found, x), expected, atol=1e-10)


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_attention_is_what_a_loop_over_heads_makes():
    layer, x = tokens.attention(6, 3), RNG.normal(size=(4, 5, 6))
    p = drawn(layer, (5, 6))
    h, found = normalised(x, p["gamma"], p["beta"], -1), []
    for head in range(3):
        q, k, v = (
            h @ p["W1"][:, at : at + 2] + p["b1"][at : at + 2]
            for at in range(6 * head, 6 * head + 6, 2)
        )
        found.append(softmax(q @ k.swapaxes(1, 2) / np.sqrt(2)) @ v)
    expected = x + np.concatenate(found, axis=-1) @ p["W2"] + p["b2"]
    np.testing.assert_allclose(applied(layer, p, x), expected, atol=1e-10)


def test_the_perceptron_of_a_block_and_the_mean_token():
    layer, x = tokens.perceptron(4, 7), RNG.normal(size=(3, 5, 4))
    p = drawn(layer, (5, 4))
    z = normalised(x, p["gamma"], p["beta"], -1) @ p["W1"] + p["b1"]
    z = (
        0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    )  # Hendrycks, Gimpel 2016
    np.testing.assert_allclose(applied(layer, p, x), x + z @ p["W2"] + p["b2"], atol=1e-10)
    layer = tokens.mean_token(4)
    p = drawn(layer, (5, 4))
    expected = normalised(x, p["gamma"], p["beta"], -1).mean(axis=1)
    np.testing.assert_allclose(applied(layer, p, x), expected, atol=1e-10)


@pytest.mark.parametrize(
    "net",
    [
        architectures.resnet((2,), 3, size=9, channels=2),
        architectures.transformer(2, width=6, heads=3, sequence=4, classes=3),
    ],
    ids=["resnet", "transformer"],
)
def test_every_parameter_has_a_finite_gradient(net):
    x = RNG.normal(size=(3, *net.shapes[0]))
    params = net.init(jax.random.key(0), jnp.float64)
    found = jax.jit(jax.grad(lambda params: (net.apply(params, x) ** 2).mean()))(params)
    for a in jax.tree.leaves(found):
        assert np.isfinite(a).all()
        assert (np.asarray(a) != 0).any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: find_architecture("resnet"),
            r"architecture: expected one of \['alexnet'.*; got 'resnet': is 'resnet50' meant\?",
        ),
        (lambda: find_architecture("VGG"), r"got 'VGG': is '.*' meant\?"),
        (lambda: architectures.vgg16(divide=3), "divide: expected one of"),
        (lambda: architectures.vgg16(size=31), "max_pool: expected images"),
        (lambda: architectures.resnet(()), r"blocks: expected .*, e\.g\. \(3, 4\); got \(\)"),
        (
            lambda: architectures.resnet((1, 0)),
            r"blocks\[1\]: expected an integer of at least 1; got 0",
        ),
        (
            lambda: architectures.resnet50(normalisation=None),
            r"normalisation: expected one of \['batch', 'layer', 'running'\]; got None",
        ),
        (
            lambda: sequence([residual.bottleneck(2)], (4, 4, 3)),
            r"bottleneck 2 8 batch: expected samples whose shape it keeps, \(4, 4, 8\); got \(4, 4, 3\): widen=True",
        ),
        (
            lambda: architectures.transformer(heads=5),
            r"heads: expected one of \[1, 2, 3, 4, .*got 5",
        ),
        (lambda: architectures.transformer(0), "blocks: expected an integer of at least 1; got 0"),
        (
            lambda: sequence([tokens.attention(4, 2)], (5, 3)),
            r"attention 4 / 2: expected samples of tokens \(number, 4\); got shape \(5, 3\)",
        ),
    ],
)
def test_misuse_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
