"""Runs that are killed: `python -m tests.train.killed FOLDER points|random METHODS`, the program of test_checkpoint.

Every method trains in a process of its own, forked from this one before jax has started, so that nothing is
imported twice. In lives 1 to 3 the process kills itself, SIGKILL, at the point of that life ("random": it is
killed at any moment); each next life goes on from the checkpoints. The last one trains to the end, and
compares with the run that nobody killed.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import jtssm
from jtssm import sharding, solvers
from jtssm.data import synthetic
from jtssm.train import batches, divergence, trainer
from jtssm.train.checkpoint import Folder


def method(name: str) -> jtssm.Method:
    """Built where it runs: jax must not start before a fork."""
    net = jtssm.mlp([4, 8, 8, 3])
    ways = {"optimizer": optax.adam(1e-2), "batch_size": 20}
    rounds = {"optimizer": optax.adam(1e-2), "batch_size": 7, "local_steps": 2}
    outer = optax.sgd(0.7, momentum=0.9, nesterov=True)
    build = {
        "sgd": lambda: solvers.sgd(jtssm.mlp([4, 8, 8, 3], dropout=0.1), **ways),
        "gsadmm": lambda: solvers.gsadmm(net, subnets=3, **ways),
        "stored": lambda: solvers.gsadmm(net, subnets=2, schedule="stored", **ways),
        "pdadmm": lambda: solvers.pdadmm(net),
        "ist": lambda: solvers.ist(net, subnets=2, **rounds),
        "local_sgd": lambda: solvers.local_sgd(net, workers=2, outer_optimizer=outer, **rounds),
    }
    return build[name]()


METHODS = ("sgd", "gsadmm", "stored", "pdadmm", "ist", "local_sgd")
SIZES = {
    "gsadmm": (3, 1, 1),
    "sgd": (1, 1, 2),
    "ist": (2, 1, 1),
}  # of their meshes; others have none
EPOCHS = {"stored": 12, "pdadmm": 12, "ist": 14, "local_sgd": 14}


def fit(name: str, folder: Path | None = None, epochs: int | None = None) -> jtssm.Result:
    """The run of a method, with checkpoints or without."""
    mesh = sharding.make_mesh(*SIZES[name]) if name in SIZES else None
    samples = synthetic.separable(0, 120, 4, 3, np.float64)
    ways = {} if folder is None else {"checkpoint": folder / name, "every": 3}
    return jtssm.fit(
        method(name),
        samples,
        epochs=epochs or EPOCHS.get(name, 8),
        key=jax.random.key(3),
        mesh=mesh,
        validation=samples,
        **ways,
    )


class Points:
    """Where a process kills itself: after its fifth chunk, as a second save begins, before it is whole."""

    def __init__(self, life: int):
        self.life, self.times = life, {1: 5, 2: 2, 3: 2}
        judge, save, rename = divergence.Guard.judge, Folder.save, os.rename

        def judged(guard, *args):
            outcome = judge(guard, *args)
            self.meet(1)
            return outcome

        def saved(folder, *args):
            save(folder, *args)
            self.meet(2)

        def renamed(source, target, **options):
            if Path(target).name.isdigit():  # the whole checkpoint, not one of its items
                self.meet(3)
            rename(source, target, **options)

        divergence.Guard.judge, Folder.save = judged, saved
        os.rename = renamed

    def meet(self, life: int) -> None:
        self.times[life] -= 1
        if life == self.life and self.times[life] == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def say(*words: object) -> None:
    """A line, written at once: several processes say theirs."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def tell(name: str) -> None:
    """Print where the runs of this process begin."""
    start = trainer.Trainer.__init__

    def told(run, begun, *args, **ways):
        at = begun.position
        say("BEGUN", name, at.steps, at.start, at.chunks)
        start(run, begun, *args, **ways)

    trainer.Trainer.__init__ = told


def bits(tree) -> list[bytes]:
    """Every bit of a tree's arrays."""
    raw = lambda a: (
        jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a
    )
    return [np.asarray(raw(a)).tobytes() for a in jax.tree.leaves(sharding.gathered(tree))]


def same(one: jtssm.Result, other: jtssm.Result) -> bool:
    """Two runs have come to the same bits, by the same history."""
    lines = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in run.history]
        for run in (one, other)
    ]
    return bits(one.state) == bits(other.state) and lines[0] == lines[1]


def compare(name: str, folder: Path, epochs: int | None = None) -> None:
    """Let a run end, and print whether it is the one that nobody killed."""
    on = fit(name, folder, epochs)
    say("SAME", name, same(on, fit(name, epochs=epochs)))


def forked(name: str, work: Callable, *args: Any) -> int:
    """The id of a process that does some work on a method."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        tell(name)
        work(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # never into the parent's loop


def lived(name: str, folder: Path, life: int) -> None:
    """A life that should not come to the end."""
    Points(life)
    fit(name, folder)


def killed(status: int) -> bool:
    """Whether SIGKILL ended a process."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def at_points(folder: Path, methods: list[str]) -> None:
    """Three lives of every method, each killed at its point, and the last one; two methods side by side."""
    for life in (1, 2, 3, 4):
        for names in (methods[i : i + 2] for i in range(0, len(methods), 2)):
            work = (lived, life) if life < 4 else (compare, None)
            ids = {n: forked(n, work[0], n, folder, work[1]) for n in names}
            ends = {n: os.waitpid(id, 0)[1] for n, id in ids.items()}
            for name in names:
                if killed(ends[name]):
                    say("KILLED", name, life)


def at_random(folder: Path, methods: list[str]) -> None:
    """20 lives, each killed at any moment of its training, setting up included, and the last ones."""
    turns, rng = list(methods), np.random.default_rng(int(time.time()))
    epochs, kills = {n: 20 * EPOCHS.get(n, 8) for n in methods}, 0
    while kills < 20 and turns:
        name = turns.pop(0)
        id = forked(name, fit, name, folder, epochs[name])
        wait = rng.uniform(0.5, 8.0)
        time.sleep(wait)
        os.kill(id, signal.SIGKILL)
        if killed(os.waitpid(id, 0)[1]):  # else it had come to its end, and has no more turns
            say("KILLED", name, round(wait, 3))
            kills, turns = kills + 1, [*turns, name]
    for name in methods:
        os.waitpid(forked(name, compare, name, folder, epochs[name]), 0)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    batches.CHUNK = 2  # most steps a dispatch: an epoch has several
    jax.config.update("jax_compilation_cache_dir", str(Path(sys.argv[1]) / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    {"points": at_points, "random": at_random}[sys.argv[2]](Path(sys.argv[1]), sys.argv[3:])
