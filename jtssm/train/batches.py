"""How samples reach a method: minibatches or rounds in chunks, or all of them in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import gcd

import numpy as np

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import num_samples
from jtssm.protocol.method import Method
from jtssm.sharding.distributed import put_rows
from jtssm.sharding.placement import batch_sharding, num_splits
from jtssm.train.divergence import Guard, Outcome
from jtssm.train.feed import Feed, part, shares_of
from jtssm.train.record import Document

CHUNK = 50  # most steps a dispatch
CHUNK_SAMPLES = 2**14  # most samples a dispatch, unless one step takes more
CHUNK_RESIDENT = 2**16  # most steps a dispatch of a method that keeps all samples in place


class Minibatches(Feed[int]):
    """Epochs of a method that takes minibatches: chunks of steps, each one dispatch, by number.

    An epoch's order is drawn when its first sample is due, so that memory does not grow with epochs.

    What does not fill a last minibatch is left out of an epoch; a round of local steps instead goes on
    with the first samples of the next epoch.
    """

    x: Tree
    y: np.ndarray

    def __init__(
        self,
        method: Method,
        x: Tree,
        y: np.ndarray,
        rng: np.random.Generator,
        epochs: int,
        shared: bool = False,
    ):
        self.x, self.y, self.rng = x, y, rng
        self.at_hand, self.shared = x, shared  # of the samples those on this host
        self.num = num_samples(x)
        self.shape: tuple[int, ...] = method.batch_shape or ()
        self.shares = shares_of(batch_sharding(method), self.shape, shared)
        self.size = self.shares.size  # samples that a step takes of those at hand
        self.straddles = len(self.shape) > 1
        self.left = np.zeros(0, int)  # samples of this epoch for a round that ends in the next
        if not self.steps(epochs):
            over = f" times {epochs} epochs" if self.straddles else ""
            raise ValueError(
                f"train: expected at least {self.size} samples, one step of {method.name}; got "
                f"{self.num}{over}"
            )
        self.sharding = batch_sharding(method, stacked=True)

    def steps(self, epochs: int) -> int:
        """Steps that so many epochs make."""
        if self.straddles:
            return epochs * self.num // self.size
        return epochs * (self.num // self.size)

    def _epoch(self) -> np.ndarray:
        """The samples of an epoch, in a new order."""
        used = self.num if self.straddles else self.steps(1) * self.size
        return self.rng.permutation(self.num)[:used]

    def order(self) -> Document:
        """What decides the order of samples from here on; JSON holds it."""
        return {"rng": self.rng.bit_generator.state, "left": self.left.tolist()}

    def go_to(self, order: Document) -> None:
        """Go on with the order of samples as it was."""
        self.rng.bit_generator.state = order["rng"]
        self.left = np.asarray(order["left"], int)

    def draw(self, epochs: int) -> Sequence[int]:
        """Chunks of steps on every sample `epochs` times, each time in a new order."""
        samples = self.steps(epochs) * self.size
        if self.straddles:
            samples = len(self.left) + epochs * self.num
        self.drawn = Drawn(self._epoch, epochs, self.left)
        self.due = samples // self.size  # steps; none where the next round is not full yet
        most = max(1, min(CHUNK, CHUNK_SAMPLES // self.size))
        self.chunks = -(-self.due // most)
        return range(self.chunks)

    def run(self, guard: Guard, state: Tree, chunks: Sequence[int]) -> Iterator[Outcome]:
        """Take the steps of each chunk; ends after a divergence."""
        filled = self._filled(chunks)
        chunk = next(filled, None)
        while chunk is not None:
            after = guard.dispatch(state, *chunk)
            ahead = next(filled, None)  # is gathered on the host while the device works
            outcome = guard.judge(state, after, *chunk)
            yield outcome
            if outcome.divergence is not None:
                return
            state, chunk = outcome.state, ahead
        self.left = self.drawn.rest()

    def _filled(self, chunks: Sequence[int]) -> Iterator[tuple[Array, Array]]:
        """The samples of chunks, behind those that are done: their order is drawn again."""
        done = self.chunks - len(chunks)
        for i in range(self.chunks):
            rows = self.drawn.take(part(self.due, self.chunks, i) * self.size)
            if i >= done:
                yield self._chunk(rows.reshape(-1, self.size))

    def _chunk(self, rows: np.ndarray) -> tuple[Tree, Array]:
        rows = rows[:, self.shares.mine].reshape(len(rows), *self.shape)
        return put_rows(self.x, rows, self.sharding), put_rows(self.y, rows, self.sharding)


class Drawn:
    """The samples of so many epochs in their order, of which no more is drawn than is due.

    Args:
      epoch: draws the order of one epoch.
      epochs: how many.
      left: samples that come before them.
    """

    def __init__(self, epoch: Callable[[], np.ndarray], epochs: int, left: np.ndarray):
        self._epoch, self._epochs, self._next = epoch, epochs, left

    def take(self, num: int) -> np.ndarray:
        """The next `num` samples."""
        parts, there = [self._next], len(self._next)
        while there < num:
            parts.append(self._epoch())
            self._epochs, there = self._epochs - 1, there + len(parts[-1])
        order = np.concatenate(parts)
        self._next = order[num:]
        return order[:num]

    def rest(self) -> np.ndarray:
        """All that was not taken, of the epochs that were not begun too."""
        parts = [self._next, *(self._epoch() for _ in range(self._epochs))]
        return np.concatenate(parts)


class Resident(Feed[int]):
    """Epochs of a method that keeps all samples in place: each is one step on all of them."""

    def __init__(
        self,
        method: Method,
        x: np.ndarray,
        y: np.ndarray,
        rng: np.random.Generator,
        epochs: int,
        shared: bool = False,
    ):
        del epochs
        size, what = method.program.batch.size, "batch_size"
        if size is None:
            size, what = num_splits(method), "pc"
        sharding = batch_sharding(method)
        num = shares_of(sharding, (num_splits(method),), shared).num
        unit = size // gcd(size, num)  # a whole number of minibatches, of all shares together
        kept = len(x) - len(x) % unit
        if 0 < kept < len(x):
            checks.warn(
                f"train: {len(x) - kept} of {len(x)} samples are left out: {method.name} needs a "
                f"multiple of {what}={unit}"
            )
        order = np.arange(len(x))
        if (
            method.program.batch.size is not None
        ):  # strata are drawn once; otherwise order is nothing
            order = rng.permutation(len(x))
        order = order[: kept or None]
        rows = order[shares_of(sharding, (len(order) * num,), shared).mine]
        self.at_hand, self.shared = x[order], shared
        stacked = batch_sharding(method, stacked=True)
        # init sees all samples: those of other processes are on devices only
        self.x, self.y = (put_rows(a, rows, sharding) if shared else a[rows] for a in (x, y))
        self.chunk = tuple(put_rows(a, rows[None], stacked) for a in (x, y))

    def steps(self, epochs: int) -> int:
        """An epoch is a step."""
        return epochs

    def draw(self, epochs: int) -> Sequence[int]:
        """That many steps on all samples, in one dispatch unless they are very many."""
        parts = -(-epochs // CHUNK_RESIDENT)
        return [part(epochs, parts, i) for i in range(parts)]

    def run(self, guard: Guard, state: Tree, chunks: Sequence[int]) -> Iterator[Outcome]:
        """Take the steps of each chunk; ends after a divergence."""
        x, y = self.chunk
        for times in chunks:
            outcome = guard.judge(state, guard.dispatch(state, x, y, times), x, y)
            yield outcome
            if outcome.divergence is not None:
                return
            state = outcome.state
