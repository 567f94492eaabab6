"""What feeds a method: the interface of its kinds, and how their samples lie over processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Generic, TypeVar

import numpy as np
from jax.sharding import NamedSharding

from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import num_samples
from jtssm.protocol.method import Method
from jtssm.sharding.distributed import ProcessSamples, Shares, check_shares, put_rows, shares, whole
from jtssm.sharding.placement import batch_sharding, num_splits, samples_sharding
from jtssm.train.divergence import Guard, Outcome
from jtssm.train.record import Document

SEEN = 8192  # most training samples that statistics are estimated on


Chunk = TypeVar("Chunk")  # what the steps of one dispatch are known by


class Feed(ABC, Generic[Chunk]):
    """Samples for the steps between two lines of the history, chunk by chunk.

    A chunk is what the device does in one dispatch. `draw` says which there are up to the next line, and
    `run` takes their steps. In between `order` is what another process needs to draw the same chunks:
    what JSON holds. The defaults are those of samples that lie in one order and stay there.
    """

    x: Tree  # samples as `init` takes them, or of a stream one of them
    y: Array | np.ndarray
    at_hand: Tree  # inputs on this host that statistics are estimated on
    shared: bool  # whether each process holds samples of its own

    @abstractmethod
    def steps(self, epochs: int) -> int | None:
        """Steps that so many epochs make; None: that is not known before they are done."""

    @abstractmethod
    def draw(self, epochs: int) -> Sequence[Chunk]:
        """The chunks of so many epochs, from where the feed stands."""

    @abstractmethod
    def run(self, guard: Guard, state: Tree, chunks: Sequence[Chunk]) -> Iterator[Outcome]:
        """Take the steps of each of these chunks, the rest of those drawn; ends after a divergence."""

    def order(self) -> Document:
        """What decides which samples come from here on, at a line."""
        return {}

    def within(self, order: Document) -> Document:
        """The same between two chunks of what was drawn in `order`; every process must ask.

        By default chunks that are done are drawn again, and skipped.
        """
        return order

    def go_to(self, order: Document) -> None:
        """Draw the next chunks in this order: before them all, or back after a divergence."""
        del order

    def resume(self, order: Document) -> None:
        """Stand where another process stood, before any step; `go_to` follows."""
        del order

    def seen(self, method: Method) -> Tree:
        """Training samples that statistics are estimated on, the same every time."""
        return fixed(method, self.at_hand, self.shared)


def part(whole: int, parts: int, i: int) -> int:
    """The size of part i of a whole that is split evenly, the larger parts first."""
    size, larger = divmod(whole, parts)
    return size + (i < larger)


def shares_of(sharding: NamedSharding | None, shape: Sequence[int], shared: bool) -> Shares:
    """The shares of the processes in a step's samples; one where all of them hold everything."""
    return shares(sharding, shape) if shared else whole(prod(shape))


def check_shared(method: Method, samples: ProcessSamples, check: Callable) -> int:
    """The shares of all processes fit the method and each other; returns a checksum of all of them."""
    shape = method.batch_shape or (num_splits(method),)
    return check_shares(shares(batch_sharding(method), shape).owners, samples, check)


def fixed(method: Method, x: Tree, shared: bool) -> Tree:
    """Samples [samples, ...] of all processes, drawn once, split over pc."""
    splits, sharding = num_splits(method), samples_sharding(method)
    num = shares_of(sharding, (splits,), shared).num
    unit = splits // num
    here = min(num_samples(x), SEEN // num) // unit * unit
    rows = np.random.default_rng(0).permutation(num_samples(x))[:here]
    return put_rows(x, rows[shares_of(sharding, (here * num,), shared).mine], sharding)
