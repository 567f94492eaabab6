"""What a layer is handed: operations, hops around it, the mode it runs in."""

import jax
import jax.numpy as jnp
import numpy as np

from jtssm import nn
from jtssm.nn.network import estimate_layers, run_layers
from jtssm.nn.ops import PLAIN, Hops, plain_dense

HOPS = Hops(
    weights=lambda p: jax.tree.map(lambda a: 2 * a, p),
    enter=lambda x: x + 1,
    leave=lambda y: 3 * y,
)
X = np.random.default_rng(0).normal(size=(5, 4))


def test_hops_stand_around_every_layer():
    net = nn.sequence([nn.dense(6, jnp.tanh), nn.dense(3)], (4,))
    params = net.init(jax.random.key(0), jnp.float64)
    found = run_layers(net.layers, params, X, lambda i: PLAIN._replace(hops=HOPS))
    hidden = 3 * np.tanh((X + 1) @ (2 * params[0]["W"]))
    np.testing.assert_allclose(found, 3 * ((hidden + 1) @ (2 * params[1]["W"])), rtol=1e-13)


def test_statistics_are_estimated_of_what_the_hops_bring():
    net = nn.sequence([nn.dense(6, jnp.tanh, "running"), nn.dense(3, None, "running")], (4,))
    params = net.init(jax.random.key(0), jnp.float64)
    hops = HOPS._replace(weights=Hops().weights)
    products = PLAIN._replace(hops=hops).to_train()
    found = estimate_layers(net.layers, params, X, lambda i: products)
    z = (X + 1) @ params[0]["W"]
    np.testing.assert_allclose(found[0]["mean"], z.mean(axis=0), rtol=1e-13)
    normed = np.tanh((z - z.mean(axis=0)[None]) / np.sqrt(z.var(axis=0) + 1e-5)[None])
    mean = ((3 * normed + 1) @ params[1]["W"]).mean(axis=0)
    np.testing.assert_allclose(found[1]["mean"], mean, rtol=1e-12)


def test_the_parts_of_a_block_take_no_hop_again():
    block = nn.bottleneck(1, normalisation="layer", widen=True)
    x = np.random.default_rng(1).normal(size=(2, 4, 4, 2))
    params = block.init(jax.random.key(0), (4, 4, 2), jnp.float64)
    found = run_layers([block], [params], x, lambda i: PLAIN._replace(hops=HOPS))
    doubled = jax.tree.map(lambda a: 2 * a, params)
    np.testing.assert_allclose(found, 3 * block.apply(doubled, x + 1, PLAIN), rtol=1e-12)


def test_the_gradient_of_a_product_of_tokens_is_a_product_of_matrices():
    """No sum over two dimensions, which XLA for CPUs transposes arrays for; and the same numbers."""
    rng = np.random.default_rng(0)
    x, W, g = (rng.normal(size=size) for size in ((3, 4, 5), (5, 6), (3, 4, 6)))
    gradient = jax.grad(lambda W: (g * plain_dense(x, W, None)).sum())
    text = jax.jit(gradient).lower(W).as_text()
    assert "contracting_dims = [0] x [0]" in text
    assert "contracting_dims = [0, 1]" not in text
    np.testing.assert_allclose(gradient(W), np.einsum("sti,sto->io", x, g), rtol=1e-12)
    assert plain_dense(x[:0], W, None).shape == (0, 4, 6)
