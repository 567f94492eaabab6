"""In which order the pieces of a pipeline work on the microbatches of a minibatch.

A step is a row of ticks; in each a piece runs at most one microbatch forward and at most one backward,
and tells its neighbours. Of M microbatches and n pieces, l from 0, with S the first tick in which the
last piece runs backward:

    1f1b   S = n - 1      microbatch m forward at tick m + l, backward at S + m + n - 1 - l
    gpipe  S = M + n - 1  the same forward, backward in the opposite order: S + (M - 1 - m) + n - 1 - l

Either way M + n - 1 ticks hold work forward and as many work backward: n - 1 of them a piece waits. They
differ in what is kept meanwhile, inputs of pieces (the first one's are the minibatch itself): those of
2 (n - 1 - l) microbatches at a time (1f1b, none in the last piece), or of all M (gpipe).

Sources: Huang et al., arXiv 1811.06965 (GPipe); Narayanan et al., arXiv 2104.04473 (1F1B with a flush).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from jtssm import checks
from jtssm.arrays import Array

ORDERS = ("1f1b", "gpipe")


class Phase(NamedTuple):
    """Ticks in which the same is done."""

    first: int  # tick
    ticks: int
    forward: bool  # whether a microbatch runs forward
    backward: bool


class Order(NamedTuple):
    """A schedule for so many pieces and microbatches."""

    name: str
    num: int  # n, pieces
    microbatches: int  # M

    @property
    def idle(self) -> int:
        """Ticks in which a piece waits, forward and again backward."""
        return self.num - 1

    def left_out(self, l: int) -> int:
        """Of these, those that are in the program of piece l, each way, as work that is left out."""
        return 0 if self.name == "1f1b" and l == self.idle else self.idle

    @property
    def start(self) -> int:
        """The first tick with work backward."""
        return self.idle if self.name == "1f1b" else self.microbatches + self.idle

    def phases(self) -> Iterator[Phase]:
        """The ticks of a step, one phase after the other."""
        each, idle = self.microbatches, self.idle
        both = [(idle, True, False), (each, True, True), (idle, False, True)]
        apart = [(each + idle, True, False), (each + idle, False, True)]
        first = 0
        for ticks, forward, backward in both if self.name == "1f1b" else apart:
            if ticks:
                yield Phase(first, ticks, forward, backward)
            first += ticks

    def kept(self, l: int) -> int:
        """How many microbatches' inputs piece l (from 0) keeps at a time; the first has the data."""
        if l == 0:
            return 0
        return 2 * (self.num - 1 - l) if self.name == "1f1b" else self.microbatches

    def ahead(self, l: int, tick: Array) -> Array:
        """The microbatch that piece l runs forward; one that is none where it waits."""
        return tick - l

    def behind(self, l: int, tick: Array) -> Array:
        """The microbatch that piece l runs backward; one that is none where it waits."""
        done = tick - self.start - (self.num - 1 - l)
        return done if self.name == "1f1b" else self.microbatches - 1 - done

    def works_behind(self, phase: Phase, l: int) -> bool:
        """Whether piece l may run a microbatch backward in a phase: of 1f1b the last ends early."""
        ended = self.name == "1f1b" and l == self.idle and not phase.forward
        return phase.backward and not ended

    def lives(self, microbatch: Array) -> Array:
        """Whether there is such a microbatch."""
        return (microbatch >= 0) & (microbatch < self.microbatches)

    def place(self, phase: Phase, tick: Array) -> Array:
        """The tick at which what `tick` needs was stored, as lines count them.

        Of gpipe: microbatch m is stored at m + l, in a line of M. So what runs backward at S + (M - 1 -
        m) + n - 1 - l lies, in every piece, where this is modulo M.
        """
        if self.name == "1f1b" or phase.forward:
            return tick
        return self.microbatches - 1 + self.start + self.idle - tick


def order_of(schedule: str, num: int, microbatches: int | None, batch_size: int) -> Order:
    """The schedule by its name.

    Args:
      microbatches: None: the smallest divisor of the batch that is at least 2 n, else all of it.

    Raises:
      ValueError: an unknown name, or microbatches that do not divide the batch.
    """
    checks.one_of("schedule", schedule, ORDERS)
    if microbatches is None:
        found = (d for d in checks.divisors(batch_size) if d >= 2 * num)
        microbatches = 1 if num == 1 else next(found, batch_size)
    size = checks.divides("microbatches", microbatches, batch_size, "samples of a minibatch")
    return Order(schedule, num, size)
