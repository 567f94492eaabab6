"""How samples reach a method: minibatches or rounds in chunks, or all of them in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd

import numpy as np

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import num_samples
from jtssm.protocol.method import Method
from jtssm.sharding.distributed import put_rows
from jtssm.sharding.placement import batch_sharding, num_splits
from jtssm.train.divergence import Guard, Outcome
from jtssm.train.feed import Feed, shares_of
from jtssm.train.record import Document

CHUNK = 50  # most steps a dispatch
CHUNK_SAMPLES = 2**14  # most samples a dispatch, unless one step takes more


class Minibatches(Feed[np.ndarray]):
    """Epochs of a method that takes minibatches: chunks of steps, each one dispatch.

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

    def _order(self, epochs: int) -> np.ndarray:
        """[steps, samples of a step]: every epoch in a new order."""
        orders = [self.rng.permutation(self.num) for _ in range(epochs)]
        if not self.straddles:
            used = self.steps(1) * self.size
            return np.concatenate([order[:used] for order in orders]).reshape(-1, self.size)
        order = np.concatenate([self.left, *orders])
        used = len(order) // self.size * self.size
        self.left = order[used:]
        return order[:used].reshape(-1, self.size)

    def order(self) -> Document:
        """What decides the order of samples from here on; JSON holds it."""
        return {"rng": self.rng.bit_generator.state, "left": self.left.tolist()}

    def go_to(self, order: Document) -> None:
        """Go on with the order of samples as it was."""
        self.rng.bit_generator.state = order["rng"]
        self.left = np.asarray(order["left"], int)

    def draw(self, epochs: int) -> list[np.ndarray]:
        """Chunks of steps on every sample `epochs` times, each time in a new order."""
        order = self._order(epochs)
        if not len(order):  # the next round is not full yet
            return []
        most = max(1, min(CHUNK, CHUNK_SAMPLES // self.size))
        return np.array_split(order, -(-len(order) // most))

    def run(self, guard: Guard, state: Tree, chunks: Sequence[np.ndarray]) -> Iterator[Outcome]:
        """Take the steps of each chunk; ends after a divergence."""
        if not chunks:
            return
        chunk = self._chunk(chunks[0])
        for following in [*chunks[1:], None]:
            after = guard.dispatch(state, *chunk)
            # the next chunk is gathered on the host while the device works
            ahead = None if following is None else self._chunk(following)
            outcome = guard.judge(state, after, *chunk)
            yield outcome
            if outcome.divergence is not None or ahead is None:
                return
            state, chunk = outcome.state, ahead

    def _chunk(self, rows: np.ndarray) -> tuple[Tree, Array]:
        rows = rows[:, self.shares.mine].reshape(len(rows), *self.shape)
        return put_rows(self.x, rows, self.sharding), put_rows(self.y, rows, self.sharding)


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

    def draw(self, epochs: int) -> list[int]:
        """That many steps on all samples, in one dispatch."""
        return [epochs]

    def run(self, guard: Guard, state: Tree, chunks: Sequence[int]) -> Iterator[Outcome]:
        """Take the steps of each chunk; ends after a divergence."""
        x, y = self.chunk
        for times in chunks:
            outcome = guard.judge(state, guard.dispatch(state, x, y, times), x, y)
            yield outcome
            if outcome.divergence is not None:
                return
            state = outcome.state
