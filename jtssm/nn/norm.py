"""Normalisation of a layer's pre-activations z [samples, ..., width], before its activation.

    batch    z <- gamma (z - mean) / sqrt(var + EPSILON) + beta, mean and var over the samples at hand (of
             images [samples, height, width, channels]: over their pixels too), in training and in
             prediction (as independent subnet training has it)
    running  the same in training; prediction takes the mean and var that the layer keeps, which are
             estimated anew on training samples (`Network.estimate`), never averaged along the way
    layer    mean and var over the neurons of one sample

gamma and beta start at 1 and 0; an output layer has neither. "batch" and "running" also normalise the
outputs, "layer" leaves them alone: normalised over few classes, no output could be far above the rest.

mean, var and what they make of z are computed in float32 at least, with gamma and beta as they are
stored, also where layers compute in bfloat16 (`compute_dtype`): only the result is rounded to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.nn.ops import Products, beside, in_full

EPSILON = 1e-5


class Statistics(NamedTuple):
    """A mean and a variance of pre-activations z [b, ..., width], taken while training."""

    over: str  # "samples": of images their pixels too, [width] numbers each; "neurons": [b] each
    width: int
    affine: bool  # whether gamma and beta follow


class Normalisation(NamedTuple):
    """One way to normalise."""

    name: str
    # (params, z [b, ..., width], products) -> mean, var, each [1, ..., width] or [b, 1, ...]
    moments: Callable[[Tree, Array, Products], tuple[Array, Array]]
    outputs: bool  # whether the last layer is normalised too
    over: str  # what mean and var are taken over: "samples" or "neurons"
    estimated: tuple[str, ...] = ()  # parameters [width] that are estimated, not trained

    def init(self, width: int, affine: bool, dtype: DTypeLike) -> Tree:
        """Parameters [width] each: gamma and beta if affine, and what is estimated."""
        params = {"gamma": jnp.ones(width, dtype), "beta": jnp.zeros(width, dtype)}
        start = {"mean": jnp.zeros(width, dtype), "var": jnp.ones(width, dtype)}
        return (params if affine else {}) | {name: start[name] for name in self.estimated}

    def parameters(self, affine: bool) -> tuple[str, ...]:
        """The names of what `init` gives, in its order."""
        return (*(("gamma", "beta") if affine else ()), *self.estimated)

    def statistics(self, width: int, affine: bool = True) -> Statistics:
        """What a layer of this width takes, for what it sends on a mesh."""
        return Statistics(self.over, width, affine)

    def apply(self, params: Tree, z: Array, products: Products) -> Array:
        """Normalised z [b, ..., width], in the dtype of z."""
        dtype, z = z.dtype, in_full(z)
        mean, var = self.moments(params, z, products)
        scale = lax.rsqrt(var + EPSILON)
        if "gamma" not in params:
            return ((z - mean) * scale).astype(dtype)
        gamma, beta = (beside(params[name], z) for name in ("gamma", "beta"))
        return ((z - mean) * (gamma * scale) + beta).astype(dtype)

    def estimate(self, params: Tree, z: Array, products: Products) -> Tree:
        """The parameters with the mean and var of z [b, ..., width] where they are estimated."""
        mean, var = _of_samples(params, in_full(z), products)
        return params | {"mean": mean.reshape(-1), "var": var.reshape(-1)}


def _of_samples(params: Tree, z: Array, products: Products) -> tuple[Array, Array]:
    mean = beside(products.over_samples(z), z)
    return mean, beside(products.over_samples((z - mean) ** 2), z)


def _running(params: Tree, z: Array, products: Products) -> tuple[Array, Array]:
    if products.mode.training:
        return _of_samples(params, z, products)
    return beside(params["mean"], z), beside(params["var"], z)


def _of_neurons(params: Tree, z: Array, products: Products) -> tuple[Array, Array]:
    mean = products.over_neurons(z)
    return mean, products.over_neurons((z - mean) ** 2)


NORMALISATIONS = {
    each.name: each
    for each in (
        Normalisation("batch", _of_samples, True, "samples"),
        Normalisation("running", _running, True, "samples", ("mean", "var")),
        Normalisation("layer", _of_neurons, False, "neurons"),
    )
}


def find(name: str | None) -> Normalisation | None:
    """A normalisation by its name; None: none.

    Raises:
      ValueError: an unknown name.
    """
    if name is not None and (not isinstance(name, str) or name not in NORMALISATIONS):
        raise ValueError(
            f"normalisation: expected None or one of {sorted(NORMALISATIONS)}; got "
            f"{checks.shown(name)}"
        )
    return None if name is None else NORMALISATIONS[name]
