"""What a function does, as one number: the same for the same, another for other numbers that it holds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import losses
from jtssm.sharding.traced import digest

X = jax.ShapeDtypeStruct((2, 3), np.float32)
LABELS = jax.ShapeDtypeStruct((2,), np.int32)


def updated(optimizer):
    """The digest of an optimizer's update."""
    params = {"W": X}
    return digest(optimizer.update, params, jax.eval_shape(optimizer.init, params), params)


def times(weights):
    """A function that holds an array."""
    return lambda x: jnp.tanh(x) @ weights


def smoothed(share):
    return losses.cross_entropy(label_smoothing=share).value


WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 4)
TURNED = WEIGHTS * np.where(WEIGHTS < 3, -1, 1).astype(np.float32)  # the signs of 1 and 2

PAIRS = {
    "rate": lambda a: updated(optax.adam((1e-3, 2e-3)[a])),
    "decay": lambda a: updated(optax.adam(1e-3, b1=(0.9, 0.8)[a])),
    "steps": lambda a: updated(optax.sgd(optax.cosine_decay_schedule(0.1, (10, 11)[a]))),
    "held": lambda a: digest(times((WEIGHTS, TURNED)[a]), X),
    "held by jax": lambda a: digest(times(jnp.asarray((WEIGHTS, TURNED)[a])), X),
    "inside": lambda a: digest(jax.jit(times((WEIGHTS, TURNED)[a])), X),
    "smoothing": lambda a: digest(smoothed((0.1, 0.2)[a]), X, LABELS),
    "layers": lambda a: digest(
        jtssm.mlp([3, (4, 5)[a], 2]).apply, jtssm.mlp([3, (4, 5)[a], 2]).parameter_shapes(), X
    ),
    "activation": lambda a: digest((jnp.sin, jnp.tanh)[a], X),
}


@pytest.mark.parametrize("name", PAIRS)
def test_functions_that_hold_other_numbers_have_other_digests(name):
    one, same, other = (PAIRS[name](a) for a in (0, 0, 1))
    assert one == same
    assert one != other


def test_the_order_of_independent_operations_does_not_count():
    def one(x):
        a, b = jnp.sin(x), jnp.cos(x)
        return a * b

    def other(x):
        b, a = jnp.cos(x), jnp.sin(x)
        return a * b

    assert digest(one, X) == digest(other, X)


def test_a_key_that_a_function_holds_counts():
    of = lambda seed: digest(lambda x: x + jax.random.normal(jax.random.key(seed), (2, 3)), X)
    held = lambda key: digest(lambda x: x + jax.random.normal(key, (2, 3)), X)
    assert of(0) != of(1)
    assert held(jax.random.key(0)) == held(jax.random.key(0)) != held(jax.random.key(1))
