"""How processes meet before jax does: each comes to process 0, and all hear who is missing.

jax itself waits for a process that never starts, and then aborts with a trace of C++ that names nobody.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

import jtssm
from jtssm import checks

LOST_AFTER = 60  # seconds
PAUSE = 0.1  # seconds between two looks
MOST_BYTES = 4096  # of what one process says to another

Said = dict[str, Any]  # what JSON holds
REFUSALS = {"missing": TimeoutError, "different": ValueError}


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    lost_after: int = LOST_AFTER,
) -> None:
    """Meet the other processes, before anything else of jax: `jax.distributed.initialize` with our times.

    Args:
      coordinator: host:port of process 0, which all of them can reach. Process 0 listens on this address
        alone, or on the one in the environment's JAX_COORDINATOR_BIND_ADDRESS. Let nobody else reach it:
        neither jax nor this asks who calls.
      num_processes: how many there are. All three None: jax finds them by itself, under SLURM, on Cloud
        TPU, under Open MPI and Kubernetes.
      process_id: which of them this is, from 0.
      lost_after: seconds within which all must come, and after which one that gives no sign of life
        counts as lost: the others then end with jax's message and a code that is not 0. They do so too
        when one ends of itself and they have not come to their own end this much later.

    Raises:
      ValueError: only some of the three are given, or no host:port, or no such process; two processes of
        one number, or of other numbers of processes or versions of jtssm or jax: in all of them.
      TimeoutError: some did not come in time: in all that did, with the missing ones' numbers.
      OSError: the address is not one of process 0's machine, or is taken.
    """
    given = (coordinator, num_processes, process_id)
    checks.count(lost_after=lost_after)
    bind = None
    if coordinator is not None and num_processes is not None and process_id is not None:
        _check_given(coordinator, num_processes, process_id)
        bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", coordinator)
        meet(coordinator, bind, num_processes, process_id, lost_after)
    elif given != (None, None, None):
        raise ValueError(
            f"coordinator, num_processes, process_id: expected all three, e.g. 'host:1234', 2 and 0, or "
            f"none of them; got {coordinator!r}, {num_processes} and {process_id}"
        )
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        coordinator_bind_address=bind,
        initialization_timeout=lost_after,
        heartbeat_timeout_seconds=lost_after,
        shutdown_timeout_seconds=lost_after,
    )


def versions(*packages: str) -> dict[str, str | None]:
    """Of jtssm and of other packages, which must be the same in all processes; None: not installed."""
    found: dict[str, str | None] = {"jtssm": jtssm.__version__}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _check_given(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator: expected host:port, e.g. 'host:1234'; got {coordinator!r}")
    checks.count(num_processes=num_processes)
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id: expected one of 0..{num_processes - 1}, one for each process; got {process_id}"
        )


def meet(coordinator: str, bind: str, num: int, this: int, seconds: float) -> None:
    """Return in all processes when each has come, else raise in all that have.

    Args:
      bind: host:port that process 0 listens on, free again afterwards.
      seconds: within which all must come.

    Raises:
      ValueError, TimeoutError, OSError: see `connect`.
    """
    words = {"process": this, "processes": num, "versions": versions("jax", "jaxlib")}
    if num == 1:
        return
    verdict = (_received if this == 0 else _reported)(
        words, bind if this == 0 else coordinator, seconds
    )
    if verdict:
        raise REFUSALS[verdict["kind"]](verdict["text"])
    if this:
        _await_jax(coordinator, seconds)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _received(words: Said, bind: str, seconds: float) -> Said:
    """Process 0: wait for the others and tell them the verdict, {} where all is well."""
    with ExitStack() as stack:
        with _listening(bind) as server:
            others, verdict = _gathered(server, stack, words, bind, seconds)
        for other in others:
            _say(other, verdict)
    return verdict


def _gathered(
    server: socket.socket, stack: ExitStack, words: Said, bind: str, seconds: float
) -> tuple[list[socket.socket], Said]:
    """(those that came, the verdict)."""
    end, num = time.monotonic() + seconds, words["processes"]
    there: dict[int, socket.socket] = {}
    while time.monotonic() < end:
        if len(there) == num - 1:
            return list(there.values()), {}
        there = {p: other for p, other in there.items() if not _is_gone(other)}
        came = _next(server, stack)
        if came is not None:
            other, said = came
            verdict = _misfit(words, said, there)
            if verdict:
                return [*there.values(), other], verdict
            there[said["process"]] = other
    missing = sorted(set(range(1, num)) - set(there))
    return list(there.values()), _missing(missing, bind, num, seconds)


def _listening(bind: str) -> socket.socket:
    host, port = _address(bind)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        server = socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"coordinator: expected an address of process 0's machine with a free port; got {bind}: "
            f"{error}. JAX_COORDINATOR_BIND_ADDRESS=host:port says where process 0 listens if the others "
            f"call it otherwise"
        ) from error
    server.settimeout(PAUSE)
    return server


def _next(server: socket.socket, stack: ExitStack) -> tuple[socket.socket, Said] | None:
    """Who comes within a pause, and what it says; None: nobody, or somebody else."""
    try:
        other = stack.enter_context(server.accept()[0])
        other.settimeout(1.0)
        said = _heard(other)
        fits = isinstance(said["process"], int) and isinstance(said["processes"], int)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (other, said) if fits else None


def _misfit(words: Said, said: Said, there: Mapping[int, socket.socket]) -> Said:
    """What is wrong with one that came; {} for nothing."""
    this, text = said["process"], ""
    if said["processes"] != words["processes"]:
        text = (
            f"num_processes: expected the same in every process; got {words['processes']} in process 0, "
            f"{said['processes']} in process {this}"
        )
    elif this in there or not 0 < this < words["processes"]:
        text = f"process_id: expected each of 0..{words['processes'] - 1} once; got {this} twice"
    elif said.get("versions") != words["versions"]:
        text = (
            f"versions: expected the same in every process; got {words['versions']} in process 0, "
            f"{said.get('versions')} in process {this}"
        )
    return {"kind": "different", "text": text} if text else {}


def _missing(missing: list[int], bind: str, num: int, seconds: float) -> Said:
    word = "process" if len(missing) == 1 else "processes"
    text = (
        f"coordinator: expected {num} processes at {bind} within {seconds:g} s (lost_after); "
        f"{word} {', '.join(map(str, missing))} did not come"
    )
    return {"kind": "missing", "text": text}


def _reported(words: Said, coordinator: str, seconds: float) -> Said:
    """Another process: tell process 0 that this one is there, and wait for its verdict."""
    end, why = time.monotonic() + seconds, "nothing"
    while time.monotonic() < end:
        try:
            with socket.create_connection(_address(coordinator), timeout=seconds) as first:
                _say(first, words)
                first.settimeout(seconds + 10)  # process 0 may have come later than this one
                return _heard(first)
        except (OSError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            time.sleep(PAUSE)
    text = (
        f"coordinator: expected process 0 at {coordinator} within {seconds:g} s (lost_after); "
        f"process 0 did not come ({why})"
    )
    return {"kind": "missing", "text": text}


def _await_jax(coordinator: str, seconds: float) -> None:
    """Until jax's own service listens there: its client would wait a second before it tries again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(_address(coordinator), timeout=seconds).close()
            return
        except OSError:
            time.sleep(PAUSE / 10)
    raise TimeoutError(f"coordinator: expected jax's service at {coordinator}; process 0 is gone")


def _say(other: socket.socket, words: Said) -> None:
    """One line; nobody need be left to hear it."""
    try:
        other.sendall(json.dumps(words).encode() + b"\n")
    except OSError:
        return


def _heard(other: socket.socket) -> Said:
    """A line.

    Raises:
      OSError, ValueError: none came.
    """
    heard = b""
    while not heard.endswith(b"\n"):
        more = other.recv(MOST_BYTES)
        if not more or len(heard) > MOST_BYTES:
            raise ConnectionError("closed before it said anything")
        heard += more
    said = json.loads(heard)
    if not isinstance(said, dict):
        raise ValueError("not one of these processes")
    return said


def _is_gone(other: socket.socket) -> bool:
    """Whether a process that waits has ended."""
    other.setblocking(False)
    try:
        return not other.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        other.settimeout(1.0)
