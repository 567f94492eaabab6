"""What tests name as package.module:function: networks, losses, and what is none."""

import jax.numpy as jnp
import numpy as np

import jtssm
from jtssm import losses, nn

TOKENS, LENGTH, WIDTH = 7, 5, 4
masked = losses.cross_entropy(ignore_index=-100)
number = 3


def tokens():
    """A table of vectors, then scores at every position."""
    table = (lambda key, x: jnp.eye(TOKENS, WIDTH), lambda p, x: p[x])
    scores = (lambda key, x: 0.1 * jnp.ones((WIDTH, TOKENS)), lambda p, x: jnp.tanh(x) @ p)
    return nn.layers([table, scores], np.zeros((1, LENGTH), np.int32))


def of_samples(x, y, width=3):
    return jtssm.mlp([x.shape[1], width, y.shape[1]])


def of_a_size(size):
    return jtssm.mlp([size, 2])


def fails():
    raise RuntimeError("first line\nsecond line")


def none():
    return [1, 2]


def mean(outputs, y):
    return outputs.mean() + y.mean()


def absolute(outputs, y):
    return jnp.abs(outputs - y).sum(axis=-1)
