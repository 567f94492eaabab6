"""Streams: batches of samples that do not fit in memory, from any iterator of numpy arrays.

An iterable that starts anew (a list, a grain DataLoader, an object with `__iter__`) is passed over once
an epoch. A plain iterator (a generator) goes on from epoch to epoch, each of `steps_per_epoch` steps.
Batches of any sizes are cut to what a step takes, in the order in which they come: whoever wants them
shuffled shuffles them. The host holds a batch, a chunk of steps, and what the device works on; where
layers keep statistics also the first 8192 samples, on which these are estimated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jtssm import checks
from jtssm.arrays import Array, Tree, crc
from jtssm.data.dicts import as_pair
from jtssm.protocol.method import Method
from jtssm.sharding.agreement import ending_all
from jtssm.sharding.distributed import ProcessBatches, put_rows, told_by_all
from jtssm.sharding.placement import batch_sharding
from jtssm.train.batches import CHUNK, CHUNK_SAMPLES
from jtssm.train.divergence import Guard, Outcome
from jtssm.train.feed import SEEN, Feed, shares_of
from jtssm.train.record import Document
from jtssm.train.stream_batches import is_pair
from jtssm.train.stream_reader import Reader

CHUNK_BYTES = 2**27  # most of a chunk's samples, unless one step takes more


def is_stream(train: object) -> bool:
    """Whether these are batches, not a pair (x, y) of arrays."""
    if isinstance(train, (tuple, list)) and not isinstance(train, ProcessBatches):
        return bool(train) and all(is_pair(as_pair(batch)) for batch in train)
    array = hasattr(train, "shape") or isinstance(train, (str, bytes, Mapping))
    return isinstance(train, Iterable) and not array


def check_streams(method: Method, train: object, steps_per_epoch: int | None) -> None:
    """The method takes samples as they come, and all processes as many.

    Raises:
      ValueError: it keeps all samples; or batches of each process, and epochs that end where a pass does.
    """
    if method.resident:
        raise ValueError(
            f"train: expected arrays (x, y): {method.name} keeps all samples; got an iterator"
        )
    if isinstance(train, ProcessBatches) and steps_per_epoch is None:
        raise ValueError(
            "steps_per_epoch: expected a number of steps with ProcessBatches, whose passes need not be "
            "equally long; got None"
        )


class Stream(Feed[int]):
    """Epochs of a method whose samples come in batches.

    An epoch is a pass, or `steps_per_epoch` steps. What a pass leaves over is left out where it does not
    fill a minibatch, and begins the next epoch where it does not fill a round, or the steps are counted.

    Args:
      batches: any iterable of pairs (x [samples, ...], y [samples, ...]), the same in every process; or
        `ProcessBatches`.
      steps_per_epoch: None: a pass over what starts anew.
      placed: whether checkpoints keep the place in the stream.

    Raises:
      ValueError: an iterator without `steps_per_epoch`, no samples, or a bad first batch.
    """

    x: Tree
    y: np.ndarray

    def __init__(
        self,
        method: Method,
        batches: Iterable | ProcessBatches,
        steps_per_epoch: int | None = None,
        placed: bool = False,
    ):
        if steps_per_epoch is not None:
            checks.count(steps_per_epoch=steps_per_epoch)
        self.method, self.steps_per_epoch = method, steps_per_epoch
        self.shared = isinstance(batches, ProcessBatches)
        batches = batches.batches if isinstance(batches, ProcessBatches) else batches
        self.shape: tuple[int, ...] = method.batch_shape or ()
        self.shares = shares_of(batch_sharding(method), self.shape, self.shared)
        self.size = self.shares.size
        self.sharding = batch_sharding(method, stacked=True)
        with ending_all():
            self._reader = Reader(method, batches, steps_per_epoch is not None, placed)
        self.x, self.y = self._reader.first
        self._check_processes()
        self._most = max(1, min(CHUNK, CHUNK_SAMPLES // self.size, self._steps_in(CHUNK_BYTES)))
        estimated = method.network.estimated
        self.at_hand = self._reader.ahead(SEEN // self.shares.num)[0] if estimated else self.x
        self._epoch = self._done = 0  # epochs and steps
        self._begun = 0  # passes of the stream when the epoch began
        self._ends = {0: 0}  # the steps done at the end of each epoch
        self._passes = 0  # up to the next line of the history
        self._due = 0  # steps up to it, where they are known
        self._place = self._reader.place()
        self._midway = False

    def _steps_in(self, num_bytes: int) -> int:
        return num_bytes // (self.size * sum(a.nbytes for a in jax.tree.leaves((self.x, self.y))))

    def _check_processes(self) -> None:
        """The first batches of all processes are alike; not of shares, the very same."""
        arrays = jax.tree.leaves(self._reader.first)
        first = [f"{a.dtype} of {a.shape[1:]}" for a in arrays]
        said = told_by_all([first, [] if self.shared else [crc([a]) for a in arrays]])
        if any(other != said[0] for other in said):
            raise ValueError(
                f"train: expected the same batches in each process, or ProcessBatches of alike samples; "
                f"got others in the {len(said)} processes, here {first}"
            )

    def steps(self, epochs: int) -> int | None:
        """Steps that so many epochs make; None: that is not known before they are done."""
        if self.steps_per_epoch is not None:
            return epochs * self.steps_per_epoch
        return self._ends.get(epochs)

    def order(self) -> Document:
        """Where the run and the streams of all processes stand: JSON holds it."""
        places = told_by_all(self._place) if self.shared else [self._place]
        return {
            "epochs": self._epoch,
            "begun": self._begun,
            "steps": self._done,
            "places": places,
        }

    def within(self, order: Document) -> Document:
        """The same within an epoch that began in `order`."""
        del order
        return self.order()

    def go_to(self, order: Document) -> None:
        """Go on after so many epochs: with a new pass, or with what comes next."""
        self._epoch, self._done = order["epochs"], order["steps"]
        if self._midway:
            if self.steps_per_epoch is None:
                self._reader.restart()
            self._place = self._reader.place()
            self._begun, self._midway = self._place["passes"], False

    def resume(self, order: Document) -> None:
        """Stand where another process stood, before any step."""
        places = order["places"]
        if self.shared and len(places) != jax.process_count():
            checks.warn(
                f"train: expected the {len(places)} processes of the checkpoint; got "
                f"{jax.process_count()}: each goes on with the start of its batches"
            )
            return
        self._reader.go_to(places[jax.process_index() if self.shared else 0])
        self._place, self._begun = self._reader.place(), order["begun"]

    def draw(self, epochs: int) -> Sequence[int]:
        """The numbers of the chunks in so many epochs; of passes of unknown length, no end of them."""
        self._passes = epochs
        if self.steps_per_epoch is None:
            return range(sys.maxsize)
        self._due = epochs * self.steps_per_epoch
        return range(-(-self._due // self._most))

    def run(self, guard: Guard, state: Tree, chunks: Sequence[int]) -> Iterator[Outcome]:
        """Take the steps of each chunk; ends after a divergence."""
        self._midway = True
        filled = self._chunks(chunks)
        chunk = next(filled, None)
        while chunk is not None:
            after = guard.dispatch(state, *chunk.samples)
            ahead = next(filled, None)  # is read while the device works
            outcome = guard.judge(state, after, *chunk.samples)
            if outcome.infos is not None:
                self._done, self._place = self._done + len(outcome.infos.loss), chunk.after
            yield outcome
            if outcome.divergence is not None:
                return
            state, chunk = outcome.state, ahead
        self._epoch, self._midway = self._epoch + self._passes, False
        self._place = self._reader.place()
        self._begun = self._place["passes"]
        self._ends[self._epoch] = self._done

    def _steps_of(self, number: int) -> int:
        """Steps of a chunk."""
        if self.steps_per_epoch is None:
            return self._most
        chunks = -(-self._due // self._most)
        return (number + 1) * self._due // chunks - number * self._due // chunks

    def _chunks(self, numbers: Sequence[int]) -> Iterator[_Chunk]:
        """Chunks on the devices, until the numbers or the passes end."""
        keep = len(self.shape) > 1 or self.steps_per_epoch is not None
        reader, last = self._reader, self._begun + self._passes
        for number in numbers:
            if self.steps_per_epoch is None and reader.passes == last:
                return
            x, y = reader.take(self._steps_of(number), self.size, keep)
            if len(y):
                yield _Chunk(self._put(x, y), reader.place())

    def _put(self, x: Tree, y: np.ndarray) -> tuple[Tree, Array]:
        steps = len(y) // self.size
        order = np.arange(len(y)).reshape(steps, self.size)[:, self.shares.mine]
        order = order.reshape(steps, *self.shape)
        return put_rows(x, order, self.sharding), put_rows(y, order, self.sharding)


class _Chunk(NamedTuple):
    """Steps that are taken together."""

    samples: tuple[Tree, Array]  # x and y on the devices
    after: Document  # where the stream stands behind them
