"""The samples of a stream one after the other, and where in the stream the next one stands.

A place is the batch of a pass, and the row in it, where the first sample stands that no step has taken
yet. To go there in another process the batches before it in its pass are read again and dropped; an
iterator that has `get_state` and `set_state` (grain's) is put there at once. `set_epoch` of the
iterable, where it has one, is told the number of each pass before it begins, from 0.

Other data are noticed by checksums: of the very first batch, of the batches of the pass before the place
where they are read again, of the batch in which the place lies, and of a list, which costs no reading,
of the whole pass before.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import numpy as np

from jtssm import checks
from jtssm.arrays import crc
from jtssm.protocol.method import Method
from jtssm.train.record import Document
from jtssm.train.samples import Pair
from jtssm.train.stream_batches import checked, copied, cut, joined


class _Batch(NamedTuple):
    """A batch of which samples are at hand."""

    place: Document  # where it begins
    size: int
    left: int  # samples that no step has taken
    crc: int  # of its samples


class Reader:
    """Samples in the order in which they come; each batch is checked as it comes.

    Args:
      batches: pairs (x [samples, ...], y [samples, ...]).
      counted: whether steps are counted: then a pass that ends is followed by another within an epoch.
      placed: whether places are asked for.

    Raises:
      ValueError: an iterator whose steps are not counted, no samples, or a bad first batch.
    """

    def __init__(self, method: Method, batches: Iterable, counted: bool, placed: bool = False):
        self.method, self.batches, self.counted, self.placed = method, batches, counted, placed
        self.passes = 0  # that have ended
        self.ended = False  # whether `take` came to the end of a pass
        self._at_hand: deque[_Batch] = deque()
        self._open: Iterator | None = None
        self._last: list[int] | None = None  # batches, samples and checksum of the pass before
        self._begin_pass()
        self.again = self._open is not batches  # whether `iter` starts anew
        if not self.again and not counted:
            raise ValueError(
                f"steps_per_epoch: expected a number of steps with an iterator, which does not say where "
                f"an epoch ends; got None with a {type(batches).__name__}"
            )
        self._like: Pair | None = None
        self._rest = self._next() or self._none()
        self._begins = self._at_hand[0].crc
        self.first = self._like = copied(self._rest, slice(1))

    def ahead(self, num: int) -> Pair:
        """x and y of the first samples at hand, `num` or all that the pass has: they are not taken."""
        batches, have = [self._rest], len(self._rest[1])
        while have < num and (batch := self._next()) is not None:
            batches.append(batch)
            have += len(batch[1])
        self._rest = jax.tree.map(lambda *a: np.concatenate(a), *batches)
        return copied(self._rest, slice(num))

    def restart(self) -> None:
        """Drop what is at hand: the next pass begins."""
        if self.again:
            self.passes += self._open is not None
            self._leave_pass()
            self._rest = cut(self._rest, slice(0))
            self._at_hand.clear()

    def take(self, steps: int, size: int, keep: bool) -> Pair:
        """x and y of at most `steps` times `size` samples, whole steps; fewer where a pass ends.

        keep: what a pass leaves over stands before the next one.
        """
        room = steps * size
        pair = jax.tree.map(lambda a: np.empty((room, *a.shape[1:]), a.dtype), self.first)
        have, self.ended = 0, False
        while have < room and self._fetched(size, keep):
            num = min(len(self._rest[1]), room - have)
            for a, rest in zip(jax.tree.leaves(pair), jax.tree.leaves(self._rest), strict=True):
                a[have : have + num] = rest[:num]
            self._rest = cut(self._rest, slice(num, None))
            have += num
        used = have // size * size
        if self.ended:
            self._rest = copied(pair, slice(used, have if keep else used))
        self._used(have if self.ended and not keep else used)
        return cut(pair, slice(used))

    def place(self) -> Document:
        """Where the first sample stands that was not taken; JSON holds it."""
        known = {"passes": self.passes, "first": self._begins, "last": self._last}
        if self._at_hand:
            place, size, left, crc = self._at_hand[0]
            return place | known | {"row": size - left, "next": crc}
        return self._here() | known | {"row": 0, "next": None}

    def go_to(self, place: Document) -> None:
        """Stand at a place, of this stream in another process.

        Warns:
          UserWarning: the batches there and before it are not those that they were.
        """
        same = place["first"] == self._begins and self._same_list(place)
        if self.again:
            self._leave_pass()
            self.passes = place["pass"]
            self._rest = cut(self._rest, slice(0))
            self._at_hand.clear()
            self._begin_pass()
        same &= self._set_state(place) or self._reread(place)
        same &= self._stand(place)
        self._last = place["last"]
        if not same:
            checks.warn(
                "train: expected the batches that were read before the checkpoint; got others: the run "
                "goes on with what comes, not as it would have"
            )
        while self.passes < place["passes"]:  # what earlier passes left over
            batch = self._next()
            if batch is None:
                self._end_pass()
            else:
                self._rest = joined(self._rest, batch)

    def _set_state(self, place: Document) -> bool:
        """Whether the iterator could be put there by its own state."""
        if place["iterator"] is None or not hasattr(self._open, "set_state"):
            return False
        self._open.set_state(_state_of(place["iterator"]))  # type: ignore[union-attr]
        self._batch, self._passed, self._crc = (place[name] for name in ("batch", "passed", "crc"))
        self._rest = cut(self._rest, slice(0))
        self._at_hand.clear()
        return True

    def _same_list(self, place: Document) -> bool:
        """Whether the batches of a list, all in memory, are those of the pass before."""
        if place["last"] is None or not isinstance(self.batches, Sequence):
            return True
        pairs = [checked(self.method, batch, self._batch, self._like) for batch in self.batches]
        chain = reduce(_chained, (crc(pair) for pair in pairs if len(pair[1])), 0)
        return [len(pairs), sum(len(y) for _, y in pairs), chain] == place["last"]

    def _stand(self, place: Document) -> bool:
        """Drop what was taken of the batch at a place; whether the batch is the one that it was."""
        if place["next"] is not None and not self._at_hand and (batch := self._next()) is not None:
            self._rest = joined(self._rest, batch)
        same = place["next"] in (None, self._at_hand[0].crc if self._at_hand else -1)
        self._drop(place["row"])
        return same

    def _reread(self, place: Document) -> bool:
        """Read up to there, and drop it; whether that was what it had been."""
        while self._batch < place["batch"] and (batch := self._next()) is not None:
            self._rest = joined(self._rest, batch)
            self._drop_before(place["batch"])
        self._drop_before(place["batch"])
        here = self._at_hand[0].place if self._at_hand else self._here()
        return all(here[name] == place[name] for name in ("batch", "passed", "crc"))

    def _drop_before(self, batch: int) -> None:
        while self._at_hand and self._at_hand[0].place["batch"] < batch:
            self._drop(self._at_hand[0].left)

    def _drop(self, num: int) -> None:
        """Samples that were taken in another process."""
        if num > len(self._rest[1]) and (batch := self._next()) is not None:
            self._rest = joined(self._rest, batch)
        num = min(num, len(self._rest[1]))
        self._rest = cut(self._rest, slice(num, None))
        self._used(num)

    def _used(self, num: int) -> None:
        """So many of the samples at hand are no longer there."""
        while num:
            batch = self._at_hand.popleft()
            if batch.left > num:
                self._at_hand.appendleft(batch._replace(left=batch.left - num))
            num = max(0, num - batch.left)

    def _here(self) -> Document:
        """Where the next batch begins."""
        state = _told(self._open) if self.placed else None
        return {
            "pass": self.passes,
            "batch": self._batch,
            "passed": self._passed,
            "crc": self._crc,
            "iterator": state,
        }

    def _begin_pass(self) -> None:
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(self.passes)
        self._open = iter(self.batches)
        # batches, samples and their checksum, so far in the pass
        self._batch = self._passed = self._crc = 0

    def _leave_pass(self) -> None:
        self._open, self._batch, self._passed, self._crc = None, 0, 0, 0

    def _end_pass(self) -> None:
        self._last = [self._batch, self._passed, self._crc]
        self._leave_pass()
        self.passes += 1

    def _fetched(self, size: int, keep: bool) -> bool:
        """Whether samples are at hand; the next batch is read where none are left."""
        if len(self._rest[1]):
            return True
        batch = self._next()
        if batch is None and self.counted:
            batch = self._next_pass()
        if batch is None:
            self._check_pass(1 if keep else size)
            self._end_pass()
            self.ended = True
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
        self._end_pass()
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
        if self._open is None:
            self._begin_pass()
        while True:
            place = self._here()
            try:
                batch = next(self._open)  # type: ignore[arg-type]
            except StopIteration:
                return None
            x, y = checked(self.method, batch, self._batch, self._like)
            self._batch += 1
            if len(y):
                self._passed += len(y)
                told = crc((x, y)) if self.placed else 0
                self._crc = _chained(self._crc, told)
                self._at_hand.append(_Batch(place, len(y), len(y), told))
                return x, y


def _chained(before: int, batch: int) -> int:
    """The checksum of batches with one more, of which the crc is known."""
    return zlib.crc32(batch.to_bytes(4, "big"), before)


def _told(iterator: Iterator | None) -> Document | None:
    """An iterator's state as JSON holds it; None: it has none."""
    if iterator is None or not (hasattr(iterator, "get_state") and hasattr(iterator, "set_state")):
        return None
    state = iterator.get_state()
    if isinstance(state, bytes):
        return {"bytes": base64.b64encode(state).decode()}
    try:
        same = json.loads(json.dumps(state)) == state
    except TypeError:
        return None
    return {"json": state} if same else None


def _state_of(told: Document) -> Any:  # what the iterator's `get_state` gave
    return base64.b64decode(told["bytes"]) if "bytes" in told else told["json"]
