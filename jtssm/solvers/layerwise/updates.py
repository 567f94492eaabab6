"""The block updates of pdADMM, array in, array out; the problem stands in `jtssm.solvers.layerwise`.

Rows are samples. The residual r = p W + b - z is handed from update to update, so that nothing is
multiplied twice: along a direction d a change of p by d changes r by d W, one of W by d changes it
by p d, and phi is quadratic along it. Its curvature c there says which step length tau passes the
paper's test phi(p+) <= model(p+): exactly tau >= c.

`total` sums an array over the devices that share the samples; on one device it leaves it alone.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jtssm.arrays import Array, Scalar
from jtssm.losses import Loss, cross_entropy
from jtssm.solvers.layerwise.activations import RELU, Activation

Total = Callable[[Array], Array]


CROSS_ENTROPY = cross_entropy()
ROUNDING = 8  # times eps: how exactly means and products are known


def alone(a: Array) -> Array:
    """The sum over the devices that share the samples, where there is one."""
    return a


def squared(a: Array, total: Total = alone) -> Array:
    """|a|^2 summed over all samples: a scalar."""
    return total(jnp.sum(a * a))


def step_length(curvature: Array, norm: Array, t0: Scalar | None) -> Array:
    """The paper's backtracking without its trials: scalars in, tau out.

    Args:
      curvature: sum of squares that c = curvature / norm is made of; norm: |gradient|^2.
      t0: first tau tried; the doubling t0, 2 t0, 4 t0, ... ends at the first tau >= c. None: tau = c,
        the exact line search. A gradient of 0 passes at once.
    """
    c = jnp.where(norm > 0, curvature / jnp.where(norm > 0, norm, 1), 0)
    if t0 is None:
        return jnp.where(c > 0, c, 1)
    mantissa, exponent = jnp.frexp(c / t0)
    doublings = jnp.maximum(jnp.where(mantissa > 0.5, exponent, exponent - 1), 0)
    return jnp.ldexp(jnp.asarray(t0, c.dtype), doublings)


def update_p(
    p: Array,
    r: Array,
    W: Array,
    q_prev: Array,
    u_prev: Array,
    *,
    rho: Scalar,
    nu: Scalar,
    t0: Scalar | None = None,
    pace: Scalar = 1.0,
    total: Total = alone,
) -> tuple[Array, Array, Array]:
    """p <- p - pace g / tau with g = nu r W^T + u_prev + rho (p - q_prev): (p, r, tau).

    Args:
      p: [samples, inputs], as q_prev and u_prev.
      r: [samples, width].
      W: [inputs, width].
      t0: see `step_length`; None: exact line search.
      pace: part of the step that is taken.
    """
    g = slope_p(p, r, W, q_prev, u_prev, rho=rho, nu=nu)
    gW = g @ W
    norm = squared(g, total)
    tau = step_length(nu * squared(gW, total) + rho * norm, norm, t0)
    return p - pace * g / tau, r - pace * gW / tau, tau


def slope_p(
    p: Array, r: Array, W: Array, q_prev: Array, u_prev: Array, *, rho: Scalar, nu: Scalar
) -> Array:
    """dL/dp = nu r W^T + u_prev + rho (p - q_prev): [samples, inputs]."""
    return nu * (r @ W.T) + u_prev + rho * (p - q_prev)


def minimise_p(
    p: Array,
    r: Array,
    W: Array,
    q_prev: Array,
    u_prev: Array,
    *,
    rho: Scalar,
    nu: Scalar,
    pace: Scalar = 1.0,
) -> tuple[Array, Array, Array]:
    """p <- argmin_p L, by the Cholesky factor of nu W W^T + rho: (p, r, rho). Three products.

    pace: part of the way there that is taken.
    """
    g = slope_p(p, r, W, q_prev, u_prev, rho=rho, nu=nu)
    curvature = nu * (W @ W.T) + rho * jnp.eye(W.shape[0], dtype=W.dtype)
    change = -pace * solved(curvature, g.T).T
    return p + change, r + change @ W, jnp.asarray(rho, p.dtype)


def update_W(
    W: Array,
    r: Array,
    p: Array,
    *,
    nu: Scalar,
    t0: Scalar | None = None,
    weight_decay: Scalar = 0.0,
    pace: Scalar = 1.0,
    total: Total = alone,
) -> tuple[Array, Array, Array]:
    """W <- W - pace g / theta with g = nu p^T r + weight_decay W: (W, r, theta).

    Args:
      W: [inputs, width].
      r: [samples, width].
      p: [samples, inputs].
      t0: see `step_length`; None: exact line search.
      pace: part of the step that is taken.
    """
    g = nu * total(p.T @ r) + weight_decay * W
    pg = p @ g
    norm = jnp.sum(g * g)
    theta = step_length(nu * squared(pg, total) + weight_decay * norm, norm, t0)
    return W - pace * g / theta, r - pace * pg / theta, theta


def minimise_W(
    W: Array,
    r: Array,
    p: Array,
    *,
    nu: Scalar,
    damping: Scalar,
    weight_decay: Scalar = 0.0,
    pace: Scalar = 1.0,
    total: Total = alone,
    samples: int | None = None,
) -> tuple[Array, Array, Array]:
    """W <- argmin_W [min_b L] + (theta / 2) |W - W_old|^2: (W, r, theta). Three products.

    b is minimised along with W (`update_b` then takes it there): p and r count from their means over
    the samples. theta = damping * the mean eigenvalue of nu p^T p: 0 is the exact minimiser (ridge
    regression), of which a singular p^T p still takes a least part, sqrt(eps), of many inputs more; the
    larger, the closer to a step along the gradient. The means are taken off before the product, which
    leaves a p^T p without negative eigenvalues, and an input that varies by no more than the rounding of
    its mean does not vary.

    pace: part of the way there that is taken.
    samples: how many there are on all devices; None: the rows of r.
    """
    count = r.shape[0] if samples is None else samples
    p_sum, r_sum = total(p.sum(axis=0)), total(r.sum(axis=0))
    mean_p, eps = p_sum / count, float(jnp.finfo(W.dtype).eps)
    spread, residual = p - mean_p[None, :], r - (r_sum / count)[None, :]
    gram, cross = total(spread.T @ spread), total(spread.T @ residual)
    varies = jnp.diag(gram) > count * (ROUNDING * eps * mean_p) ** 2
    gram = jnp.where(jnp.outer(varies, varies), gram, 0)
    cross = jnp.where(varies[:, None], cross, 0)
    mean = nu * jnp.trace(gram) / gram.shape[0]
    least = max(eps**0.5, ROUNDING * eps * gram.shape[0])
    theta = jnp.maximum(damping, least) * jnp.where(mean > 0, mean, 1)
    ridge = (theta + weight_decay) * jnp.eye(gram.shape[0], dtype=W.dtype)
    change = -pace * solved(nu * gram + ridge, nu * cross + weight_decay * W)
    return W + change, r + p @ change, theta


def solved(positive: Array, right: Array) -> Array:
    """positive^-1 right for a symmetric positive definite matrix."""
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(positive), right)


def update_b(
    b: Array, r: Array, *, total: Total = alone, samples: int | None = None
) -> tuple[Array, Array]:
    """b <- argmin_b L = b - mean of r over the samples: (b, r).

    samples: how many there are on all devices; None: the rows of r.
    """
    mean = total(r.sum(axis=0)) / (r.shape[0] if samples is None else samples)
    return b - mean, r - mean[None, :]


def update_z(z: Array, m: Array, q: Array, *, nu: Scalar, activation: Activation = RELU) -> Array:
    """z <- argmin_z (nu/2) (|z - m|^2 + |q - f(z)|^2 + |z - z_old|^2); nu cancels.

    Args:
      z: z_old; m = p W + b; q: all [samples, width].
    """
    del nu  # here because the equation has it
    return activation.minimise(z, m, q)


def update_z_last(
    z: Array,
    m: Array,
    y: Array,
    *,
    nu: Scalar,
    loss: Loss = CROSS_ENTROPY,
    weight: Array | None = None,
) -> Array:
    """z_L <- argmin_z weight R(z; y) + (nu/2) |z - m|^2, sample by sample, solved from z_old.

    Args:
      z: z_old [samples, outputs], as m = p W + b.
      y: labels [samples], or targets like z.
      loss: one with a prox.
      weight: [samples] of R; 0: z_L <- m. None: 1.
    """
    assert loss.prox is not None
    if weight is None:
        return loss.prox(z, m, y, nu)
    counts = (weight > 0)[:, None]
    found = loss.prox(z, m, y, nu / jnp.where(counts, weight[:, None], 1))
    return jnp.where(counts, found, m)


def update_q(
    p_next: Array, u: Array, z: Array, *, rho: Scalar, nu: Scalar, activation: Activation = RELU
) -> Array:
    """q <- argmin_q L = (rho p_next + u + nu f(z)) / (rho + nu); all [samples, width]."""
    return (rho * p_next + u + nu * activation.f(z)) / (rho + nu)


def update_u(u: Array, p_next: Array, q: Array, *, rho: Scalar) -> Array:
    """u <- u + rho (p_next - q); then u = nu (q - f(z)). All [samples, width]."""
    return u + rho * (p_next - q)
