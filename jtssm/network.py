"""Networks as sequences of layers, and where they may be cut into subnetworks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

import jax
import jax.numpy as jnp

from jtssm import checks
from jtssm import normalisation as normalising
from jtssm.layer import Layer as Layer
from jtssm.layer import Network as Network
from jtssm.layer import Shape as Shape
from jtssm.layer import estimate_layers as estimate_layers
from jtssm.layer import keep_estimated as keep_estimated
from jtssm.layer import run_layers as run_layers
from jtssm.layer import sequence as sequence
from jtssm.modules import from_linen as from_linen
from jtssm.modules import from_nnx as from_nnx
from jtssm.modules import layers as layers
from jtssm.products import Window
from jtssm.protocol import Array


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
        (`jtssm.normalisation`); of the outputs too, without gamma and beta, unless it is "layer".
      dropout: share of the neurons of every hidden layer that are set to zero while training.

    Raises:
      ValueError: fewer than two widths, or one that is not a positive integer; an unknown
        normalisation; a dropout outside [0, 1).
    """
    widths = checks.counts("widths", widths, "[196, 512, 10]", least=2)
    kind, drop = normalising.find(normalisation), dropouts(dropout)
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

    With a normalisation (`jtssm.normalisation`) the layer is activation(norm(x W)): gamma and beta
    [width] stand in for b, or nothing without `affine`.
    Under an activation W starts from He's normal, without one from LeCun's; b starts at 0.

    Raises:
      ValueError: a width below 1, an activation that is no function of arrays, an unknown
        normalisation.
    """
    (width,), affine = checks.count(width=width), checks.flag("affine", affine)
    checks.activation(activation)
    scale = jax.nn.initializers.he_normal() if activation else jax.nn.initializers.lecun_normal()
    norm = normalising.find(normalisation)

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


def dropout_layer(rate: float) -> Layer:
    """While training, each number is 0 with probability `rate`, the others scaled by 1 / (1 - rate).

    Every sample draws from its own key, so that the numbers are the same on any mesh.

    Raises:
      ValueError: a rate outside [0, 1).
    """
    rate = checks.share("dropout", rate, 0.5, whole=False)

    def apply(_, x, products):
        if not products.training or products.keys is None:
            return x
        kept = lambda key, shape: jax.random.bernoulli(key, 1 - rate, shape)
        return jnp.where(products.drawn(kept, products.keys(), x), x / (1 - rate), 0)

    return Layer(
        name=f"dropout {rate:g}",
        init=lambda key, shape, dtype: {},
        apply=apply,
        shape=lambda shape: shape,
        cost=lambda shape: 0,
        splits={"model": {}},
        neurons={},
        random=True,
        window=Window(1),
        mixes=False,
    )


def dropouts(rate: float) -> list[Layer]:
    """What follows every hidden layer: a layer of dropout, or none at rate 0.

    Raises:
      ValueError: as `dropout_layer`.
    """
    layer = dropout_layer(rate)
    return [] if rate == 0 else [layer]


def cut(net: Network, subnets: int | None, cuts: Sequence[int] | None) -> tuple[int, ...]:
    """Where the subnetworks start: piece l holds the layers starts[l] .. starts[l + 1] - 1.

    Args:
      subnets: number of subnetworks n, 1 <= n <= L; cut so that the largest cost is smallest.
      cuts: instead, the first layer of every subnetwork but the first, e.g. [3, 7] for three.

    Raises:
      ValueError: n out of range, cuts that do not rise within 1 .. L - 1, or the two disagree.
    """
    checks.instance("net", net, Network, "jtssm.mlp([196, 512, 10])")
    num_layers = len(net.layers)
    if cuts is not None:
        cuts = checks.counts("cuts", cuts, "[3, 7]", least=0)
        starts = (0, *cuts, num_layers)
        if any(b <= a for a, b in pairwise(starts)):
            raise ValueError(
                f"cuts: expected rising layer numbers within 1..{num_layers - 1}; got {list(cuts)}"
            )
        if subnets is not None and checks.count(subnets=subnets) != (len(cuts) + 1,):
            raise ValueError(
                f"subnets: expected {len(cuts) + 1} with {len(cuts)} cuts; got {subnets}"
            )
        return starts
    n = 1 if subnets is None else subnets
    if not checks.is_integer(n) or not 1 <= n <= num_layers:
        raise ValueError(
            f"subnets: expected 1..{num_layers}, the network has {num_layers} layers; got "
            f"{checks.shown(n)}"
        )
    return balanced_starts(net.costs(), int(n))


def balanced_starts(costs: Sequence[int], n: int) -> tuple[int, ...]:
    """Split costs into n non-empty runs with the smallest possible largest sum.

    Dynamic program over (layers taken, runs): best[j] holds, for the first j layers, the pair
    (largest sum, sum of squares) and the starts; squares break ties towards even runs.
    """
    best = {j: ((sum(costs[:j]), sum(costs[:j]) ** 2), (0,)) for j in range(1, len(costs) + 1)}
    for runs in range(2, n + 1):
        best = {
            j: min(_extended(best, costs, i, j) for i in range(runs - 1, j))
            for j in range(runs, len(costs) + 1)
        }
    return (*best[len(costs)][1], len(costs))


def _extended(best: dict, costs: Sequence[int], i: int, j: int) -> tuple:
    (largest, squares), starts = best[i]
    run = sum(costs[i:j])
    return (max(largest, run), squares + run**2), (*starts, i)
