"""The z-step of a hidden layer, entry by entry, for the activations that have one.

    z <- argmin_z (z - m)^2 + (q - f(z))^2 + (z - z_old)^2,     m = p W + b

nu / 2 stands before every term and cancels. With c = (m + z_old) / 2 the two quadratics are
2 (z - c)^2 and a constant. Pieces that are linear in z have closed forms; tanh is solved to rounding
inside a bracket that holds every minimiser.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jtssm.arrays import Array
from jtssm.nn.layer import Layer
from jtssm.nn.perceptrons import Dense

STARTS = 16  # points at which tanh's bracket is looked at
HALVINGS = 40  # most Newton or bisection steps of tanh's solver
# where the search stands, its two ends, whether it still moves, steps so far
Bracket = tuple[Array, Array, Array, Array, int | Array]


class Activation(NamedTuple):
    """An activation that has a z-step."""

    name: str
    f: Callable[[Array], Array]
    minimise: Callable[[Array, Array, Array], Array]  # (z_old, m, q) -> z
    lipschitz: float  # S of the theory: |f(a) - f(b)| <= S |a - b|


def _piecewise(slope: float, z: Array, m: Array, q: Array) -> Array:
    """max(z, slope z) with 0 <= slope < 1: the better of the two branches' minimisers.

    The proximal term takes part in the comparison (the released code leaves it out).
    """
    below = jnp.minimum((m + z + slope * q) / (2 + slope**2), 0)
    above = jnp.maximum((m + z + q) / 3, 0)
    cost = lambda a, f: (a - m) ** 2 + (q - f) ** 2 + (a - z) ** 2
    return jnp.where(cost(above, above) < cost(below, slope * below), above, below)


def leaky(slope: float) -> Activation:
    """Leaky ReLU with the given slope below 0; slope 0 is ReLU."""
    f = jax.nn.relu if slope == 0 else functools.partial(jax.nn.leaky_relu, negative_slope=slope)
    name = "relu" if slope == 0 else f"leaky_relu {slope:g}"
    return Activation(name, f, functools.partial(_piecewise, slope), 1.0)


def _tanh_minimise(z: Array, m: Array, q: Array) -> Array:
    """The global minimiser for f = tanh, up to the resolution of `STARTS` points.

    The cost falls from c towards the side where tanh(z) comes closer to q; mirrored so that this
    side is above, a minimiser lies within d = z - c <= (q - tanh c) / sqrt 2, since 2 d^2 must be
    won back, and below max(c, log(1 + 4 (q + 1)) / 2) + 1/2, since tanh is flat beyond. There may be
    two minimisers (large |q|), so the bracket is looked at in several points first.
    """
    c = (m + z) / 2
    side = jnp.where(q >= jnp.tanh(c), 1, -1).astype(z.dtype)
    c, q = side * c, side * q
    gap = q - jnp.tanh(c)
    flat = jnp.maximum(c, jnp.log1p(4 * jnp.maximum(q + 1, 0)) / 2) + 0.5
    high = jnp.minimum(c + gap / 2**0.5, flat)

    def cost(a: Array) -> Array:
        return 2 * (a - c) ** 2 + (q - jnp.tanh(a)) ** 2

    def look(i: Array, best: Array) -> Array:
        a = c + (high - c) * (i / STARTS)
        return jnp.where(cost(a) < cost(best), a, best)

    best = lax.fori_loop(1, STARTS + 1, look, c)
    width = (high - c) / STARTS
    low, high = jnp.maximum(best - width, c), jnp.minimum(best + width, high)
    found = _falling_root(functools.partial(_tanh_slope, c, q), low, high, best)
    return side * jnp.where(cost(found) <= cost(best), found, best)


def _tanh_slope(c: Array, q: Array, a: Array) -> tuple[Array, Array]:
    """First and second derivative of 2 (a - c)^2 + (q - tanh a)^2."""
    t = jnp.tanh(a)
    s = 1 - t * t
    return 4 * (a - c) - 2 * (q - t) * s, 4 + 2 * s * s + 4 * (q - t) * t * s


def _falling_root(
    slope: Callable[[Array], tuple[Array, Array]], low: Array, high: Array, start: Array
) -> Array:
    """Where the cost stops falling within low..high: Newton, by halves where it leaves the bracket."""
    small = 4 * jnp.finfo(start.dtype).eps

    def refine(carry: Bracket) -> Bracket:
        a, low, high, _, i = carry
        first, second = slope(a)
        low, high = jnp.where(first < 0, a, low), jnp.where(first < 0, high, a)
        newton = a - first / jnp.where(second > 0, second, jnp.inf)
        inside = (second > 0) & (newton >= low) & (newton <= high)
        following = jnp.where(inside, newton, (low + high) / 2)
        moving = jnp.abs(following - a) > small * (1 + jnp.abs(a))
        return following, low, high, moving.any(), i + 1

    going = lambda carry: carry[3] & (carry[4] < HALVINGS)
    first = jnp.any(start == start)  # True, marked as varying where the samples are
    carry: Bracket = start, low, high, first, 0
    return lax.while_loop(going, refine, carry)[0]


RELU = leaky(0.0)
TANH = Activation("tanh", jnp.tanh, _tanh_minimise, 1.0)


@functools.singledispatch
def is_dense(layer: Layer) -> bool:
    """Whether it is activation(x W + b) with params {"W", "b"}: what pdADMM can train."""
    return False


@functools.singledispatch
def activation(layer: Layer) -> Callable[[Array], Array] | None:
    """What follows the sums of such a layer; None: nothing."""
    return None


@is_dense.register
def _(layer: Dense) -> bool:
    return layer.normalisation is None


@activation.register
def _(layer: Dense) -> Callable[[Array], Array] | None:
    return layer.activation


def find(i: int, layer: Layer) -> Activation:
    """The activation of a hidden dense layer.

    Raises:
      ValueError: a layer that is not dense, or whose activation has no z-step.
    """
    f = activation(layer)
    if not is_dense(layer):
        raise ValueError(f"net: expected dense layers only; got layer {i}, {layer.name!r}")
    if f is jax.nn.relu:
        return RELU
    if f in (jnp.tanh, jax.nn.tanh, jax.lax.tanh):
        return TANH
    if f is jax.nn.leaky_relu:
        return leaky(0.01)
    if isinstance(f, functools.partial) and f.func is jax.nn.leaky_relu:
        slope = f.keywords.get("negative_slope", 0.01)
        if not f.args and 0 <= slope < 1:
            return leaky(float(slope))
    raise ValueError(
        f"net: expected jax.nn.relu, jax.nn.leaky_relu (or a functools.partial of it with "
        f"0 <= negative_slope < 1) or jax.numpy.tanh, which have a z-step, as the activation of "
        f"hidden layer {i}; got {f!r}"
    )
