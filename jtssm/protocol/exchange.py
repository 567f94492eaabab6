"""How the pieces of a network meet: the `Exchange`, by index on one device, by collectives on a mesh.

A method by pieces is written once: its functions take an exchange as their first argument and never
index a neighbour. What they hand from one call to the next is *carried*: one tree a piece, a tuple of
trees on one device and rows of a sharded array on a mesh, which nothing but the exchange looks into.
Leaves may have any dtype of numbers (float32 states, int32 ids, a bool mask side by side); they keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import jax
from jax import lax

from jtssm.arrays import Array, Tree
from jtssm.nn.ops import PLAIN, Products

Carried = Tree  # one tree a piece: a tuple of them on one device, sharded rows on a mesh


class Kind(StrEnum):
    """What a result of a piece's work is, and so how it lies on a mesh."""

    WEIGHTS = "weights"  # parameters of the piece and what goes with them, such as optimizer states
    # weights of the workers here, leaves [N here, ...], which differ along pc; within a step alone
    COPIES = "copies"
    SAMPLES = "samples"  # leaves [samples, ...], split over pc
    LINE = "line"  # leaves [ticks, samples, ...], split over pc: a ring buffer
    # of the parameters, as they are; behind them any scalars that go with them
    GRADIENTS = "gradients"
    # the same of the samples here alone, which differ along pc
    PARTIAL_GRADIENTS = "partial_gradients"
    SUMS = "sums"  # numbers, the same tree from every piece, each summed over the samples at hand

    @classmethod
    def _missing_(cls, value: object) -> Kind:
        names = ", ".join(repr(kind.value) for kind in cls)
        raise ValueError(f"kind: expected one of {names}; got {value!r}")

    @property
    def leading(self) -> int:
        """How many first dimensions the leaves of a tree share."""
        return {Kind.SAMPLES: 1, Kind.LINE: 2}.get(self, 0)

    @property
    def trained(self) -> bool:
        """Whether it is of weights: of leaves that share no dimension."""
        return self in (Kind.WEIGHTS, Kind.COPIES, Kind.PARTIAL_GRADIENTS)


class Ring(Protocol):
    """Lines as ring buffers: each piece keeps what it will want again, for as many ticks as it needs."""

    def recall(self, line: Carried, tick: Array) -> Carried:
        """What was stored as many ticks ago as the line of a piece is long.

        Args:
          line: leaves [ticks, samples, ...]; the number of ticks may differ from piece to piece.
          tick: [] int32, the same everywhere.

        Returns:
          Leaves [samples, ...].
        """
        ...

    def store(self, line: Carried, entry: Carried, tick: Array) -> Carried:
        """The line with the entry, leaves [samples, ...], in the place of what this tick recalls."""
        ...


class SampleSplit(Protocol):
    """How the samples of a batch are split over devices (pc), and sums over all of them."""

    @property
    def num_splits(self) -> int:
        """Over how many devices."""
        ...

    def own(self, a: Array) -> Array:
        """Of an array [all samples, ...], the same everywhere, the rows that live here."""
        ...

    def sum(self, tree: Tree) -> Tree:
        """Over the devices that split the samples: of arrays inside `Exchange.each`, or not carried."""
        ...

    def apart(self, params: Tree) -> Tree:
        """Parameters whose gradient is of the samples here: it is not summed over the devices."""
        ...

    def total(self, sums: Carried) -> Tree:
        """Outside `Exchange.each`: carried "sums" as one tree of sums over all pieces and samples."""
        ...


class LayerSplit(Protocol):
    """How the layers of a piece are split over devices (pr)."""

    def own(self, l: int, params: list[Tree]) -> list[Tree]:
        """Of all parameters of piece l, one tree a layer, the part that this device stores."""
        ...

    def joined(self, l: int, params: list[Tree], frozen: Sequence[bool]) -> list[Tree]:
        """The parameters of piece l that a gradient is taken of: as they are.

        The devices that split the samples may sum the gradients of what is returned in fewer messages.
        frozen: of each array, whether nobody reads its gradient; none: all are read.
        """
        ...

    def products(self, i: int, samples: int) -> Products:
        """The products of layer i where `samples` samples are here at the entry of its piece."""
        ...


class Exchange(Protocol):
    """How the pieces on this device meet the others."""

    @property
    def ring(self) -> Ring:
        """Ring buffers, for the streaming schedules."""
        ...

    @property
    def samples(self) -> SampleSplit:
        """The split of the samples, and sums over it."""
        ...

    @property
    def layers(self) -> LayerSplit:
        """The split of the layers."""
        ...

    def each(
        self,
        fn: Callable[..., tuple[Tree, ...]],
        *carried: Carried,
        kinds: Sequence[str],
        batched: bool = False,
    ) -> tuple[Carried, ...]:
        """Every piece's work on its own trees.

        Args:
          fn: (l, *trees) -> a tuple of trees, one for each of `kinds`. It is traced for every piece l,
            a Python integer, with the piece's tree of each `carried`; samples are those that live here.
            Reductions and gathers over pc and pr may stand in it (`samples.sum`, the layers' products),
            nothing that crosses pieces.
          *carried: what the trees are taken from.
          kinds: of each result, a `Kind` or its name. Trees of different pieces may differ in structure
            and shapes, "sums" may not; "weights" keep the structure of those that are carried.
          batched: fn does the same for all pieces that the method declares alike. On a mesh those that
            lie side by side run as one batch under the first one's l.

        Returns:
          One carried a kind.
        """
        ...

    def renew(
        self,
        fn: Callable[..., Tree],
        weights: Carried,
        *carried: Carried,
        where: Array,
        after: Sequence[Carried] = (),
    ) -> Carried:
        """The weights of the pieces that have a gradient, anew; the others' stay as they are.

        Apart from `each`, so that weights change in place: what is made of the old ones is there before.

        Args:
          fn: (l, weights of the piece, *trees) -> its new weights; no collective may stand in it.
          weights: of all pieces.
          *carried: what the trees are taken from.
          where: [n] bool, the same everywhere: which pieces.
          after: what else is made of the old weights.
        """
        ...

    def to_next(self, sent: Carried) -> Carried:
        """What piece l sent is what piece l + 1 receives; the first piece receives ()."""
        ...

    def to_previous(self, sent: Carried) -> Carried:
        """What piece l sent is what piece l - 1 receives; the last piece receives ()."""
        ...

    def swap(self, ahead: Carried, behind: Carried) -> tuple[Carried, Carried]:
        """(`to_next` of ahead, `to_previous` of behind), which may travel at once."""
        ...

    def chain(
        self, fn: Callable[..., Tree], *carried: Carried, x: Tree, keep: bool = False
    ) -> tuple[Tree, ...]:
        """One pass through all pieces, each on what the one before gave.

        Args:
          fn: (l, *trees, p) -> f, what piece l makes of p: trees of leaves [samples, ...], of any
            dtypes, which may differ in structure from piece to piece.
          *carried: what the trees are taken from.
          x: what the first piece takes, leaves [samples here, ...].
          keep: whether to return what passed.

        Returns:
          (f of the last piece,), the same on all devices of "subnet"; with `keep` also what every
          piece took and what it gave, both carried "samples".
        """
        ...


Trees = tuple[Tree, ...]  # what is carried on one device


class OneRing:
    """The lines of pieces that share a device."""

    def recall(self, line: Trees, tick: Array) -> Trees:
        """See `Ring`."""
        return jax.tree.map(lambda a: a[tick % a.shape[0]], line)

    def store(self, line: Trees, entry: Trees, tick: Array) -> Trees:
        """See `Ring`."""
        return jax.tree.map(lambda a, e: a.at[tick % a.shape[0]].set(e), line, entry)


class AllSamples:
    """All samples live here."""

    num_splits = 1

    def own(self, a: Array) -> Array:
        """All of them."""
        return a

    def sum(self, tree: Tree) -> Tree:
        """The arrays themselves."""
        return tree

    def apart(self, params: Tree) -> Tree:
        """They themselves."""
        return params

    def total(self, sums: Trees) -> Tree:
        """The sum over the pieces."""
        return jax.tree.map(lambda *a: sum(a), *sums)


class WholeLayers:
    """Layers are not split."""

    def own(self, l: int, params: list[Tree]) -> list[Tree]:
        """All of them."""
        return params

    def joined(self, l: int, params: list[Tree], frozen: Sequence[bool]) -> list[Tree]:
        """Nothing is summed."""
        return params

    def products(self, i: int, samples: int) -> Products:
        """Plain ones."""
        return PLAIN


@dataclass(frozen=True)
class ByIndex:
    """The `Exchange` of pieces that share a device."""

    num: int  # of pieces
    samples: SampleSplit = field(default_factory=AllSamples)
    layers: LayerSplit = field(default_factory=WholeLayers)
    ring: Ring = field(default_factory=OneRing)

    def each(
        self,
        fn: Callable[..., tuple[Tree, ...]],
        *carried: Trees,
        kinds: Sequence[str],
        batched: bool = False,
    ) -> tuple[Trees, ...]:
        """Unrolled, `batched` or not: a batch would copy the pieces' weights."""
        results = [fn(l, *(trees[l] for trees in carried)) for l in range(self.num)]
        return tuple(tuple(result[k] for result in results) for k in range(len(kinds)))

    def renew(
        self,
        fn: Callable[..., Tree],
        weights: Trees,
        *carried: Trees,
        where: Array,
        after: Sequence[Trees] = (),
    ) -> Trees:
        """By a `cond` for each piece; a select took 6 to 15 % more of a step (n = 2, 512 wide)."""

        def of(l: int) -> Tree:
            trees = [each[l] for each in carried]
            live = not_before(where[l], [each[l] for each in after])
            anew = lambda own, trees: fn(l, own, *trees)
            return lax.cond(live, anew, lambda own, trees: own, weights[l], trees)

        return tuple(of(l) for l in range(self.num))

    def to_next(self, sent: Trees) -> Trees:
        """By index."""
        return ((), *sent[:-1])

    def to_previous(self, sent: Trees) -> Trees:
        """By index."""
        return (*sent[1:], ())

    def swap(self, ahead: Trees, behind: Trees) -> tuple[Trees, Trees]:
        """By index."""
        return self.to_next(ahead), self.to_previous(behind)

    def chain(
        self, fn: Callable[..., Tree], *carried: Trees, x: Tree, keep: bool = False
    ) -> tuple[Tree, ...]:
        """One piece after the other."""
        passed = [x]
        for l in range(self.num):
            passed.append(fn(l, *(trees[l] for trees in carried), passed[-1]))
        return (passed[-1], tuple(passed[:-1]), tuple(passed[1:])) if keep else (passed[-1],)


def not_before(live: Array, made: Tree) -> Array:
    """The same flag, which is known no earlier than what is made.

    Else XLA for CPUs sees no order between those who read the old weights and what changes them, and
    copies the weights first: 1.4 times the step of 7 pieces 1 024 wide. It drops barriers.
    """
    for a in jax.tree.leaves(made):
        first = a.reshape(-1)[:1].sum()
        live &= (first == first) | (first != first)
    return live


def by_index(
    num: int, samples: SampleSplit | None = None, layers: LayerSplit | None = None
) -> Exchange:
    """The exchange of `num` pieces that share one device: neighbours are reached by their index.

    Args:
      num: of pieces.
      samples: how the samples are split all the same; None: they are not.
      layers: how the layers are split all the same; None: they are not.
    """
    return ByIndex(num, samples or AllSamples(), layers or WholeLayers())
