"""The published cost of training on a Pr x Pc grid: plain Python numbers.

Source: Gholami, Azad, Jin, Keutzer, Buluc, "Integrated model, batch and domain parallelism in training
neural networks" (arXiv 1712.04432, SPAA 2018). P = Pr Pc processes: Pr splits a layer's weights or its
images, Pc the batch of B samples. A message of n words takes alpha + beta n seconds, an all-gather over
p processes alpha ceil(log2 p) + beta (p - 1) / p n, an all-reduce twice that. The equations give seconds
of communication a step (forward and backward); the figures made of them: `benchmarks.published_figures`.

The equations stand as printed. They count dX of a layer as d_i rows where it has d_(i-1), and a dX of the
first layer, which nobody needs; what a compiled program moves is counted in
`jtssm.sharding.cost.seconds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple, cast

from jtssm import checks, nn
from jtssm.sharding.layers.questions import window

FORMS = ("model", "domain")


class Link(NamedTuple):
    """A flat network: every pair of processes is as near as any other."""

    alpha: float  # seconds a message
    beta: float  # seconds a word


# 4-byte words; the printed 6 GB/s, which the bars take as 6 * 2**30
CORI = Link(2e-6, 4 / (6 * 2**30))


class Layer(NamedTuple):
    """A layer as the paper has it; sizes in words, images [rows, columns, channels]."""

    name: str
    weights: int  # |W|
    d_in: int  # a sample
    d_out: int  # a sample
    x: tuple[int, int, int] = (1, 1, 1)  # image in
    y: tuple[int, int, int] = (1, 1, 1)  # image out
    window: tuple[int, int] | None = None  # k_h, k_w of a convolution; None: a dense layer

    @property
    def multiply_adds(self) -> int:
        """Of a sample, forward: every weight at every position of the outputs."""
        return self.weights * prod(self.y[:2])


def layers_of(net: nn.Network) -> tuple[Layer, ...]:
    """The layers with weights of a plain network, as the paper counts them: biases are left out."""
    shapes = cast(tuple[tuple[int, ...], ...], net.shapes)
    passed = zip(net.layers, shapes, shapes[1:], strict=False)
    costs = net.costs()
    weighed = [each for each, cost in zip(passed, costs, strict=True) if cost]
    return tuple(_as_printed(i, *each) for i, each in enumerate(weighed, 1))


def _as_printed(number: int, layer: nn.Layer, x: tuple, y: tuple) -> Layer:
    """A weight multiplies once a sample at each position of the outputs."""
    adds = layer.cost(x)
    seen = window(layer)
    if seen is None:
        return Layer(f"fc{number}", adds, prod(x), prod(y))
    return Layer(f"conv{number}", adds // prod(y[:2]), prod(x), prod(y), x, y, (seen.size,) * 2)


ALEXNET = layers_of(nn.alexnet())


def gather_seconds(words: float, p: int, link: Link = CORI) -> float:
    """All-gather of an array of that many words, once whole, over p processes; nothing on one."""
    checks.count(p=p)
    return link.alpha * int(p - 1).bit_length() + link.beta * (p - 1) / p * words


def reduce_seconds(words: float, p: int, link: Link = CORI) -> float:
    """All-reduce of an array of that many words over p processes: twice a gather."""
    return 2 * gather_seconds(words, p, link)


def model_seconds(layers: Sequence[Layer], batch: int, p: int, link: Link = CORI) -> float:
    """Equation (3), pure model parallelism: Y is gathered, dX reduced."""
    checks.count(batch=batch)
    return sum(3 * gather_seconds(batch * layer.d_out, p, link) for layer in layers)


def batch_seconds(layers: Sequence[Layer], p: int, link: Link = CORI) -> float:
    """Equation (4), pure batch parallelism: dW is reduced."""
    return sum(reduce_seconds(layer.weights, p, link) for layer in layers)


def redistribution_seconds(d: int, batch: int, p: int, link: Link = CORI) -> float:
    """Equation (6): `batch` samples of d words, split by sample, are gathered for a model split."""
    checks.count(d=d, batch=batch)
    return gather_seconds(batch * d, p, link)


def halo_seconds(layers: Sequence[Layer], batch: int, link: Link = CORI) -> float:
    """The two sums of equation (7) without (4): rows of X forward, of dY backward.

    Args:
      layers: convolutions; one with a 1 x 1 window has no halo.
      batch: samples of a process.

    Raises:
      ValueError: a dense layer, which has no halo to speak of.
    """
    checks.count(batch=batch)
    total = 0.0
    for layer in layers:
        if layer.window is None:
            raise ValueError(f"layers: expected convolutions; got {layer.name!r}, a dense layer")
        for (_, columns, channels), k in zip((layer.x, layer.y), layer.window, strict=True):
            words = batch * columns * channels * (k // 2)
            total += link.alpha + link.beta * words if words else 0.0
    return total


def domain_seconds(layers: Sequence[Layer], batch: int, p: int, link: Link = CORI) -> float:
    """Equation (7), pure domain parallelism: halos, and all of dW is reduced.

    Raises:
      ValueError: a dense layer, which has no halo to speak of.
    """
    halos = halo_seconds(layers, batch, link)
    return (halos if p > 1 else 0.0) + batch_seconds(layers, p, link)


def grid_seconds(layers: Sequence[Layer], batch: int, pr: int, pc: int, link: Link = CORI) -> float:
    """Equation (8), "1.5D": (3) over Pr on B / Pc samples and (4) over Pc on |W| / Pr weights.

    Raises:
      ValueError: pc does not divide the batch.
    """
    checks.count(pr=pr)
    checks.divides("pc", pc, batch, "samples of a batch")
    return model_seconds(layers, batch // pc, pr, link) + weights_seconds(layers, pr, pc, link)


def weights_seconds(layers: Sequence[Layer], pr: int, pc: int, link: Link = CORI) -> float:
    """The second sum of (8)."""
    return sum(reduce_seconds(layer.weights / pr, pc, link) for layer in layers)


def mixed_seconds(
    layers: Sequence[Layer], forms: Sequence[str], batch: int, pr: int, pc: int, link: Link = CORI
) -> float:
    """Equation (9): (8) over the layers in "model" form, (7) with B / Pc and P over those in "domain".

    Args:
      forms: "model" or "domain", one a layer.

    Raises:
      ValueError: pc does not divide the batch, other forms, a dense layer in "domain" form.
    """
    if len(forms) != len(layers):
        raise ValueError(f"forms: expected {len(layers)}, one a layer; got {len(forms)}")
    for form in forms:
        checks.one_of("forms", form, FORMS)
    pairs = list(zip(layers, forms, strict=True))
    model, domain = ([layer for layer, form in pairs if form == name] for name in FORMS)
    total = grid_seconds(model, batch, pr, pc, link) + batch_seconds(domain, pr * pc, link)
    halos = halo_seconds(domain, batch // pc, link)
    return total + (halos if pr > 1 else 0.0)
