"""Kinds of layers: what they say of themselves, and how two of them compare."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtssm import nn
from tests.nn.own_layer import Grow

LEAKY = functools.partial(jax.nn.leaky_relu, negative_slope=0.2)


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (nn.dense(10), "Dense(width=10)"),
        (
            nn.dense(10, jax.nn.relu, "batch", affine=False),
            "Dense(width=10, activation=relu, normalisation='batch', affine=False)",
        ),
        (
            nn.convolution(8, 3, 2, "VALID", LEAKY, groups=2),
            "Convolution(channels=8, size=3, stride=2, padding='VALID', "
            "activation=partial(leaky_relu, negative_slope=0.2), groups=2)",
        ),
        (nn.max_pool(3, 2, "SAME"), "MaxPool(size=3, stride=2, padding='SAME')"),
        (nn.mean_pool(2), "MeanPool(size=2, stride=2)"),
        (nn.dropout_layer(0.1), "Dropout(rate=0.1)"),
        (nn.attention(8, 2), "Attention(width=8, heads=2)"),
        (nn.perceptron(8, 32), "Perceptron(width=8, hidden=32)"),
        (nn.mean_token(8), "MeanToken(width=8)"),
        (
            nn.bottleneck(4),
            "Residual(title='bottleneck 4 16 batch', path=(Convolution(channels=4, size=1, "
            "activation=relu, normalisation='batch'), Convolution(channels=4, size=3, activation=relu, "
            "normalisation='batch'), Convolution(channels=16, size=1, normalisation='batch')), "
            "shortcut=(), activation=relu)",
        ),
        (nn.layers([jnp.tanh], jnp.zeros((1, 3))).layers[0], "Adapted(of='tanh')"),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, nn.Layer) else "",
)
def test_a_layer_shows_what_a_person_says_of_it(layer, shown):
    assert repr(layer) == shown


def test_layers_compare_by_identity_whatever_their_fields_are():
    class Odd:
        """An activation without a hash, whose == gives an array."""

        __hash__ = None

        def __eq__(self, other):
            return np.zeros(2) == 0

        def __call__(self, x):
            return jnp.tanh(x)

    one, two = nn.dense(3, Odd()), nn.dense(3, Odd())
    assert one != two
    assert list(dict.fromkeys([one, two, one])) == [one, two]
    net = nn.sequence([one, two], (3,))
    assert hash(net) == hash(nn.sequence([one, two], (3,)))
    assert net == nn.sequence([one, two], (3,))
    assert net != nn.sequence([two, one], (3,))


def test_the_name_of_a_partial_has_no_address_in_it():
    """It stands in checkpoints, which another process reads."""
    assert nn.dense(3, LEAKY).name == "dense 3 partial(leaky_relu, negative_slope=0.2)"


def test_layers_cannot_be_changed():
    with pytest.raises(AttributeError, match="cannot assign to field 'width'"):
        nn.dense(3).width = 4


def test_a_network_shows_its_layers_their_shapes_and_parameters():
    net = nn.sequence([nn.dense(8, jax.nn.relu), nn.dropout_layer(0.1), Grow(3, 2)], (4,))
    assert repr(net).splitlines() == [
        "Network of 3 layers, 89 parameters: samples (4,)",
        "   0  dense 8 relu  (8,)    40",
        "   1  dropout 0.1   (8,)     0",
        "   2  grow 3 2      (3, 2)  49",
    ]


def test_a_deep_network_shows_its_first_and_last_layers():
    lines = repr(nn.mlp([3] * 101 + [2])).splitlines()
    assert len(lines) == 18
    assert lines[8:10] == ["   7  dense 3 relu  (3,)  12", "   ... 85 more"]
    assert lines[10].startswith("  93  dense 3 relu")
    assert lines[-1] == " 100  dense 2       (2,)   8"
