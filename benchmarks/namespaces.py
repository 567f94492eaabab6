"""Two hosts on one machine: network namespaces joined by a link whose rate is set.

A process that runs in one of them reaches the other by `address` alone, through a pair of virtual
Ethernet devices; the kernel counts what crosses. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MTU = 9000  # bytes of a frame: with the usual 1500 headers alone are 4.5 % of what crosses
BURST = "256kbit"  # what a link that was silent sends at once
QUEUED = "200ms"  # most time that a packet waits for its turn
NETWORK = "192.0.2.0/24"  # one that documents use
TIMEOUT = 20  # seconds, of a command
# Linux's own control of TCP's pace, whatever the machine is set to; and every packet acknowledged at
# once: gloo's messages wait for that, else 40 ms and more (of 1 MB at 1 Gbit/s between products: 220 ms)
ROUTE = ("congctl", "cubic", "quickack", "1")


@dataclass(frozen=True)
class Link:
    """Two namespaces and the link between them."""

    names: tuple[str, str]

    def enter(self, this: int) -> list[str]:
        """Words before a command that runs it in a namespace."""
        return ["ip", "netns", "exec", self.names[this]]

    def turn(self, state: str) -> None:
        """The link is "up" or "down"."""
        _run("ip", "-n", self.names[1], "link", "set", "link1", state)

    def limit(self, rate: str | None) -> None:
        """Bits a second in each direction, in `tc`'s words: "100mbit"; None: as fast as it goes."""
        kind = ["tbf", "rate", rate, "burst", BURST, "latency", QUEUED] if rate else ["noqueue"]
        for this, name in enumerate(self.names):
            _run("tc", "-n", name, "qdisc", "replace", "dev", f"link{this}", "root", *kind)

    def sent(self) -> tuple[int, int]:
        """Bytes that each of the two has sent so far, headers and all."""
        counter = "/sys/class/net/link{}/statistics/tx_bytes"
        first, second = (int(_run(*self.enter(i), "cat", counter.format(i))) for i in (0, 1))
        return first, second


def address(this: int) -> str:
    """Of a namespace."""
    return NETWORK.replace("0/24", str(this + 1))


def lacking(*tools: str) -> str | None:
    """What hinders hosts that need those programs; None: nothing."""
    if os.geteuid():
        return "no root"
    missing = [tool for tool in tools if not shutil.which(tool)]
    return f"no {' and no '.join(missing)}" if missing else None


@contextlib.contextmanager
def joined() -> Iterator[Link]:
    """Two namespaces and a link that is up. Always removed."""
    names = (f"jtssm-{os.getpid()}-0", f"jtssm-{os.getpid()}-1")
    hosts = [Path("/etc/netns") / name for name in names]
    try:
        for this, name in enumerate(names):
            _run("ip", "netns", "add", name)
            hosts[this].mkdir(parents=True)
            # gloo looks for the interface of the host's name
            own = f"127.0.0.1 localhost\n{address(this)} {socket.gethostname()}\n"
            (hosts[this] / "hosts").write_text(own)
        ends = [["link0", "mtu", str(MTU), "netns"], ["link1", "mtu", str(MTU), "netns"]]
        _run("ip", "link", "add", *ends[0], names[0], "type", "veth", "peer", *ends[1], names[1])
        for this, name in enumerate(names):
            _run("ip", "-n", name, "addr", "add", f"{address(this)}/24", "dev", f"link{this}")
            _run("ip", "-n", name, "link", "set", f"link{this}", "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            route = [NETWORK, "dev", f"link{this}", "src", address(this), *ROUTE]
            _run("ip", "-n", name, "route", "replace", *route)
        yield Link(names)
    finally:
        for this, name in enumerate(names):
            with contextlib.suppress(subprocess.SubprocessError):  # it was not there yet
                _run("ip", "netns", "del", name)
            shutil.rmtree(hosts[this], ignore_errors=True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _run(*words: str) -> str:
    """What a command prints."""
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=TIMEOUT)
    return done.stdout
