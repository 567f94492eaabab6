"""What do the others do when a process, or the network between two of them, fails?

Two processes train together, each in a network namespace of its own (one host, a veth pair between them;
without root or `ip` no namespaces, and no faults of the link). A fault is made once both have trained
for some epochs; then both are watched until they go on for some epochs more, or end. A run that
ended is gone on with in one process, from its checkpoints; whatever came to its end must have the
weights of an undisturbed run in one process, to 1e-9 in float64, or the fault is wrong in silence.

    python -m benchmarks.process_faults [--smoke] [--only FAULT]

Fifteen minutes on 2 cores. Last result: benchmarks/results/process_faults.json, in
docs/how-to/several-machines.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import jtssm
from benchmarks import namespaces, record
from jtssm import sharding, solvers
from jtssm.data import synthetic
from jtssm.sharding import meeting

ROOT = Path(__file__).parents[1]
BEFORE, AFTER = 12, 10  # epochs before a fault, and after it until the run counts as going on
EVERY = 24  # steps between two checkpoints: 4 epochs
PAUSE = 0.05  # seconds that an epoch is made longer by
ENDLESS = 10**5  # epochs
STARTING = 120  # most seconds until the first epochs


def train(
    epochs: int, mesh: Any = None, seed: int = 0, calls: tuple = (), **ways: Any
) -> jtssm.train.result.Result:
    """The run that faults happen to."""
    x, y = synthetic.separable(0, 96, 4, 3, np.float64)
    method = solvers.sgd(jtssm.mlp([4, 16, 3]), optimizer=optax.adam(1e-2), batch_size=16)
    return jtssm.fit(
        method,
        (x, y),
        epochs=epochs,
        key=jax.random.key(seed),
        mesh=mesh,
        callbacks=calls,
        progress=False,
        **ways,
    )


def child(folder: Path, at: str, this: int, lost_after: int, seed: int, raises: bool) -> None:
    """One of the two processes: trains until there is a file "stop"; leaves its epoch and its weights."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 1)
    (folder / f"here-{this}").touch()
    sharding.connect(at, 2, this, lost_after=lost_after)

    def tell(epoch: Any) -> bool:
        (folder / f"epoch-{this}").write_text(str(epoch.record["epoch"]))
        time.sleep(PAUSE)
        return (folder / "stop").exists()

    def fail(epoch: Any) -> None:
        if raises and epoch.record["epoch"] == 3:
            raise KeyError("a callback's")

    result = train(
        ENDLESS,
        sharding.make_mesh(pc=2),
        seed,
        (tell, fail),
        checkpoint=folder / "checkpoints",
        every=EVERY,
    )
    leave(folder / f"end-{this}.json", result)


def leave(path: Path, result: jtssm.train.result.Result) -> None:
    """The epoch and the weights of a result."""
    weights = [np.asarray(a).tolist() for a in jax.tree.leaves(result.params)]
    path.write_text(json.dumps([result.history[-1]["epoch"], weights]))


@dataclass
class Run:
    """Two processes, and what can be done to them."""

    folder: Path
    lost_after: int
    link: namespaces.Link | None  # between two network namespaces
    port: int
    started: dict[int, subprocess.Popen] = field(default_factory=dict)
    gone: dict[int, float] = field(default_factory=dict)  # process -> when it ended
    held: set[int] = field(default_factory=set)  # stopped for ever
    fault: float = 0.0  # when it was made
    healed: float = 0.0

    def start(self, this: int, seed: int = 0, raises: bool = False) -> None:
        """Start a process."""
        at = f"{namespaces.address(0) if self.link else 'localhost'}:{self.port}"
        enter = self.link.enter(this) if self.link else []
        words = [self.folder, at, this, self.lost_after, seed, int(raises)]
        command = [*enter, sys.executable, "-m", "benchmarks.process_faults", "--child"]
        with (self.folder / f"said-{this}").open("w") as said:
            self.started[this] = subprocess.Popen(
                [*command, *map(str, words)],
                cwd=ROOT,
                env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    def both(self, **other: Any) -> None:
        """Start both, the second with other arguments."""
        self.start(0)
        self.start(1, **other)

    def here(self, *processes: int) -> None:
        """The fault counts from when these begin to look for the others."""
        end = time.monotonic() + STARTING
        while not all((self.folder / f"here-{i}").exists() for i in processes):
            if time.monotonic() > end:
                raise RuntimeError("nothing started")
            time.sleep(0.05)
        self.now()

    def training(self) -> None:
        """Start both and wait until they have trained for some epochs."""
        self.both()
        self.reach(BEFORE)

    def reach(self, epoch: int) -> None:
        """Wait until both have trained for so many epochs."""
        end = time.monotonic() + STARTING
        while min(map(self.epoch, (0, 1))) < epoch:
            if time.monotonic() > end or any(p.poll() is not None for p in self.started.values()):
                raise RuntimeError(f"no training: {self.said(0)}; {self.said(1)}")
            time.sleep(0.01)

    def epoch(self, this: int) -> int:
        path = self.folder / f"epoch-{this}"
        return int(path.read_text() or 0) if path.exists() else 0

    def now(self) -> None:
        """The fault happens now."""
        self.fault = self.healed = time.monotonic()

    def send(self, this: int, number: signal.Signals) -> None:
        self.started[this].send_signal(number)

    def stopped(self, this: int, seconds: float | None) -> None:
        """SIGSTOP, and SIGCONT some seconds later; None: never."""
        self.send(this, signal.SIGSTOP)
        self.now()
        if seconds is None:
            self.held.add(this)
            return
        self.wait(seconds)
        self.send(this, signal.SIGCONT)
        self.healed = time.monotonic()

    def down(self, seconds: float | None) -> None:
        """The link is down, and up some seconds later; None: never."""
        assert self.link is not None
        self.link.turn("down")
        self.now()
        if seconds is not None:
            self.wait(seconds)
            self.link.turn("up")
            self.healed = time.monotonic()

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            time.sleep(0.05)

    def look(self) -> None:
        """Note who has ended."""
        for this, process in self.started.items():
            if this not in self.gone and process.poll() is not None:
                self.gone[this] = time.monotonic()

    def watch(self) -> str:
        """Until all have ended or go on: "ends", "goes on", or after a long time "hangs"."""
        wanted, epochs = set(self.started) - self.held, list(map(self.epoch, (0, 1)))
        end = self.healed + 2 * self.lost_after + STARTING
        while time.monotonic() < end:
            self.look()
            if wanted <= set(self.gone):
                return "ends"
            more = [self.epoch(i) - epochs[i] for i in (0, 1)]
            if not self.gone and min(more) >= AFTER:
                (self.folder / "stop").touch()
                for process in self.started.values():
                    process.wait(timeout=STARTING)
                return "goes on"
            time.sleep(0.05)
        return "hangs"

    def end(self) -> None:
        for process in self.started.values():
            process.kill()
            process.wait()

    def said(self, this: int) -> str:
        """The first error of a process."""
        path = self.folder / f"said-{this}"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        found = [line for line in lines if re.match(r"[\w.]+Error: |F\d+ .*Terminating", line)]
        text = re.sub(r"^F\d+ .*absl::Status: ", "jax: ", found[0]) if found else ""
        return text.replace(str(self.folder), "FOLDER")[:300]


def never(run: Run) -> None:
    run.start(0)
    run.here(0)


def late(run: Run) -> None:
    run.start(0)
    run.here(0)
    run.wait(run.lost_after / 2)
    run.start(1)
    run.healed = time.monotonic()


def other_key(run: Run) -> None:
    run.both(seed=1)
    run.here(0, 1)


def callback(run: Run) -> None:
    run.both(raises=True)
    run.reach(3)
    run.now()


def after(act: Callable[[Run], None]) -> Callable[[Run], None]:
    """A fault of two processes that train."""

    def make(run: Run) -> None:
        run.training()
        act(run)

    return make


def killed(this: int) -> Callable[[Run], None]:
    def act(run: Run) -> None:
        run.send(this, signal.SIGKILL)
        run.now()

    return after(act)


def faults(smoke: bool) -> dict[str, Callable[[Run], None]]:
    """By name; smoke: the short ones, with shorter times."""
    short, down = (3, 2) if smoke else (20, 5)
    quick = {
        "a process never starts": never,
        "a process starts late, by half of lost_after": late,
        "another key in one process": other_key,
        "a callback raises in process 1": callback,
        f"process 1 stopped (SIGSTOP) for {short} s": after(lambda run: run.stopped(1, short)),
        f"link down for {down} s": after(lambda run: run.down(down)),
        "process 1 killed": killed(1),
    }
    slow = {
        "process 0, the coordinator, killed": killed(0),
        f"process 0, the coordinator, stopped for {short} s": after(
            lambda run: run.stopped(0, short)
        ),
        "process 1 stopped for ever": after(lambda run: run.stopped(1, None)),
        "process 0, the coordinator, stopped for ever": after(lambda run: run.stopped(0, None)),
        "link down for ever": after(lambda run: run.down(None)),
    }
    return quick if smoke else quick | slow


def tried(name: str, make: Callable, lost_after: int, link: namespaces.Link | None) -> dict:
    """A fault, what came of it, and whether what came to an end is right."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), lost_after, link, namespaces.free_port())
        try:
            make(run)
            outcome = run.watch()
        finally:
            run.end()
            if link is not None:
                link.turn("up")
        others = [i for i in run.gone if run.started[i].returncode != -signal.SIGKILL]
        return {
            "fault": name,
            "outcome": outcome,
            "others": others if outcome == "ends" else [],
            "codes": {i: run.started[i].returncode for i in others},
            "seconds": {i: run.gone[i] - run.fault for i in others},
            "says": {i: run.said(i) for i in others},
            **ended(run, outcome),
        }


def ended(run: Run, outcome: str) -> dict:
    """The epochs of a run that went on, or that is gone on with, and whether its weights are right."""
    if outcome == "goes on":
        found = [json.loads((run.folder / f"end-{i}.json").read_text()) for i in (0, 1)]
        return {"epochs": found[0][0], "right": all(map(is_right, found))}
    if outcome == "hangs" or not (run.folder / "checkpoints").exists():
        return {"epochs": None, "right": outcome != "hangs"}
    epochs = max(map(run.epoch, (0, 1))) + AFTER
    began = []
    see = lambda epoch: began.append(epoch.record["epoch"])
    kept = run.folder / "checkpoints"
    result = train(epochs, calls=(see,), checkpoint=kept, every=EVERY)
    leave(run.folder / "gone-on.json", result)
    right = is_right(json.loads((run.folder / "gone-on.json").read_text()))
    return {"epochs": epochs, "gone_on_from": began[0] - 1, "right": right}


def is_right(found: list) -> bool:
    """Whether weights are those of as many epochs that nothing disturbed."""
    epochs, weights = found
    expected = jax.tree.leaves(train(epochs).params)
    pairs = zip(weights, expected, strict=True)
    return all(np.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in pairs)


def main() -> None:
    """Make every fault and write the JSON."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument("--smoke", action="store_true", help="two minutes, no result file")
    parse.add_argument("--only", default="", help="faults whose name has this in it")
    parse.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    given = parse.parse_args()
    if given.child:
        folder, at, *numbers = given.child
        this, lost_after, seed, raises = map(int, numbers)
        child(Path(folder), at, this, lost_after, seed, bool(raises))
        return
    jax.config.update("jax_enable_x64", True)
    lost_after, rows = 10 if given.smoke else meeting.LOST_AFTER, []
    apart = contextlib.nullcontext() if namespaces.lacking("ip") else namespaces.joined()
    with apart as link:
        for name, make in faults(given.smoke).items():
            if given.only in name and (link or "link" not in name):
                rows.append(tried(name, make, lost_after, link))
                print(json.dumps(rows[-1]), flush=True)
    counts = {
        word: sum(row["outcome"] == word for row in rows) for word in ("goes on", "ends", "hangs")
    }
    counts |= {"tried": len(rows), "wrong in silence": sum(not row["right"] for row in rows)}
    print(json.dumps(counts))
    if not given.smoke and not given.only:
        content = {
            "lost_after": lost_after,
            "namespaces": bool(link),
            "counts": counts,
            "faults": rows,
        }
        print(record.write("process_faults", "benchmarks.process_faults", content))


if __name__ == "__main__":
    main()
