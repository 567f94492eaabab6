"""The thread by which gloo receives must not take the core that computes.

gloo reads a message when the computation asks for it. What comes before that waits in the socket, and
gloo's thread, which asks the kernel again and again whether there is anything, does nothing else: the
sooner the neighbour has told something, the more of a core it takes. Linux moreover lets a thread that
wakes up often run before one that computes, and takes the core from it at the next tick alone, so that
each all-reduce lasts as long as a tick: 3 to 4 ms. As a thread that works in batches (SCHED_BATCH) it has
the same share of the core, but waits for its turn. Two processes of one core each, a free link
(`benchmarks.gloo_messages`): an all-reduce of 32 bytes 3.5 -> 0.15 ms, of 0.5 MB 3.5 -> 0.3 ms.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_THREADS = Path("/proc/self/task")


def let_compute_first() -> None:
    """Make the process's threads that wait for messages wait for their turn; nothing where not on Linux.

    They keep their share of the core. Threads of another policy than Linux's usual one, and Python's
    own, are left as they are.
    """
    if not _THREADS.exists():
        return
    for thread in _waiting():
        with suppress(OSError):  # it has ended, or this is not allowed here
            if os.sched_getscheduler(thread) == os.SCHED_OTHER:
                os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))


def _waiting() -> Iterator[int]:
    """Threads without a name of their own, as gloo's are, that sleep until something is to be read."""
    pythons = {os.getpid(), *(thread.native_id for thread in threading.enumerate())}
    of_process = (_THREADS / str(os.getpid()) / "comm").read_text()
    for thread in map(int, os.listdir(_THREADS)):
        with suppress(OSError):
            name, sleeps = ((_THREADS / str(thread) / f).read_text() for f in ("comm", "wchan"))
            if thread not in pythons and name == of_process and "poll" in sleeps:
                yield thread
