"""Processes of hosts, started and told what to do: they run `benchmarks.host_process`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from benchmarks import namespaces

ROOT = Path(__file__).parents[1]
PROCESS = [sys.executable, "-m", "benchmarks.host_process"]
# a host is one core: XLA's own threads would share it
FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
# what a step needs for a while is mapped anew in every call: by pages of 4 kB that took two fifths of a
# decoder's step on one host
PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
ENDING = 20  # most seconds from the last answer to the end


class Hosts:
    """One process or two that run the same, each in a namespace and on a core of its own.

    Leaving its context ends them, whatever they do.

    Args:
      link: joins their namespaces.
      num: how many there are.
      words: what `benchmarks.host_process` is to run, after the ways to reach it and one another.
      before: a command that runs them: ["chrt", "-f", "10"].
      process: the command itself.
    """

    def __init__(
        self,
        link: namespaces.Link,
        num: int,
        *words: str,
        before: Sequence[str] = (),
        process: Sequence[str] = PROCESS,
    ):
        self.link, self.num, self.words = link, num, words
        self.before, self.process = before, process

    def __enter__(self) -> Hosts:
        self.folder = tempfile.TemporaryDirectory()
        self.connections: list[Connection] = []
        self.started: list[subprocess.Popen] = []
        at = f"{namespaces.address(0)}:{namespaces.free_port()}"
        for this in range(self.num):
            self._start(this, at)
        return self

    def _start(self, this: int, at: str) -> None:
        ours, theirs = Pipe()
        self.connections.append(ours)
        core = ["taskset", "-c", str(this % (os.cpu_count() or 1))]
        given = [theirs.fileno(), at, self.num, this]
        where = [*self.link.enter(this), *self.before, *core]
        with self._said(this).open("w") as said, theirs:
            process = subprocess.Popen(
                [*where, *self.process, *map(str, given), *self.words],
                cwd=ROOT,
                env=os.environ | PAGES | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS},
                pass_fds=[theirs.fileno()],
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
        self.started.append(process)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in self.connections:
            connection.close()  # asks for the end
        end = time.monotonic() + (ENDING if kind is None else 0)
        for process in self.started:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.folder.cleanup()

    def answers(self, seconds: float) -> list[Any]:
        """What each of them sends next.

        Raises:
          TimeoutError: one sends nothing for so long.
          RuntimeError: one has ended, with the last line that it said.
        """
        end, found = time.monotonic() + seconds, dict[Connection, Any]()
        while missing := [c for c in self.connections if c not in found]:
            ready = wait(missing, max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no answer within {seconds:.0f} s")
            found |= {c: self._received(c) for c in missing if c in ready}
        return [found[connection] for connection in self.connections]

    def _received(self, connection: Connection) -> Any:
        try:
            return connection.recv()
        except EOFError:
            this = self.connections.index(connection)
            lines = self._said(this).read_text(errors="replace").splitlines()
            raise RuntimeError(f"process {this} ended: {(lines or ['silently'])[-1]}") from None

    def run(self, steps: int, seconds: float) -> list[float]:
        """Seconds of each step, in the slower of the processes; `seconds`: most, for all steps."""
        for connection in self.connections:
            connection.send(steps)
        return max(self.answers(seconds), key=median)

    def _said(self, this: int) -> Path:
        return Path(self.folder.name) / f"said-{this}"
