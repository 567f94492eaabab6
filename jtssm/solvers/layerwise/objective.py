"""The augmented Lagrangian as the docstring of `jtssm.solvers.layerwise` writes it."""

from __future__ import annotations

import jax.numpy as jnp

from jtssm.arrays import Array
from jtssm.protocol.method import Method
from jtssm.solvers.layerwise import activations
from jtssm.solvers.layerwise.iteration import Numbers, State


def lagrangian(
    method: Method, state: State, x: Array, y: Array, numbers: Numbers | None = None
) -> Array:
    """L summed over samples, a scalar, from W, b, p, z, q, u alone (r is not read).

    Args:
      method: from `pdadmm`.
      state: unplaced.
      x: all samples.
      y: all of theirs.
      numbers: rho, nu and weight_decay; None: the state's.
    """
    rho, nu, weight_decay, *_ = state.numbers if numbers is None else numbers
    net, loss = method.network, method.loss
    params = [weights.params[0] for weights in state.weights]
    total = loss.value(state.z[-1], y).sum()
    for l, layer in enumerate(params):
        p = jnp.asarray(x).reshape(len(x), -1) if l == 0 else state.p[l]
        miss = state.z[l] - p @ layer["W"] - layer["b"][None, :]
        total += nu / 2 * jnp.sum(miss**2) + weight_decay / 2 * jnp.sum(layer["W"] ** 2)
    for l in range(len(params) - 1):
        f = activations.find(l, net.layers[l]).f
        gap = state.p[l + 1] - state.q[l]
        total += nu / 2 * jnp.sum((state.q[l] - f(state.z[l])) ** 2)
        total += jnp.sum(state.u[l] * gap) + rho / 2 * jnp.sum(gap**2)
    return total
