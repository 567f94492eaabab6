"""A language model of flax modules: bytes of text that every CPython carries, trained whole and cut.

The text is `pydoc_data.topics`, the topics of Python's own documentation (PSF licence): no download. A
decoder-only transformer predicts each next byte; all methods start from the same weights.

Run: python -m examples.language_model
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

import jtssm
from jtssm import losses, nn, solvers

LENGTH, WIDTH, HEADS, BLOCKS, BYTES = 32, 32, 2, 2, 128
BATCH, STEPS = 16, 50
METHODS = ("sgd", "gsadmm, n = 2", "gsadmm, n = 4", "local_sgd")


class Embed(linen.Module):
    """Bytes and their places as vectors."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        places = self.param("places", linen.initializers.normal(0.02), (LENGTH, WIDTH))
        return linen.Embed(BYTES, WIDTH)(x.astype(jnp.int32)) + places[None]


class Block(linen.Module):
    """Attention to what came before, then a perceptron, both beside the identity."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mask = linen.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + linen.MultiHeadDotProductAttention(HEADS)(linen.LayerNorm()(x), mask=mask)
        h = linen.gelu(linen.Dense(4 * WIDTH)(linen.LayerNorm()(x)))
        return x + linen.Dense(WIDTH)(h)


class Head(linen.Module):
    """Scores of the next byte."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(BYTES)(linen.LayerNorm()(x))


def samples() -> tuple[np.ndarray, np.ndarray]:
    """(bytes [n, LENGTH], the bytes after them), other characters left out."""
    text = "".join(topics[name] for name in sorted(topics))
    codes = np.frombuffer(text.encode("ascii", "ignore"), np.uint8).astype(np.int32)
    rows = codes[: len(codes) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    return rows[:, :-1], rows[:, 1:]


def network() -> nn.Network:
    """The model as layers of jtssm, which it can be cut between."""
    return nn.from_linen(
        [Embed(), *(Block() for _ in range(BLOCKS)), Head()], np.zeros((1, LENGTH), int)
    )


def plain(net: nn.Network, params: list, x: np.ndarray, y: np.ndarray) -> float:
    """Bits a byte of the last of STEPS steps of plain flax and optax, from the same weights."""
    optimizer = optax.adam(1e-3)
    modules, params = zip(*net.modules(params), strict=True)

    def mean(params: tuple, x: jax.Array, y: jax.Array) -> jax.Array:
        outputs = x
        for module, variables in zip(modules, params, strict=True):
            outputs = module.apply(variables, outputs)
        return optax.losses.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

    @jax.jit
    def step(params: tuple, state: tuple, x: jax.Array, y: jax.Array) -> tuple:
        loss, gradient = jax.value_and_grad(mean)(params, x, y)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    state, loss = optimizer.init(params), jnp.nan
    for i in range(STEPS):
        rows = slice(i * BATCH, (i + 1) * BATCH)
        params, state, loss = step(params, state, x[rows], y[rows])
    return float(loss) / math.log(2)


def trained(method: jtssm.Method, params: list, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Bits a byte of the last step, and of the composed network on held-out text."""
    state, step = method.init(jax.random.key(0), x[:BATCH], y[:BATCH], params), jax.jit(method.step)
    lead, size = method.batch_shape, math.prod(method.batch_shape)
    for i in range(STEPS * BATCH // size):
        rows = slice(i * size, (i + 1) * size)
        taken = (a[rows].reshape(*lead, LENGTH) for a in (x, y))
        state, info = step(state, *taken)
    held_out = jtssm.evaluate(method, method.drain(state), (x[-256:], y[-256:]))
    return {"last": float(info.loss) / math.log(2), "held_out": held_out["loss"] / math.log(2)}


def main(names: Collection[str] = METHODS) -> dict[str, dict[str, float]]:
    """Bits a byte by method; "plain" is flax and optax alone."""
    (x, y), net = samples(), network()
    params = net.init(jax.random.key(0), jnp.float32)
    shared = {"optimizer": optax.adam(1e-3), "batch_size": BATCH, "loss": losses.cross_entropy()}
    local = shared | {"batch_size": BATCH // 2, "local_steps": 2, "workers": 2}
    methods = {
        "sgd": solvers.sgd(net, **shared),
        "gsadmm, n = 2": solvers.gsadmm(net, subnets=2, **shared),
        "gsadmm, n = 4": solvers.gsadmm(net, subnets=4, **shared),
        "local_sgd": solvers.local_sgd(net, **local),
    }
    found = {name: trained(methods[name], params, x, y) for name in names}
    return {"plain": {"last": plain(net, params, x, y)}, **found}


if __name__ == "__main__":
    for name, bits in main().items():
        print(f"{name:14}", "  ".join(f"{what} {number:.4f}" for what, number in bits.items()))
