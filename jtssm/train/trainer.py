"""The trainer: chunks of steps up to a line of the history, line after line; hooks do the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jtssm import checks
from jtssm.arrays import Tree
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method
from jtssm.sharding.distributed import largest, told_by_all
from jtssm.train.divergence import Divergence, Guard
from jtssm.train.feed import Feed
from jtssm.train.hooks import Hook, ask, is_true
from jtssm.train.position import Checkpoint, Lines, Position, Sound
from jtssm.train.record import HELD, certificate, folded, joined, make_plain, means
from jtssm.train.result import Epoch, Result


class Trainer:
    """A run of a method from a checkpoint, or from the start as if it were one.

    What hooks find in it:

        state     to go on from, placed
        at        the `Position` where the run stands
        history   its lines
        infos     `Info` of every step since the line before, at a line; of more than 65 536 steps a few
                  that stand for them (`jtssm.train.record.folded`)
        complete  whether the last line is reached, or a hook stopped the run
        signal    a hook sets it, in all processes, to end the run at this place
        halvings  divergences after which it went on; a hook that goes back adds to them
        sound     where a hook would go back to, kept in checkpoints; None: there is no such hook

    Args:
      begun: where it begins.
      method: as placed.
      feed: what gives it samples.
      lines: when a line of the history is due.
      score: (a settled state) -> what each line says of it.
      hooks: in the order in which they are called.
      estimated: whether statistics that layers keep are estimated before each line.
    """

    state: Tree
    at: Position

    def __init__(
        self,
        begun: Checkpoint,
        method: Method,
        feed: Feed,
        lines: Lines,
        score: Callable[[Tree], dict[str, float]],
        hooks: Sequence[Hook],
        *,
        estimated: bool,
    ):
        self.method, self.feed, self.lines, self.score = method, feed, lines, score
        self.hooks = hooks
        self.guard = Guard(method.step, begun.state, begun.position.steps, begun.odd)
        self.drain: Callable[[Tree], Tree] = jax.jit(method.drain)
        self.estimate = jax.jit(method.estimate) if estimated else None
        self.history, self.halvings = list(begun.history), begun.halvings
        self.stopped = begun.stopped if begun.stopped >= lines.last else 0
        self.infos = joined([])
        self.sound: Sound | None = None
        self.signal: int | None = None
        self.divergence: Divergence | None = None
        self._seen: list[Info] = []
        self._held = 0  # steps that it tells of
        self.settled = begun.state  # to hand out; self.state: to go on from
        self._go_to(begun.state, begun.position)

    def train(self) -> Result:
        """Train to the last line, to a divergence, a hook's stop or a signal."""
        interrupted = False
        try:
            self._run()
        except KeyboardInterrupt:
            if jax.process_count() > 1:  # the others know nothing of it, and would wait
                raise
            self.settled, interrupted = self.guard.latest, True
        except Exception as error:
            # a callback's, a full disk, out of memory: hand out what there is
            error.result = self._result(self.guard.latest, True)  # type: ignore[attr-defined]
            raise
        if self.divergence is not None:
            checks.warn(self.divergence.message, RuntimeWarning)
        return self._result(self.settled, interrupted or self.signal is not None)

    def _run(self) -> None:
        ask(self.hooks, lambda hook: hook.on_begin(self))
        if self.complete:
            self.settled = self.drain(self.state)
        while not self.complete and self.signal is None and self.divergence is None:
            divergence = self._chunks()
            if divergence is not None:
                self._diverged(divergence)
            elif self.signal is None:
                self._line()
        ask(self.hooks, lambda hook: hook.on_end(self))

    def _chunks(self) -> Divergence | None:
        """Steps up to the next line; a signal ends them early, and so does a divergence."""
        at, feed = self.at, self.feed
        chunks = feed.draw(at.end - at.start)
        begun = time.perf_counter() - at.seconds
        self._seen = list(at.infos or ())
        self._held = sum(len(infos.loss) for infos in self._seen)
        for outcome in feed.run(self.guard, self.state, chunks[at.chunks :]):
            if outcome.infos is None:
                return outcome.divergence
            self.state = self.settled = outcome.state
            self._see(outcome.infos)
            done, seconds = self.at.chunks + 1, time.perf_counter() - begun
            self.at = self.at._replace(chunks=done, steps=self.guard.done, seconds=seconds)
            self._chunk(outcome.infos, done < len(chunks))
            if self.signal is not None:
                return None
        self.at = self.at._replace(infos=tuple(self._seen), seconds=time.perf_counter() - begun)
        return None

    def _see(self, infos: Info) -> None:
        """Keep what steps have shown up to the next line, of very many steps what they have in all."""
        self._seen.append(infos)
        self._held += len(infos.loss)
        if self._held > HELD:
            self._seen = [folded(joined(self._seen))]
            self._held = len(self._seen[0].loss)

    def _chunk(self, infos: Info, more: bool) -> None:
        """Tell the hooks of a chunk, and of the place behind it if no line is due there."""
        ask(self.hooks, lambda hook: hook.on_chunk(self, infos))
        if more or self.signal is not None:
            self._place()

    def _place(self) -> None:
        ask(self.hooks, lambda hook: hook.on_place(self))

    def _diverged(self, divergence: Divergence) -> None:
        """Go on where a hook went back, or else end."""
        back = told_by_all(any(ask(self.hooks, lambda hook: hook.on_divergence(self, divergence))))
        if len(set(back)) > 1:
            raise RuntimeError(
                f"on_divergence: expected hooks that go back in every process or none; got {back}"
            )
        if not any(back):
            self.divergence, self.settled = divergence, self.guard.latest

    def _line(self) -> None:
        """A line of the history: evaluate, ask the hooks, and stop where one of them wants it."""
        at, seconds = self.at, self._settle()
        self.infos = joined(at.infos or ())
        self.history.append(self._record(at.end, seconds))
        self.at = Position(at.end, at.end, 0, at.steps, len(self.history), self.feed.order())
        epoch = Epoch(self.history[-1], self.settled, self.method, self.history)
        stops = ask(self.hooks, lambda hook: self._stops(hook, epoch))
        if largest(any(stops)):  # all processes, or none
            self.stopped = self.lines.last
            self.settled = self.drain(self.settled)
        self._place()
        self._go_to(self.state, self.at)

    def _settle(self) -> float:
        """The state that a line evaluates; returns the seconds of training since the line before."""
        start = time.perf_counter()
        if self.at.end == self.lines.last:  # a longer run goes on with the minibatches in flight
            self.settled = jax.block_until_ready(self.drain(self.state))
        seconds = self.at.seconds + time.perf_counter() - start
        if self.estimate is not None:
            self.state = self.settled = self.estimate(self.settled, self.feed.seen(self.method))
        self.guard.latest = self.settled
        return seconds

    def _record(self, end: int, seconds: float) -> dict[str, float]:
        record: dict[str, Any] = {"epoch": end, "step": self.feed.steps(end), "seconds": seconds}
        record |= means(self.infos) | certificate(self.infos, self.history)
        return record | self.score(self.settled)

    def _stops(self, hook: Hook, epoch: Epoch) -> bool:
        stops = is_true(hook.on_line(self, epoch))
        make_plain(epoch.record)
        return stops

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.stopped > 0 or self.at.start >= self.lines.last

    @property
    def place(self) -> tuple[int, ...]:
        """Where the run stands, and in which of its lives: what tells checkpoints apart."""
        return self.at.start, self.at.chunks, self.at.lines, len(self.halvings)

    def checkpoint(self) -> Checkpoint:
        """What another process needs to go on from here; every process must ask, at a place."""
        if self.at.chunks:
            order = self.feed.within(self.at.order)
            self.at = self.at._replace(infos=tuple(self._seen), order=order)
        return Checkpoint(
            state=self.state,
            position=self.at,
            sound=self.sound,
            history=self.history,
            halvings=self.halvings,
            odd=self.guard.odd,
            stopped=self.stopped,
        )

    def go_back(self, sound: Sound) -> None:
        """Stand there again: lines after it are dropped."""
        self.sound = sound
        del self.history[sound.position.lines :]
        self._go_to(*sound)
        self.settled = self.state

    def _go_to(self, state: Tree, at: Position) -> None:
        """Stand there, with the next line due where this run wants it."""
        if at.infos is None:
            at = at._replace(end=self.lines.after(at.start))
        self.state, self.at = state, at
        self.guard.back(state, at.steps)
        self.feed.go_to(at.order)

    def _result(self, state: Tree, interrupted: bool) -> Result:
        return Result(
            history=self.history,
            state=state,
            method=self.method,
            divergence=self.divergence,
            interrupted=interrupted,
            halvings=self.halvings,
            signal=self.signal,
        )
