"""What dense layers and convolutions have in common: W, then a bias or a normalisation, then f.

f(x W + b)        W from He's normal under an activation, from LeCun's without one; b from 0
f(norm(x W))      gamma and beta stand in for b (`jtssm.nn.norm`), or nothing without `affine`
"""

from __future__ import annotations

from abc import abstractmethod

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jtssm.arrays import Array, Tree
from jtssm.nn.layer import Activation, Layer, Shape
from jtssm.nn.norm import Normalisation, Statistics, find
from jtssm.nn.ops import Products


class Linear(Layer):
    """activation(x W + b), or activation(norm(x W)), whatever the product is."""

    activation: Activation | None
    normalisation: str | None
    affine: bool = True  # whether gamma and beta follow a normalisation

    @abstractmethod
    def kernel(self, shape: Shape) -> Shape:
        """The shape of W for samples of a shape: outputs last."""

    @abstractmethod
    def sums(self, params: Tree, x: Array, products: Products) -> Array:
        """x W, + b where the layer has one."""

    @property
    @abstractmethod
    def columns(self) -> int:
        """Neurons or channels of the outputs."""

    @property
    def norm(self) -> Normalisation | None:
        """How it is normalised; None: not at all."""
        return find(self.normalisation)

    @property
    def beside(self) -> tuple[str, ...]:
        """The parameters [columns] beside W."""
        return ("b",) if self.norm is None else self.norm.parameters(self.affine)

    def init(self, key: Array, shape: Shape, dtype: DTypeLike) -> Tree:
        """W drawn, b or what the normalisation has at its start."""
        kernel = self.kernel(shape)
        start = jax.nn.initializers
        normal = start.he_normal if self.activation else start.lecun_normal
        W = normal(in_axis=tuple(range(len(kernel) - 1)))(key, kernel, dtype)
        if self.norm is None:
            return {"W": W, "b": jnp.zeros(self.columns, dtype)}
        return {"W": W} | self.norm.init(self.columns, self.affine, dtype)

    def apply(self, params: Tree, x: Array, products: Products) -> Array:
        """activation(x W + b), or activation(norm(x W))."""
        z = self.sums(params, x, products)
        z = z if self.norm is None else self.norm.apply(params, z, products)
        return z if self.activation is None else self.activation(z)

    def estimate(self, params: Tree, x: Array, products: Products) -> Tree:
        """The parameters with the mean and var of x W where the normalisation keeps them."""
        if self.norm is None or not self.estimated:
            return params
        return self.norm.estimate(params, self.sums(params, x, products), products)

    @property
    def estimated(self) -> tuple[str, ...]:
        """Of its normalisation."""
        return () if self.norm is None else self.norm.estimated

    @property
    def statistics(self) -> tuple[Statistics, ...]:
        """Of its normalisation."""
        return () if self.norm is None else (self.norm.statistics(self.columns, self.affine),)

    @property
    def uncast(self) -> tuple[str, ...]:
        """Of its normalisation: computed in float32 at least."""
        return () if self.norm is None else self.beside
