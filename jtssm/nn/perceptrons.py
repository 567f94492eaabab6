"""Dense layers and multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import jax

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.nn.dropout import dropouts
from jtssm.nn.layer import Activation, Layer, Shape, titled
from jtssm.nn.linear import Linear
from jtssm.nn.network import Network, sequence
from jtssm.nn.norm import find
from jtssm.nn.ops import Products


def mlp(
    widths: Sequence[int],
    activation: Callable[[Array], Array] = jax.nn.relu,
    *,
    normalisation: str | None = None,
    dropout: float = 0.0,
) -> Network:
    """A multilayer perceptron; images are flattened on entry.

    Args:
      widths: inputs, hidden widths..., outputs; [196, 512, 10] has two layers.
      activation: after every layer but the last.
      normalisation: of every layer before its activation, "batch", "running" or "layer"
        (`jtssm.nn.norm`); of the outputs too, without gamma and beta, unless it is "layer".
      dropout: share of the neurons of every hidden layer that are set to zero while training.

    Raises:
      ValueError: fewer than two widths, or one that is not a positive integer; an unknown
        normalisation; a dropout outside [0, 1).

    Examples:
      >>> from jtssm import nn
      >>> net = nn.mlp([4, 8, 3], dropout=0.1)
      >>> [layer.name for layer in net.layers]
      ['dense 8 relu', 'dropout 0.1', 'dense 3']
      >>> net.shapes[-1]
      (3,)
    """
    widths = checks.counts("widths", widths, "[196, 512, 10]", least=2)
    norm, drop = find(normalisation), dropouts(dropout)
    hidden = [layer for w in widths[1:-1] for layer in (dense(w, activation, normalisation), *drop)]
    outputs = normalisation if norm is not None and norm.outputs else None
    return sequence([*hidden, dense(widths[-1], None, outputs, affine=False)], (widths[0],))


def dense(
    width: int,
    activation: Callable[[Array], Array] | None = None,
    normalisation: str | None = None,
    *,
    affine: bool = True,
) -> Layer:
    """activation(x W + b) with W [inputs, width], b [width]; x is flattened to [samples, inputs].

    With a normalisation (`jtssm.nn.norm`) the layer is activation(norm(x W)): gamma and beta
    [width] stand in for b, or nothing without `affine`.
    Under an activation W starts from He's normal, without one from LeCun's; b starts at 0.

    Raises:
      ValueError: a width below 1, an activation that is no function of arrays, an unknown
        normalisation.
    """
    (width,), affine = checks.count(width=width), checks.flag("affine", affine)
    checks.activation(activation)
    find(normalisation)
    return Dense(width, activation, normalisation, affine)


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Linear):
    """activation(x W + b), W [inputs, width]; see `dense`, which checks what it is given."""

    width: int
    activation: Activation | None = None
    normalisation: str | None = None
    affine: bool = True

    @property
    def name(self) -> str:
        """Width, activation and normalisation."""
        return titled(f"dense {self.width}", self.activation, self.normalisation)

    @property
    def columns(self) -> int:
        """Its neurons."""
        return self.width

    def kernel(self, shape: Shape) -> Shape:
        """[inputs, width]."""
        return prod(shape), self.width

    def sums(self, params: Tree, x: Array, products: Products) -> Array:
        """x W + b for x [b, ...], flattened."""
        return products.dense(x.reshape(x.shape[0], -1), params["W"], params.get("b"))

    def shape(self, shape: Shape) -> Shape:
        """(width,), whatever the samples are."""
        return (self.width,)

    def cost(self, shape: Shape) -> int:
        """One for each entry of W."""
        return prod(shape) * self.width
