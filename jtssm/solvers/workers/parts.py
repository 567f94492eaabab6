"""What of a network is dealt: its layers, and within residual blocks the layers of those.

Neurons (of images: channels) are dealt between two layers with weights. What enters a residual block and
what leaves it stays whole, as the network's inputs and outputs do: only channels within it are dealt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count, groupby
from math import prod
from typing import NamedTuple, TypeVar, cast

from jtssm.arrays import Array
from jtssm.nn.images import Convolution
from jtssm.nn.layer import Activation, Layer, Shape
from jtssm.nn.network import Network, sequence
from jtssm.nn.perceptrons import Dense
from jtssm.nn.residual import Residual
from jtssm.solvers.workers.deal import Cut, Dealt
from jtssm.solvers.workers.neurons import neurons

Value = TypeVar("Value")


class Part(NamedTuple):
    """A layer with what is dealt before and after it."""

    layer: Layer
    shape: Shape  # of a sample of its inputs
    before: Cut | None  # how the neurons that it takes are dealt; None: they are not
    after: Cut | None  # and those that it gives
    suffix: str = ""  # what its parameters' names end in, in a residual block

    def own(self, tree: dict[str, Value]) -> dict[str, Value]:
        """What a dict by the network's layer's parameters says of this part's, by its own names."""
        end = len(self.suffix)
        return {n[: len(n) - end]: a for n, a in tree.items() if n.endswith(self.suffix)}

    def named(self, tree: dict[str, Value]) -> dict[str, Value]:
        """The inverse of `own`."""
        return {name + self.suffix: a for name, a in tree.items()}

    @property
    def pixels(self) -> int:
        """Of the images that it flattens, each with all dealt channels; 1: of none."""
        return prod(self.shape[:-1]) if len(self.layer.shape(self.shape)) == 1 else 1

    def plan(self) -> dict[str, Dealt | None]:
        """How each of its parameters is stored, by its own names; None: shared."""
        roles = neurons(self.layer) or {}
        return {name: self._stored(each) for name, each in roles.items()}

    def _stored(self, roles: tuple[str, ...]) -> Dealt | None:
        pixels = self.pixels if self.before is not None and "in" in roles else 1
        roles = roles if pixels == 1 else ("", *roles)
        cut_of = {"in": self.before, "out": self.after}
        cuts = tuple(cut_of.get(role) for role in roles)
        dealt = [d for d, cut in enumerate(cuts) if cut is not None]
        own = [d for d in dealt if roles[d] == "out"]
        return Dealt(cuts, (own or dealt)[0], pixels) if dealt else None


class Block(NamedTuple):
    """A layer of the network: a part, or a residual block of several."""

    path: tuple[Part, ...]
    shortcut: tuple[Part, ...] = ()
    activation: Activation | None = None  # of the sum of both

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of the path, then of the shortcut."""
        return (*self.path, *self.shortcut)

    def run(self, x: Array, work: Callable[[Part, Array], Array]) -> Array:
        """Its outputs; work: (part, inputs) -> outputs."""
        y = x
        for part in self.path:
            y = work(part, y)
        if self.activation is None:
            return y
        for part in self.shortcut:
            x = work(part, x)
        return self.activation(y + x)

    def plan(self) -> dict[str, Dealt | None]:
        """How each parameter of the network's layer is stored; None: shared."""
        return {name: kept for part in self.parts for name, kept in part.named(part.plan()).items()}


Plan = list[dict[str, Dealt | None]]  # of each layer


def blocks_of(net: Network, subnets: int, homes: int) -> list[Block]:
    """Of each layer what is dealt to so many subnets, and stored in so many homes.

    Raises:
      ValueError: a layer that cannot be dealt or is narrower than N, or nothing to deal.
    """
    numbers = count()
    found: list[Block] = []
    layers = [
        (i, layer, cast(Shape, shape))
        for i, (layer, shape) in enumerate(zip(net.layers, net.shapes[:-1], strict=True))
    ]
    for whole, run in groupby(layers, key=lambda each: isinstance(each[1], Residual)):
        if whole:
            found += [_residual(*each, subnets, homes, numbers) for each in run]
        else:
            found += [Block((part,)) for part in _chain([*run], subnets, homes, numbers)]
    if not any(part.after for block in found for part in block.parts):
        makers = sum(bool(neurons(layer)) for layer in net.layers)
        raise ValueError(
            f"net: expected at least one hidden layer, whose neurons are dealt; got {makers} layer "
            f"with weights: use mlp([inputs, hidden, outputs])"
        )
    return found


def subnet_of(net: Network, blocks: Sequence[Block]) -> Network:
    """What a subnet is by itself: as many neurons as it has places."""
    layers = []
    for layer, block in zip(net.layers, blocks, strict=True):
        parts = [_resized(part) for part in block.parts]
        if isinstance(layer, Residual):
            path, shortcut = parts[: len(block.path)], parts[len(block.path) :]
            parts = [replace(layer, path=tuple(path), shortcut=tuple(shortcut))]
        layers += parts
    return sequence(layers, cast(Shape, net.shapes[0]))


def _resized(part: Part) -> Layer:
    layer = part.layer
    if part.after is None or not neurons(layer):
        return layer
    if isinstance(layer, Dense):
        return replace(layer, width=part.after.slots)
    assert isinstance(layer, Convolution)
    return replace(layer, channels=part.after.slots)


def cuts_of(blocks: Sequence[Block]) -> list[Cut]:
    """All that is dealt, each once."""
    parts = [part for block in blocks for part in block.parts]
    return [*dict.fromkeys(part.after for part in parts if part.after is not None)]


def _residual(
    i: int, layer: Layer, shape: Shape, subnets: int, homes: int, numbers: count[int]
) -> Block:
    assert isinstance(layer, Residual)
    inputs, turn = layer.inputs(shape), len(layer.path)
    of_parts = [(i, part, shape) for part, shape in zip(layer.parts, inputs, strict=True)]
    ends = [_chain(run, subnets, homes, numbers) for run in (of_parts[:turn], of_parts[turn:])]
    named = iter(range(len(of_parts)))
    path, shortcut = (tuple(p._replace(suffix=str(next(named))) for p in run) for run in ends)
    return Block(path, shortcut, layer.activation)


def _chain(
    layers: Sequence[tuple[int, Layer, Shape]], subnets: int, homes: int, numbers: count[int]
) -> list[Part]:
    """The parts of layers that follow one another, whose inputs and outputs are not dealt."""
    for i, layer, shape in layers:
        _check_can(i, layer, shape)
    makers = [i for i, (_, layer, _) in enumerate(layers) if neurons(layer)]
    before, found = None, []
    for k, (i, layer, shape) in enumerate(layers):
        number, after = next(numbers), before
        if neurons(layer):
            width = layer.shape(shape)[-1]
            if k < makers[-1] and width < subnets:
                raise ValueError(
                    f"subnets: expected at most {width}, the width of layer {i}, {layer.name!r}; "
                    f"got {subnets}"
                )
            after = Cut(number, width, homes, subnets) if k < makers[-1] else None
        found.append(Part(layer, shape, before, after))
        before = after
    return found


def _check_can(i: int, layer: Layer, shape: Shape) -> None:
    roles = neurons(layer)
    if roles is None or (not roles and shape[-1:] != layer.shape(shape)[-1:]):
        raise ValueError(
            f"net: expected layers whose parameters belong to neurons (dense, convolution without "
            f"groups, bottleneck, pools, dropout), which can be dealt; got layer {i}, {layer.name!r}"
        )
