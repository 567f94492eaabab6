"""Streams: batches of samples that do not fit in memory, from any iterator of numpy arrays.

An iterable that starts anew (a list, a grain DataLoader, an object with `__iter__`) is passed over once
an epoch. A plain iterator (a generator) goes on from epoch to epoch, each of `steps_per_epoch` steps.
Batches of any sizes are cut to what a step takes, in the order in which they come: whoever wants them
shuffled shuffles them. The host holds a batch, a chunk of steps, and what the device works on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import jax
import numpy as np

from jtssm import checks
from jtssm.divergence import Guard, Outcome
from jtssm.feeding import CHUNK, CHUNK_SAMPLES, SEEN
from jtssm.protocol import Method
from jtssm.sharding import batch_sharding, num_splits

CHUNK_BYTES = 2**27  # most of a chunk's samples, unless one step takes more

Pair = tuple[np.ndarray, np.ndarray]


def is_stream(train: Any) -> bool:
    """Whether these are batches, not a pair (x, y) of arrays."""
    if isinstance(train, (tuple, list)):
        return bool(train) and all(map(_is_pair, train))
    array = hasattr(train, "shape") or isinstance(train, (str, bytes, Mapping))
    return isinstance(train, Iterable) and not array


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2 and all(map(_is_array, batch))


def _is_array(a: Any) -> bool:
    return hasattr(a, "__array__") and hasattr(a, "shape")


def check_streams(method: Method, checkpoint: Any) -> None:
    """The method takes samples as they come, and nothing is asked that needs their place in the stream.

    Raises:
      ValueError: it keeps all samples, several processes run it, or checkpoints are wanted.
    """
    if method.resident:
        raise ValueError(
            f"train: expected arrays (x, y): {method.name} keeps all samples; got an iterator"
        )
    if jax.process_count() > 1:
        raise ValueError(
            f"train: expected arrays (x, y) with several processes; got an iterator in each of "
            f"{jax.process_count()}"
        )
    if checkpoint is not None:
        raise ValueError(
            f"checkpoint: expected None with an iterator, whose place no checkpoint keeps; got "
            f"{checkpoint!r}"
        )


class Stream:
    """Epochs of a method whose samples come in batches; the interface is that of `feeding.Minibatches`.

    An epoch is a pass, or `steps_per_epoch` steps. What a pass leaves over is left out where it does not
    fill a minibatch, and begins the next epoch where it does not fill a round, or the steps are counted.

    Args:
      batches: any iterable of pairs (x [samples, ...], y [samples, ...]).
      steps_per_epoch: None: a pass over what starts anew.

    Raises:
      ValueError: an iterator without `steps_per_epoch`, no samples, or a bad first batch.
    """

    def __init__(self, method: Method, batches: Iterable, steps_per_epoch: int | None = None):
        if steps_per_epoch is not None:
            checks.count(steps_per_epoch=steps_per_epoch)
        self.method, self.steps_per_epoch = method, steps_per_epoch
        self.shape: tuple[int, ...] = method.batch_shape or ()
        self.size = prod(self.shape)
        self.sharding = batch_sharding(method, stacked=True)
        self._rows = Rows(method, batches, counted=steps_per_epoch is not None)
        self.x, self.y = self._rows.first
        self._most = max(1, min(CHUNK, CHUNK_SAMPLES // self.size, self._steps_in(CHUNK_BYTES)))
        self._newest = self.x[:0]
        self._passes = 0  # over the stream, up to the next line of the history
        self._epoch, self._ends = 0, {0: 0}  # epochs done; the steps done at the end of each
        self._midway = False

    def _steps_in(self, num_bytes: int) -> int:
        return num_bytes // (self.size * (self.x.nbytes + self.y.nbytes))

    def steps(self, epochs: int) -> int | None:
        """Steps that so many epochs make; None: that is not known before they are done."""
        if self.steps_per_epoch is not None:
            return epochs * self.steps_per_epoch
        return self._ends.get(epochs)

    def order(self) -> dict[str, Any]:
        """Where the stream stands: JSON holds it."""
        return {"epochs": self._epoch}

    def go_to(self, order: Mapping[str, Any]) -> None:
        """Go on after so many epochs: with a new pass, or with what comes next."""
        if self._midway and self.steps_per_epoch is None:
            self._rows.restart()
        self._epoch, self._midway = order["epochs"], False

    def seen(self, method: Method) -> np.ndarray:
        """Training samples that statistics are estimated on: the newest."""
        splits = num_splits(method)
        return self._newest[: len(self._newest) // splits * splits]

    def draw(self, epochs: int) -> Sequence[int]:
        """The steps of each chunk in so many epochs; of passes of unknown length, no end of chunks."""
        self._passes = epochs
        if self.steps_per_epoch is None:
            return range(sys.maxsize)
        steps = epochs * self.steps_per_epoch
        chunks = -(-steps // self._most)
        return [(i + 1) * steps // chunks - i * steps // chunks for i in range(chunks)]

    def run(self, guard: Guard, state: Any, chunks: Sequence[int]) -> Iterator[Outcome]:
        """Take the steps of each chunk; ends after a divergence."""
        self._midway, done = True, self._ends.get(self._epoch, 0)
        filled = self._chunks(chunks)
        chunk = next(filled, None)
        while chunk is not None:
            after = guard.dispatch(state, *chunk)
            ahead = next(filled, None)  # is read while the device works
            outcome = guard.judge(state, after, *chunk)
            yield outcome
            if outcome.divergence is not None:
                return
            done += len(outcome.infos.loss)
            state, chunk = outcome.state, ahead
        self._epoch, self._midway = self._epoch + self._passes, False
        self._ends[self._epoch] = done

    def _chunks(self, sizes: Sequence[int]) -> Iterator[tuple]:
        """Chunks on the devices, until the sizes or the passes end."""
        ended, keep = 0, len(self.shape) > 1 or self.steps_per_epoch is not None
        for size in sizes:
            most = self._most if self.steps_per_epoch is None else size
            x, y = self._rows.take(most, self.size, keep)
            if len(x):
                yield self._put(x, y)
            ended += self._rows.ended
            if self.steps_per_epoch is None and ended == self._passes:
                return

    def _put(self, x: np.ndarray, y: np.ndarray) -> tuple:
        if self.method.parts.network.estimated:
            self._newest = np.concatenate([self._newest, x[-SEEN:]])[-SEEN:]
        lead = (len(x) // self.size, *self.shape)
        return tuple(jax.device_put(a.reshape(*lead, *a.shape[1:]), self.sharding) for a in (x, y))


class Rows:
    """The samples of a stream one after the other; each batch is checked as it comes.

    Args:
      counted: whether steps are counted: then a pass that ends is followed by another within an epoch.
    """

    def __init__(self, method: Method, batches: Iterable, counted: bool):
        self.method, self.batches, self.counted = method, batches, counted
        self._open: Iterator | None = iter(batches)
        self.again = self._open is not batches  # whether `iter` starts anew
        if not self.again and not counted:
            raise ValueError(
                f"steps_per_epoch: expected a number of steps with an iterator, which does not say where "
                f"an epoch ends; got None with a {type(batches).__name__}"
            )
        self.ended = False  # whether `take` came to the end of a pass
        self._batch = self._passed = 0  # batches and samples so far in this pass
        self._like: Pair | None = None
        self._rest = self._next() or self._none()
        self.first = self._like = self._rest[0][:1].copy(), self._rest[1][:1].copy()

    def restart(self) -> None:
        """Drop what is at hand: the next pass begins."""
        if self.again:
            self._open, self._batch, self._passed = None, 0, 0
            self._rest = self.first[0][:0], self.first[1][:0]

    def take(self, steps: int, size: int, keep: bool) -> Pair:
        """x and y of at most `steps` times `size` samples, whole steps; fewer where a pass ends.

        keep: what a pass leaves over stands before the next one.
        """
        x, y = (np.empty((steps * size, *a.shape[1:]), a.dtype) for a in self.first)
        have, self.ended = 0, False
        while have < len(x) and self._fetched(size, keep):
            num = min(len(self._rest[0]), len(x) - have)
            x[have : have + num], y[have : have + num] = (a[:num] for a in self._rest)
            self._rest = self._rest[0][num:], self._rest[1][num:]
            have += num
        used = have // size * size
        if self.ended:
            over = slice(used, have if keep else used)
            self._rest = x[over].copy(), y[over].copy()
        return x[:used], y[:used]

    def _fetched(self, size: int, keep: bool) -> bool:
        """Whether samples are at hand; the next batch is read where none are left."""
        if len(self._rest[0]):
            return True
        batch = self._next()
        if batch is None and self.counted:
            batch = self._next_pass()
        if batch is None:
            self._check_pass(1 if keep else size)
            self._open, self._batch, self._passed, self.ended = None, 0, 0, True
            return False
        self._rest = batch
        return True

    def _next_pass(self) -> Pair:
        """The first batch of another pass, within an epoch."""
        self._check_pass(1)
        if not self.again:
            raise ValueError(
                f"train: expected an iterator that goes on for all epochs of steps_per_epoch steps; it "
                f"ended after {self._batch} batches: {self._passed} samples"
            )
        self._open, self._batch, self._passed = None, 0, 0
        return self._next() or self._none()

    def _check_pass(self, least: int) -> None:
        if self._passed < least:
            raise ValueError(
                f"train: expected at least {least} samples in a pass, for a step of {self.method.name}; "
                f"got {self._passed}"
            )

    def _none(self) -> Pair:
        raise ValueError("train: expected batches of samples (x, y); got an iterator without any")

    def _next(self) -> Pair | None:
        """The next batch that is not empty; None at the end of a pass."""
        self._open = iter(self.batches) if self._open is None else self._open
        for batch in self._open:
            x, y = self._checked(batch)
            self._batch += 1
            if len(x):
                self._passed += len(x)
                return x, y
        return None

    def _checked(self, batch: Any) -> Pair:
        name = f"train, batch {self._batch}"
        if not _is_pair(batch):
            inside = f" of {[type(a).__name__ for a in batch]}" if isinstance(batch, tuple) else ""
            raise ValueError(
                f"{name}: expected a pair (x, y) of numpy arrays; got {type(batch).__name__}{inside}"
            )
        x, y = (np.asarray(a) for a in batch)
        if strange := [str(a.dtype) for a in (x, y) if a.dtype.kind in "OSUmM"]:
            raise ValueError(f"{name}: expected arrays of numbers; got one of {strange[0]}")
        if x.shape[:1] == y.shape[:1] == (0,):
            return x, y
        try:
            self.method.parts.check(x, y, "values")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        for what, a, like in zip("xy", (x, y), self._like or (x, y), strict=True):
            if (a.dtype, a.shape[1:]) != (like.dtype, like.shape[1:]):
                raise ValueError(
                    f"{name}: {what}: expected {like.dtype} samples of shape {like.shape[1:]}, as in the "
                    f"first batch; got {a.dtype} of {a.shape[1:]}"
                )
        return x, y
