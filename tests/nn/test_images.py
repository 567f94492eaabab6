"""Layers of images against loops over pixels, and AlexNet's sizes against the paper's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm.nn import images
from jtssm.nn.network import sequence
from jtssm.nn.ops import PLAIN, Window

RNG = np.random.default_rng(0)


def patches(x, size, stride, padding, fill):
    """[b, h', w', size, size, c], padded as TensorFlow's SAME: the odd pixel at the end."""
    sides = []
    for n in x.shape[1:3]:
        outputs = -(-n // stride) if padding == "SAME" else (n - size) // stride + 1
        total = max(0, (outputs - 1) * stride + size - n) if padding == "SAME" else 0
        sides.append((outputs, (total // 2, total - total // 2)))
    padded = np.pad(x, ((0, 0), sides[0][1], sides[1][1], (0, 0)), constant_values=fill)
    cut = lambda i, j: padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
    rows = [[cut(i, j) for j in range(sides[1][0])] for i in range(sides[0][0])]
    return np.asarray(rows).transpose(2, 0, 1, 3, 4, 5)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2), (5, 4)])
def test_windows_see_what_a_loop_over_pixels_sees(size, stride, padding):
    x = RNG.normal(size=(2, 9, 7, 4))
    layer = images.convolution(6, size, stride, padding, jnp.tanh, groups=2)
    params = layer.init(jax.random.key(0), (9, 7, 4), jnp.float64) | {"b": RNG.normal(size=6)}
    seen = patches(x, size, stride, padding, 0.0)
    assert seen.shape[1:3] == layer.shape((9, 7, 4))[:2]
    W = np.asarray(params["W"])
    halves = [
        np.einsum("bhwijc,ijco->bhwo", seen[..., 2 * g : 2 * g + 2], W[..., 3 * g : 3 * g + 3])
        for g in range(2)
    ]
    expected = np.tanh(np.concatenate(halves, axis=-1) + params["b"])
    np.testing.assert_allclose(layer.apply(params, x, PLAIN), expected, atol=1e-12)
    for pool, of, fill in (
        (images.max_pool, np.max, -np.inf),
        (images.mean_pool, np.mean, 0.0),
    ):
        expected = of(patches(x, size, stride, padding, fill), axis=(3, 4))
        np.testing.assert_allclose(pool(size, stride, padding).apply({}, x, PLAIN), expected)


@pytest.mark.parametrize("n", [1, 7, 8, 13])
@pytest.mark.parametrize(
    "window", [Window(3, 2, "SAME"), Window(5, 1, "SAME"), Window(2, 3, "SAME")]
)
def test_same_padding_gives_every_stride_th_pixel(n, window):
    before, after = window.pads(n)
    assert window.outputs(n) == -(-n // window.stride)
    assert 0 <= after - before <= 1
    assert window.outputs(n) <= (n + before + after - window.size) // window.stride + 1


def test_images_are_normalised_over_samples_and_pixels():
    x = RNG.normal(size=(4, 5, 6, 2)) * 3 + 1
    for kind, axes in (("batch", (0, 1, 2)), ("layer", (1, 2, 3))):
        layer = images.convolution(3, 1, normalisation=kind)
        params = layer.init(jax.random.key(1), (5, 6, 2), jnp.float64)
        z = np.einsum("bhwc,co->bhwo", x, np.asarray(params["W"])[0, 0])
        spread = np.sqrt(z.var(axis=axes, keepdims=True) + 1e-5)
        expected = (z - z.mean(axis=axes, keepdims=True)) / spread
        np.testing.assert_allclose(layer.apply(params, x, PLAIN), expected, atol=1e-12)


def test_alexnet_has_the_papers_sizes():
    net = images.alexnet()
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    weights = [p["W"].size for p in shapes if p]
    # printed sizes of the integrated paper's simulation, conv1 .. fc8
    assert weights == [
        34_848,
        307_200,
        884_736,
        663_552,
        442_368,
        37_748_736,
        16_777_216,
        4_096_000,
    ]
    outputs = [int(np.prod(s)) for s, p in zip(net.shapes[1:], shapes, strict=True) if p]
    assert outputs == [290_400, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]


def test_a_convnet_learns_to_tell_bars_apart():
    y = RNG.integers(0, 2, 64).astype(np.int32)
    x = RNG.normal(size=(64, 8, 8, 1)) * 0.3
    for i, label in enumerate(y):
        x[i, 3 if label else slice(None), slice(None) if label else 3, 0] += 1
    net = images.convnet((8, 8, 1), 2, channels=(4,), hidden=(8,))
    method = jtssm.solvers.sgd(net, optimizer=optax.adam(1e-2), batch_size=64)
    state, step = method.init(jax.random.key(0), x, y), jax.jit(method.step)
    for _ in range(30):
        state, info = step(state, x, y)
    assert info.accuracy > 0.95


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: images.convolution(0, 3), "channels: expected an integer of at least 1; got 0"),
        (lambda: images.convolution(4, 3, 0), "stride: expected an integer of at least 1; got 0"),
        (
            lambda: images.convolution(4, 3, 1, "FULL"),
            r"padding: expected one of \['SAME', 'VALID'\]; got 'FULL'",
        ),
        (
            lambda: images.convolution(8, 3, groups=3),
            r"groups: expected one of \[1, 2, 4, 8\], which divide 8 channels; got 3",
        ),
        (
            lambda: images.convolution(8, 3, normalisation="group"),
            "normalisation: expected None or one of",
        ),
        (
            lambda: sequence([images.convolution(8, 3, groups=2)], (5, 5, 3)),
            "which divide 3 input channels; got 2",
        ),
        (
            lambda: sequence([images.max_pool(3)], (2, 9, 1)),
            r"max_pool: expected images .* of at least 3 x 3 pixels; got samples of shape \(2, 9, 1\)",
        ),
        (
            lambda: sequence([images.convolution(2, 3)], (12,)),
            r"convolution: expected images .*got samples of shape \(12,\)",
        ),
        (lambda: images.alexnet(divide=3), "divide: expected one of"),
        (lambda: images.alexnet(size=30), "max_pool: expected images"),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
