"""A run of `fit`: intervals of chunks between lines of the history, checkpoints, ways back."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jtssm.protocol.method import Method
from jtssm.sharding.distributed import largest
from jtssm.train.batches import estimator
from jtssm.train.checkpoint import Folder
from jtssm.train.divergence import Divergence, Guard
from jtssm.train.position import Checkpoint, Position, Sound
from jtssm.train.progress import Bar
from jtssm.train.record import certificate, joined, means
from jtssm.train.result import Epoch, Result, evaluate
from jtssm.train.signals import Wish


class Plan(NamedTuple):
    """What a run is asked to do."""

    method: Method
    feed: Any  # Minibatches, Resident or Stream
    lines: Sequence[int]  # the epochs after which a line of the history is due
    sets: Mapping[str, Any]
    callbacks: Sequence[Callable[[Epoch], Any]]
    folder: Folder | None
    every: int | None  # steps between checkpoints; None: at every line
    halvings: int  # most of them


class Run:
    """Training from a checkpoint, or from the start as if it were one."""

    def __init__(self, plan: Plan, begun: Checkpoint, bar: Bar, wish: Wish):
        self.plan, self.bar, self.wish = plan, bar, wish
        self.signal: int | None = None  # that processes agree on
        method = plan.method
        self.guard = Guard(method.step, begun.state, begun.position.steps, begun.odd)
        self.drain, self.estimate = jax.jit(method.drain), estimator(method, plan.feed)
        self.history, self.halvings = list(begun.history), begun.halvings
        self.stopped = begun.stopped if begun.stopped >= plan.lines[-1] else 0
        self.sound: Sound | None = None
        if plan.halvings:
            self.sound = begun.sound or Sound(begun.state, begun.position)
        self.shown = begun.state  # to hand out; self.state: to go on from
        self.divergence: Divergence | None = None
        self._go_to(begun.state, begun.position)
        self.saved, self.saved_steps = self._place(), self.at.steps

    def go(self) -> Result:
        """Train to the last line, to a divergence, a callback's stop or a signal."""
        interrupted = False
        try:
            self._intervals()
            if self.plan.folder is not None:
                self.plan.folder.wait()
        except KeyboardInterrupt:
            if jax.process_count() > 1:  # the others know nothing of it, and would wait
                raise
            self.shown, interrupted = self.guard.latest, True
        except (
            Exception
        ) as error:  # a callback's, a full disk, out of memory: hand out what there is
            error.result = self._result(self.guard.latest, True)  # type: ignore[attr-defined]
            raise
        if self.divergence is not None:
            warnings.warn(self.divergence.message, RuntimeWarning, stacklevel=3)
        return self._result(self.shown, interrupted or self.signal is not None)

    def _intervals(self) -> None:
        if self._complete():
            self.shown = self.drain(self.state)
        while not self._complete():
            divergence = self._interval()
            if divergence is not None:
                if self._halve(divergence):
                    continue
                self.divergence, self.shown = divergence, self.guard.latest
                return
            if self.signal is None:
                self._line()
                self._listen()
            if self.signal is not None:
                self._save()
                return

    def _listen(self) -> None:
        """A signal that came to one process stops all of them, at the same place."""
        if self.plan.folder is not None:
            self.signal = largest(self.wish.signal or 0) or None

    def _complete(self) -> bool:
        return self.stopped > 0 or self.at.start >= self.plan.lines[-1]

    def _go_to(self, state: Any, at: Position) -> None:
        """Stand there, with the next line due where this run wants it."""
        if at.infos is None:
            at = at._replace(
                end=min((n for n in self.plan.lines if n > at.start), default=at.start)
            )
        self.state, self.at = state, at
        self.guard.back(state, at.steps)
        self.plan.feed.go_to(at.order)

    def _interval(self) -> Divergence | None:
        """Steps up to the next line; a signal ends them early."""
        at, feed = self.at, self.plan.feed
        chunks = feed.draw(at.end - at.start)
        begun = time.perf_counter() - at.seconds
        seen = [] if at.infos is None else [at.infos]
        for outcome in feed.run(self.guard, self.state, chunks[at.chunks :]):
            if outcome.divergence is not None:
                return outcome.divergence
            self.state = self.shown = outcome.state
            seen.append(outcome.infos)
            self.bar.show(means(outcome.infos), len(outcome.infos.loss))
            done, seconds = self.at.chunks + 1, time.perf_counter() - begun
            self.at = self.at._replace(chunks=done, steps=self.guard.done, seconds=seconds)
            due = done < len(chunks) and self._due()
            self._listen()
            if due or self.signal is not None:
                seen = [joined(seen)]
                self.at = self.at._replace(infos=seen[0], order=feed.within(self.at.order))
            if due:
                self._save()
            if self.signal is not None:
                return None
        self.at = self.at._replace(infos=joined(seen), seconds=time.perf_counter() - begun)
        return None

    def _line(self) -> None:
        """A line of the history: evaluate, tell the callbacks, keep a checkpoint."""
        plan, at, start = self.plan, self.at, time.perf_counter()
        if at.end == plan.lines[-1]:  # a longer run goes on with the minibatches in flight
            self.shown = jax.block_until_ready(self.drain(self.state))
        seconds = at.seconds + time.perf_counter() - start
        if plan.method.parts.network.estimated:
            self.state = self.shown = self.estimate(self.shown)
        self.guard.latest = self.shown
        record = self._record(at.end, seconds, at.infos)
        self.history.append(record)
        self.bar.show(record)
        self.at = Position(at.end, at.end, 0, at.steps, len(self.history), plan.feed.order())
        self._note_sound(record, at.infos)
        epoch = Epoch(record, self.shown, plan.method, self.history)
        stops = [call(epoch) is True for call in plan.callbacks]
        if plan.callbacks and largest(any(stops)):  # all processes stop, or none
            self.stopped = plan.lines[-1]
            self.shown = self.drain(self.shown)
        if plan.every is None or self._complete() or self._due():
            self._save()
        self._go_to(self.state, self.at)

    def _record(self, end: int, seconds: float, infos: Any) -> dict[str, float]:
        plan = self.plan
        record = {"epoch": end, "step": plan.feed.steps(end), "seconds": seconds}
        record |= means(infos) | certificate(infos, self.history)
        record |= {"halvings": len(self.halvings)} if plan.halvings else {}
        return record | evaluate(plan.method, self.shown, plan.sets)

    def _due(self) -> bool:
        every = self.plan.every
        return every is not None and self.at.steps - self.saved_steps >= every

    def _place(self) -> tuple[int, ...]:
        """Where the run stands, and in which of its lives."""
        return self.at.start, self.at.chunks, self.at.lines, len(self.halvings)

    def _save(self) -> None:
        """A checkpoint of where the run stands, unless the newest is of just that."""
        if self.plan.folder is None or self._place() == self.saved:
            return
        checkpoint = Checkpoint(
            self.state,
            self.at,
            self.sound,
            self.history,
            self.halvings,
            self.guard.odd,
            self.stopped,
        )
        self.plan.folder.save(checkpoint, self.plan.method)
        self.saved, self.saved_steps = self._place(), self.at.steps

    def _note_sound(self, record: Mapping[str, float], infos: Any) -> None:
        """A line is a place to go back to, unless its loss says that a blow-up begins.

        That is: unless it is over twice the least line's, or twice that of its own first step.
        """
        if not self.plan.halvings or not record["samples"]:
            return
        first = float(infos.loss[infos.samples > 0][0])
        least = min(first, *(line["loss"] for line in self.history if line["samples"]))
        if record["loss"] <= least + abs(least):
            self.sound = Sound(self.state, self.at)

    def _halve(self, divergence: Divergence) -> bool:
        """Go back to the last sound line with halved steps; False: often enough."""
        if len(self.halvings) >= self.plan.halvings or self.sound is None:
            return False
        state, at = self.sound
        state = state._replace(pace=state.pace * 0.5)
        message = (
            f"step {divergence.step}: {divergence.variable} is not finite; going on from epoch "
            f"{at.start} with halved steps, {len(self.halvings) + 1} of {self.plan.halvings} times"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=5)
        self.halvings += (divergence._replace(message=message),)
        self.sound = Sound(state, at)
        del self.history[at.lines :]
        self.bar.back(at.steps)
        self._go_to(state, at)
        self.shown = self.state
        self.saved_steps = min(self.saved_steps, at.steps)
        return True

    def _result(self, state: Any, interrupted: bool) -> Result:
        return Result(
            self.history, state, self.plan.method, self.divergence, interrupted, self.halvings,
            self.signal,
        )  # fmt: skip
