"""The loss at the last layer: its value for each sample, its prox, and the accuracy beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jtssm import checks
from jtssm.arrays import Array, Scalar


class Loss(NamedTuple):
    """A loss of outputs [samples, k] against y."""

    name: str
    value: Callable[[Array, Array], Array]  # (outputs, y) -> [samples]
    correct: Callable[[Array, Array], Array]  # (outputs, y) -> [samples], 1 where right
    labels: bool  # y are labels 0 .. k - 1 [samples]; else targets like outputs
    # (start, m, y, nu) -> argmin_z value(z; y) + (nu / 2) |z - m|^2, all [samples, k]; None: unknown
    prox: Callable[[Array, Array, Array, Scalar], Array] | None = None


def _label_correct(outputs: Array, y: Array) -> Array:
    return (jnp.argmax(outputs, axis=-1) == y).astype(outputs.dtype)


NEWTON_STEPS = 100  # most steps of the prox of cross-entropy
Newton = tuple[Array, Array, int | Array]  # z, whether the last step was long, steps so far


def _cross_entropy_prox(start: Array, m: Array, y: Array, nu: Scalar) -> Array:
    """Damped Newton, all samples at once, until no step is longer than sqrt(eps).

    With s = softmax(z), D = s + nu, g = s - onehot + nu (z - m) the Hessian is D - s s^T, and

        H^-1 g = g / D + (s / D) (sum g s / D) / (sum nu s / D).

    Along a direction d the curvature grows at most as exp(t range(d)), so the step
    t = log(1 + range(d)) / range(d) never overshoots: the cost falls from any start.
    """
    target = jax.nn.one_hot(y, m.shape[-1], dtype=m.dtype)

    def newton(carry: Newton) -> Newton:
        z, _, i = carry
        s = jax.nn.softmax(z)
        sums = lambda a: a.sum(axis=-1, keepdims=True)
        others = sums(s * (1 - target))  # 1 - s at the label, without its cancellation
        g = jnp.where(target > 0, -others, s) + nu * (z - m)
        D = s + nu
        d = g / D + s / D * (sums(g * s / D) / sums(nu * s / D))
        reach = d.max(axis=-1, keepdims=True) - d.min(axis=-1, keepdims=True)
        t = jnp.where(reach > 0, jnp.log1p(reach) / jnp.where(reach > 0, reach, 1), 1)
        return z - t * d, jnp.any(reach > jnp.finfo(z.dtype).eps ** 0.5), i + 1

    going = lambda carry: carry[1] & (carry[2] < NEWTON_STEPS)
    first = jnp.any(start == start) & jnp.any(m == m)  # True, marked as varying where m is
    carry: Newton = start, first, 0
    return lax.while_loop(going, newton, carry)[0]


cross_entropy = Loss(
    "cross_entropy",
    optax.losses.softmax_cross_entropy_with_integer_labels,
    _label_correct,
    labels=True,
    prox=_cross_entropy_prox,
)

squared_error = Loss(
    "squared_error",
    lambda outputs, y: optax.losses.squared_error(outputs, y).sum(axis=-1) / 2,
    lambda outputs, y: jnp.zeros(outputs.shape[0], outputs.dtype),
    labels=False,
    prox=lambda start, m, y, nu: (y + nu * m) / (1 + nu),
)

LOSSES = {loss.name: loss for loss in (cross_entropy, squared_error)}


def find(loss: str | Loss) -> Loss:
    """A loss by its name, or the loss itself.

    Raises:
      ValueError: an unknown name.
    """
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(
            f"loss: expected one of {sorted(LOSSES)} or a losses.Loss; got {checks.shown(loss)}"
        )
    return LOSSES[loss]
