"""Layers that mix samples are refused: on a mesh, which splits samples, they would give other numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jtssm import nn
from jtssm.nn import mixing

FLAT, TOKENS, IMAGE = jnp.zeros((1, 8)), jnp.zeros((1, 6, 8)), jnp.zeros((1, 8, 8, 3))
MEAN = lambda x: x - x.mean(axis=0, keepdims=True)


class Own(nnx.Module):
    """Batch normalisation of one's own, whose mean does not go through the mesh."""

    def __init__(self):
        self.mean = nnx.BatchStat(jnp.zeros(8))
        self.use_running_average = False

    def __call__(self, x):
        if self.use_running_average:
            return x - self.mean[...][None]
        self.mean[...] = x.mean(axis=0)
        return x - self.mean[...][None]


class Beside(nnx.Module):
    """A mean over samples beside flax's batch normalisation."""

    def __init__(self):
        self.norm = nnx.BatchNorm(8, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(x) - x.mean(axis=0)[None]


class WhileTraining(linen.Module):
    """Takes a mean over samples while training alone."""

    @linen.compact
    def __call__(self, x, train: bool):
        return MEAN(x) if train else x


class Recurrent(linen.Module):
    """A loop over tokens."""

    @linen.compact
    def __call__(self, x):
        return linen.RNN(linen.LSTMCell(4))(x)


MIXING = {
    "mean": lambda: nn.layers([MEAN], FLAT),
    "softmax": lambda: nn.layers([lambda x: jax.nn.softmax(x, axis=0)], FLAT),
    "flip": lambda: nn.layers([lambda x: x[::-1]], FLAT),
    "first": lambda: nn.layers([lambda x: x - x[:1]], FLAT),
    "sort": lambda: nn.layers([lambda x: jnp.sort(x, axis=0)], FLAT),
    "cumsum": lambda: nn.layers([lambda x: jnp.cumsum(x, axis=0)], FLAT),
    "products": lambda: nn.layers([lambda x: (x @ x.T) @ x], FLAT),
    "merged": lambda: nn.layers([lambda x: MEAN(x.reshape(-1, 8)).reshape(x.shape)], TOKENS),
    "training": lambda: nn.from_linen([WhileTraining()], FLAT),
    "linen": lambda: nn.from_linen([linen.Dense(3), MEAN], FLAT),
    "own": lambda: nn.from_nnx([Own()], FLAT),
    "beside": lambda: nn.from_nnx([Beside()], FLAT),
}
APART = {
    "activations": lambda: nn.layers([jax.nn.gelu, jax.nn.softmax, jax.nn.glu], FLAT),
    "largest of all": lambda: nn.layers(
        [lambda x: jax.nn.softmax(x - jax.lax.stop_gradient(x.max()))], FLAT
    ),
    "constant": lambda: nn.layers([lambda x: jnp.ones((len(x), 3))], FLAT),
    "merged": lambda: nn.layers([lambda x: (2 * x.reshape(-1, 8)).reshape(x.shape)], TOKENS),
    "shifted": lambda: nn.layers([lambda x: jnp.roll(x, 1, axis=1)], TOKENS),
    "set": lambda: nn.layers([lambda x: x.at[:, 0].set(0)], TOKENS),
    "one hot": lambda: nn.layers([lambda x: jax.nn.one_hot(x, 4)], jnp.zeros((1, 6), int)),
    "embedding": lambda: nn.from_linen([linen.Embed(11, 4)], jnp.zeros((1, 6), int)),
    "recurrent": lambda: nn.from_linen([Recurrent()], TOKENS),
    "attention": lambda: nn.from_linen(
        [linen.MultiHeadDotProductAttention(2, dropout_rate=0.1), lambda x: x[:, 0]], TOKENS
    ),
    "norms": lambda: nn.from_linen(
        [linen.Dense(8), linen.BatchNorm(), linen.LayerNorm(), linen.GroupNorm(4)], FLAT
    ),
    "images": lambda: nn.from_nnx(
        [
            nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)),
            nnx.BatchNorm(4, rngs=nnx.Rngs(0)),
            lambda x: nnx.max_pool(x, (2, 2), (2, 2)),
            lambda x: x.reshape(len(x), -1),
        ],
        IMAGE,
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_samples_is_refused(name):
    with pytest.raises(ValueError, match=r"module \d, .*one by one; got one that mixes them: on a"):
        MIXING[name]()


@pytest.mark.parametrize("name", APART)
def test_what_treats_samples_one_by_one_is_taken(name):
    assert len(APART[name]().layers)


def test_the_trace_tells_of_common_layers_without_a_run(monkeypatch):
    monkeypatch.setattr(mixing, "differ", lambda *given: pytest.fail("tried out"))
    for name in ("activations", "embedding", "one hot", "attention", "norms", "images", "shifted"):
        APART[name]()


def test_a_sum_over_the_mesh_axis_does_not_mix():
    x = jax.ShapeDtypeStruct((2, 3), np.float32)
    through = lambda tree, x: x - jax.lax.pmean(x.mean(axis=0), mixing.AXIS)[None]
    assert mixing.mixes(through, {}, x) is False
    assert mixing.mixes(lambda tree, x: MEAN(x), {}, x) is True
    assert mixing.mixes(lambda tree, x: x[::-1], {}, x) is None
