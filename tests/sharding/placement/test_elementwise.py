"""Which optimizers take arrays that are stored flat as they are."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jtssm.sharding.layers.stored import FLAT, WHOLE
from jtssm.sharding.placement.elementwise import works_on_rows
from jtssm.sharding.placement.flat import flattened

SHAPES = {
    "W": jax.ShapeDtypeStruct((3, 5), jnp.float32),
    "b": jax.ShapeDtypeStruct((4,), jnp.float32),
}
KERNELS = lambda params: jax.tree.map(lambda a: a.ndim > 1, params)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (optax.adamw(0.1, mask=KERNELS), True),
        (optax.sgd(0.1, momentum=0.9, nesterov=True), True),
        (
            optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
            True,
        ),  # zeros add nothing to it
        (optax.lamb(0.1), True),  # nor to the norm of an array
        (optax.adafactor(0.1, min_dim_size_to_factor=2), False),
        (optax.contrib.muon(0.1), False),
    ],
)
def test_what_works_on_rows(optimizer, expected):
    stored = flattened(SHAPES, {"W": FLAT, "b": WHOLE}, 2)
    assert works_on_rows(optimizer, stored) == expected


def test_nothing_flat_is_nothing_to_ask():
    assert not works_on_rows(optax.sgd(0.1), SHAPES)
