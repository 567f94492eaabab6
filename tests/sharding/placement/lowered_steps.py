"""Prints a checksum of the step of each kind of method on a mesh, as jax lowers it.

As a program for test_same_program.py: python -m tests.sharding.placement.lowered_steps
"""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

import jtssm
from jtssm import nn, sharding, solvers

X, Y = np.zeros((32, 6, 8)), np.zeros(32, int)
SHARED: dict[str, Any] = {"optimizer": optax.adam(1e-2), "batch_size": 16}
ROUND: dict[str, Any] = {**SHARED, "batch_size": 4, "local_steps": 2}


class Attention(linen.Module):
    """Attends to itself."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + linen.MultiHeadDotProductAttention(2)(linen.LayerNorm()(x))


def methods() -> dict[str, tuple]:
    """Name -> (method, shape of the mesh): each kind, with layers of ours and of flax."""
    tokens = nn.from_linen(
        [linen.Dense(8), Attention(), lambda x: jnp.mean(x, 1), linen.Dense(3)], X[:1]
    )
    flat = jtssm.mlp([48, 8, 8, 3], normalisation="batch")
    plain = jtssm.mlp([48, 8, 8, 3])
    return {
        "sgd, flax": (solvers.sgd(tokens, **SHARED), (1, 2, 4)),
        "sgd": (solvers.sgd(flat, **SHARED), (1, 2, 4)),
        "gsadmm, flax": (solvers.gsadmm(tokens, subnets=2, **SHARED), (2, 2, 2)),
        "gsadmm": (solvers.gsadmm(flat, subnets=2, **SHARED), (2, 2, 2)),
        "gsam, stored": (
            solvers.gsam(plain, subnets=2, schedule=solvers.Stored(weight_steps=2), **SHARED),
            (2, 2, 2),
        ),
        "pdadmm": (solvers.pdadmm(plain), (2, 1, 4)),
        "ist": (solvers.ist(plain, subnets=2, **ROUND), (2, 1, 4)),
        "local_sgd": (solvers.local_sgd(flat, workers=2, **ROUND), (2, 2, 2)),
    }


def lowered(method: Any, shape: tuple[int, int, int]) -> str:
    """The text of the placed method's step."""
    placed = sharding.place(method, sharding.make_mesh(*shape))
    flat = len(method.network.shapes[0]) == 1
    x = X.reshape(len(X), -1) if flat else X
    state = placed.init(jax.random.key(0), x, Y)
    batch = method.batch_shape or (len(X),)
    rows = np.arange(np.prod(batch)).reshape(batch)
    return jax.jit(placed.step).lower(state, x[rows], Y[rows]).as_text()


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    for name, (method, shape) in methods().items():
        print(name, zlib.crc32(lowered(method, shape).encode()))
