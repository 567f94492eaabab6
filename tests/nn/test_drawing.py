"""Layers that are alike share the program that draws their parameters, not the numbers."""

import jax
import jax.numpy as jnp
import numpy as np

import jtssm
from jtssm.nn import architectures

KEY = jax.random.key(3)


def test_the_numbers_are_those_of_each_layer_alone():
    net = architectures.transformer(3, width=8, heads=2, sequence=4, hidden=12, classes=3)
    for dtype in (jnp.float32, jnp.float64):
        alone = [
            layer.init(jax.random.fold_in(KEY, i), net.shapes[i], dtype)
            for i, layer in enumerate(net.layers)
        ]
        together = jax.jit(lambda key, dtype=dtype: net.init(key, dtype))(KEY)
        assert jax.tree.structure(alone) == jax.tree.structure(together)
        jax.tree.map(np.testing.assert_array_equal, alone, together)
        # and as two cuts of the network draw them
        parts = net.init_layers(range(3), KEY, dtype) + net.init_layers(
            range(3, len(net.layers)), KEY, dtype
        )
        jax.tree.map(np.testing.assert_array_equal, alone, parts)


def test_equal_layers_are_one_loop():
    def equations(net):
        return len(jax.make_jaxpr(net.init)(KEY).jaxpr.eqns)

    draws = lambda hidden: [8, *[16] * hidden, 4]
    # of 9 equal layers no more than of 3 but their keys and what is taken from the loop
    more = equations(jtssm.mlp(draws(10))) - equations(jtssm.mlp(draws(4)))
    each = equations(jtssm.mlp(draws(2))) - equations(jtssm.mlp([8, 16, 4]))
    assert 0 < more < 6 * each
