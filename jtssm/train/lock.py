"""A lock on a folder of checkpoints: one run at a time, which a dead run does not keep.

The lock is a file that says who has it. On the same machine a process that no longer lives has none; of
another machine a run that gives no sign of life while somebody waits counts as dead. Nobody's clock is
compared with another's: a sign of life is any change of the file's time.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from jtssm.sharding.agreement import ending_all
from jtssm.sharding.distributed import is_first

BEAT = 10.0  # seconds between two signs of life
LOST = 60.0  # seconds without one after which a run on another machine counts as dead
LOOKS = 120  # at the file in that time


class Lock:
    """Held from here until `release`; of several processes the first holds it for all.

    Args:
      path: of the file; its folder is there.

    Raises:
      ValueError: another run has it, in all processes.  OSError: it cannot be written.
    """

    def __init__(self, path: Path):
        self.path, self._ended = path, threading.Event()
        self._own = _who() | {"number": os.urandom(8).hex()}
        with ending_all():
            if is_first() and (refused := self._take()) is not None:
                raise ValueError(refused)
        if is_first():
            threading.Thread(target=self._beat, name="jtssm lock", daemon=True).start()

    def check(self) -> None:
        """It is still ours.

        Raises:
          OSError: another run, which saw no sign of life of this one, has taken it, or it is gone.
        """
        if is_first() and _read(self.path) != self._own:
            raise OSError(
                f"checkpoint: expected {self.path} to be this run's; got another's, which began while "
                f"this one gave no sign of life, or none"
            )

    def release(self) -> None:
        """Let others have it."""
        self._ended.set()
        if is_first() and _read(self.path) == self._own:
            with suppress(OSError):
                self.path.unlink()

    def _take(self) -> str | None:
        """Take it; what is said where another run has it."""
        while True:
            try:
                with self.path.open("x") as file:
                    json.dump(self._own, file)
                return None
            except FileExistsError:
                there = _read(self.path)
            if _lives(self.path, there):
                return (
                    f"checkpoint: expected a folder that no other run uses; got {self.path.parent}, in "
                    f"use by {_named(there)}: wait for its end, or name another folder"
                )
            self._clear(there)

    def _clear(self, dead: Any) -> None:
        """Remove a dead run's file, not one that somebody has put in its place meanwhile."""
        aside = self.path.with_name(f"{self.path.name}.{self._own['number']}")
        with suppress(FileNotFoundError):
            self.path.rename(aside)
            if _read(aside) != dead:
                with suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):
                os.utime(self.path)


def _who() -> dict[str, Any]:
    """This process, as another one can look for it."""
    machine = [_text("/proc/sys/kernel/random/boot_id"), _link("/proc/self/ns/pid")]
    pid = os.getpid()
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    here = {"host": platform.node(), "machine": machine, "process": pid}
    return here | {"born": _born(pid), "began": began}


def _lives(path: Path, there: Any) -> bool:
    """Whether whoever wrote the file is at work; of another machine that takes up to `LOST` to tell."""
    own = _who()
    here = isinstance(there, dict) and all(there.get(n) == own[n] for n in ("host", "machine"))
    if here and isinstance(there.get("process"), int):
        return _alive(there["process"], there.get("born"))
    first = _changed(path)
    for _ in range(LOOKS):
        if first is None or _changed(path) != first:
            return first is not None and _read(path) is not None
        time.sleep(LOST / LOOKS)
    return False


def _alive(process: int, born: str | None) -> bool:
    """Whether a process of this machine is at work, and no other has got its number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return born is None or _born(process) == born


def _born(process: int) -> str | None:
    """When a process began, in the kernel's ticks; None: unknown, or it has ended."""
    text = _text(f"/proc/{process}/stat")
    after = text.rpartition(")")[2].split()
    return after[19] if len(after) > 19 and after[0] not in "ZX" else None


def _text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _link(path: str) -> str:
    with suppress(OSError):
        return os.readlink(path)
    return ""


def _changed(path: Path) -> int | None:
    """The file's time; None: it is gone."""
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return None


def _read(path: Path) -> Any:
    """What a lock says; None: nothing that can be read, as of one half written."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None


def _named(there: Any) -> str:
    if not isinstance(there, dict):
        return "a run that does not say who it is"
    return f"process {there.get('process')} on {there.get('host')} since {there.get('began')}"
