"""Features that hardly vary beside their mean: the W-step of pdADMM is that of exact arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtssm
from jtssm import solvers
from jtssm.data import synthetic
from jtssm.solvers.layerwise.updates import minimise_W

X, Y = synthetic.separable(0, 120, 4, 4, np.float32)
RNG = np.random.default_rng(0)
W, R = RNG.normal(size=(4, 3)), RNG.normal(size=(120, 3))
FEATURES = {
    "the same sample": np.repeat(X[:1], 120, 0),
    "the same negative number": np.full((120, 4), -1e-3),
    "one that varies": np.where(np.arange(4) == 2, X, 0.7),
    "far from zero": X + np.float32(1e4),
    "hardly varying": 1 + 1e-3 * X,
    "zeros": np.zeros((120, 4)),
    "large": np.full((120, 4), 3e3) * (1 + 0.1 * X),
    "small": 1e-9 * X + 1e-9,
    "copies of one": np.repeat(X[:, :1], 4, 1),
    "as ever": X,
}


def exact(p, damping, decay):
    """The step in float64, features that do not vary left out."""
    p, r = p.astype(np.float64), R
    spread = p - p.mean(0)
    spread[:, (np.ptp(p, axis=0) == 0)] = 0
    gram, cross = spread.T @ spread, spread.T @ (r - r.mean(0))
    mean = np.trace(gram) / 4
    theta = max(damping, np.finfo(np.float32).eps ** 0.5) * (mean or 1)
    return W - np.linalg.solve(gram + (theta + decay) * np.eye(4), cross + decay * W)


@pytest.mark.parametrize("damping", [0.0, 1.0])
@pytest.mark.parametrize("name", FEATURES)
def test_the_step_is_that_of_exact_arithmetic(name, damping):
    p, decay = FEATURES[name].astype(np.float32), 1e-3
    single = lambda a: jnp.asarray(a, jnp.float32)
    found, r, theta = minimise_W(
        single(W), single(R), single(p), nu=1.0, damping=damping, weight_decay=decay
    )
    assert bool(jnp.isfinite(found).all() & jnp.isfinite(r).all())
    assert float(theta) > 0
    wanted = exact(p, damping, decay)
    scale = np.abs(wanted - W).max()
    tolerance = 2e-2 if name == "far from zero" or damping == 0 else 1e-3
    # along directions that hardly vary the exact step is free: what it does to r counts
    change = p.astype(np.float64) @ (np.asarray(found, np.float64) - wanted)
    change -= change.mean(0)
    spread = max(np.abs(p - p.mean(0)).max(), 1e-30)
    assert np.abs(change).max() <= tolerance * max(scale * spread, 1e-6)
    if "same" in name or name == "zeros":
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_wide_layer_of_one_direction_has_a_factor():
    """p^T p of rank 1 and 2000 inputs: sqrt(eps) of its mean eigenvalue was below rounding."""
    p = jnp.asarray(np.outer(RNG.normal(size=50), RNG.normal(size=2000)), jnp.float32)
    W = jnp.zeros((2000, 2), jnp.float32)
    found, *_ = minimise_W(W, jnp.asarray(R[:50, :2], jnp.float32), p, nu=1.0, damping=0.0)
    assert bool(jnp.isfinite(found).all())


@pytest.mark.parametrize("steps", ["damped", pytest.param("exact", marks=pytest.mark.slow)])
def test_samples_that_are_all_the_same_train(steps):
    method = solvers.pdadmm(jtssm.mlp([4, 8, 8, 4]), steps=steps)
    x = np.repeat(X[:1], 120, 0)
    result = jtssm.fit(method, (x, Y), epochs=3, key=jax.random.key(0), evaluate_every=3)
    assert result.divergence is None
    assert 0 < result.history[-1]["loss"] < 2
