"""Dense layers and multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import jax
import jax.numpy as jnp

from jtssm import checks
from jtssm.arrays import Array
from jtssm.nn.dropout import dropouts
from jtssm.nn.layer import Layer
from jtssm.nn.network import Network, sequence
from jtssm.nn.norm import find


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
    kind, drop = find(normalisation), dropouts(dropout)
    hidden = [layer for w in widths[1:-1] for layer in (dense(w, activation, normalisation), *drop)]
    outputs = normalisation if kind is not None and kind.outputs else None
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
    scale = jax.nn.initializers.he_normal() if activation else jax.nn.initializers.lecun_normal()
    norm = find(normalisation)

    def init(key, shape, dtype):
        W = {"W": scale(key, (prod(shape), width), dtype)}
        return W | (norm.init(width, affine, dtype) if norm else {"b": jnp.zeros(width, dtype)})

    def product(params, x, products):
        return products.dense(x.reshape(x.shape[0], -1), params["W"], params.get("b"))

    def apply(params, x, products):
        z = product(params, x, products)
        z = norm.apply(params, z, products) if norm else z
        return z if activation is None else activation(z)

    estimate = norm and norm.estimated and (
        lambda params, x, products: norm.estimate(params, product(params, x, products), products)
    )  # fmt: skip
    names = norm.init(1, affine, jnp.float32) if norm else ("b",)
    title = (f"dense {width}", getattr(activation, "__name__", activation), normalisation)
    return Layer(
        name=" ".join(str(word) for word in title if word),
        init=init,
        apply=apply,
        shape=lambda _: (width,),
        cost=lambda shape: prod(shape) * width,
        splits={
            "gathered": {"W": 1} | dict.fromkeys(names, -1),
            "model": {"W": 1} | dict.fromkeys(names, 0),
            "row": {"W": 0} | dict.fromkeys(names, -1),
        },
        dense=norm is None,
        activation=activation,
        neurons={"W": ("in", "out")} | dict.fromkeys(names, ("out",)),
        scaled=norm is None,
        estimate=estimate or None,
        estimated=norm.estimated if norm else (),
        statistics=(norm.statistics(width, affine),) if norm else (),
        uncast=tuple(names) if norm else (),
    )
