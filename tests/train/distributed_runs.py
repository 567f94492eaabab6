"""What each of several processes runs for tests/train/test_distributed.py, which compares it with one process.

As a program: python -m tests.train.distributed_runs WHAT FOLDER PORT PROCESSES ID; 8 devices in all.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jtssm
from jtssm import cli, losses, sharding, solvers
from jtssm.data import synthetic
from jtssm.nn import images, perceptrons
from jtssm.nn.network import sequence
from jtssm.sharding import receiving
from jtssm.train import agreement
from jtssm.train.journal import Journal
from jtssm.train.lock import Lock

DEVICES = 8
LOST_AFTER = 10  # seconds
X, Y = synthetic.separable(0, 96, 4, 3, np.float64)
HELD_OUT = (X[:30], Y[:30])  # pc does not divide them
NET = jtssm.mlp([4, 16, 3])
DEEP = jtssm.mlp([4, 16, 12, 3])
SHARED = {"optimizer": optax.adam(1e-2), "batch_size": 16}
ROUND = {"optimizer": optax.sgd(0.05), "batch_size": 4, "local_steps": 2}
STORED = {"schedule": solvers.Stored(weight_steps=2)}


def cases() -> dict[str, tuple]:
    """Name -> (method, shape of the mesh, forms): every method, and each axis between the processes."""
    return {
        "sgd": (solvers.sgd(NET, **SHARED), (1, 2, 4), "auto"),
        "gsadmm, streaming": (solvers.gsadmm(NET, subnets=2, **SHARED), (2, 2, 2), "auto"),
        "gsadmm, stored": (solvers.gsadmm(NET, subnets=2, **STORED, **SHARED), (2, 1, 4), "auto"),
        "gsam": (solvers.gsam(NET, subnets=2, **STORED, **SHARED), (1, 1, 8), "auto"),
        "pdadmm": (solvers.pdadmm(NET), (2, 1, 4), "auto"),
        "ist": (solvers.ist(NET, subnets=2, **ROUND), (2, 1, 4), "auto"),
        "local_sgd": (solvers.local_sgd(NET, workers=4, **ROUND), (4, 1, 2), "auto"),
        "ensemble": (solvers.ensemble(NET, members=4, **ROUND), (4, 1, 2), "auto"),
    }


def few_cases() -> dict[str, tuple]:
    """A method of each kind: one piece, pieces, layers, workers."""
    return {n: cases()[n] for n in ("sgd", "gsadmm, streaming", "pdadmm", "ist")}


def more_cases() -> dict[str, tuple]:
    """Other schedules, forms of layers, and images, whose halos are permutes."""
    sgd = solvers.sgd(DEEP, **SHARED)
    pieces = solvers.gsadmm(DEEP, subnets=3, schedule=solvers.Streaming(sweeps=2), **SHARED)
    normal = jtssm.mlp([4, 16, 12, 3], normalisation="running")
    outer = ROUND | {"outer_optimizer": optax.sgd(0.7, momentum=0.9, nesterov=True)}
    layers = [
        *(images.convolution(3, 3, activation=jnp.tanh) for _ in range(2)),
        perceptrons.dense(3),
    ]
    pictures = sequence(layers, (4, 1, 1))
    return {
        "gathered": (sgd, (1, 8, 1), ("gathered", "batch", "batch")),
        "scattered, row": (sgd, (1, 4, 2), ("scattered", "row", "batch")),
        "model": (sgd, (1, 4, 2), ("model", "model", "batch")),
        "3 pieces, 2 sweeps": (pieces, (2, 1, 4), "auto"),
        "gsam, streaming": (solvers.gsam(DEEP, subnets=2, **SHARED), (2, 2, 2), "auto"),
        "statistics": (solvers.sgd(normal, **SHARED), (1, 1, 8), "auto"),
        "domain": (solvers.sgd(pictures, **SHARED), (1, 4, 2), ("domain", "domain", "batch")),
        "gsadmm, workers": (solvers.gsadmm(DEEP, subnets=2, workers=4, **outer), (2, 1, 4), "auto"),
        "sgd, workers": (solvers.sgd(NET, workers=8, **ROUND), (1, 1, 8), "auto"),
        "statistics of workers": (solvers.local_sgd(normal, workers=2, **outer), (2, 1, 4), "auto"),
    }


def fitted(method: Any, train: Any, mesh: Any, forms: Any = "auto", **options: Any) -> Any:
    """Two passes from one key."""
    return jtssm.fit(
        method, train, epochs=2, key=jax.random.key(0), mesh=mesh, forms=forms, **options
    )


def shaped(method: Any, pair: tuple) -> tuple:
    """Samples as the method's network takes them."""
    x, y = pair
    return x.reshape(len(x), *method.network.shapes[0]), y


def numbers(result: Any) -> dict[str, Any]:
    """What a run has to say."""
    history = [{k: v for k, v in line.items() if k != "seconds"} for line in result.history]
    params = [a.tolist() for a in jax.tree.leaves(result.params)]
    return {
        "history": history,
        "params": params,
        "outputs": result.predict(shaped(result.method, HELD_OUT)[0]).tolist(),
    }


def in_batches() -> int | None:
    """Threads that wait for messages and for their turn; None: none is seen."""
    waiting = list(receiving._waiting()) if receiving._THREADS.exists() else []
    policies = map(os.sched_getscheduler, waiting)
    return sum(policy == os.SCHED_BATCH for policy in policies) if waiting else None


def run_cases(which: Callable) -> dict[str, Any]:
    """The numbers of each case on its mesh."""
    return {
        name: case(method, sharding.make_mesh(*shape), forms)
        for name, (method, shape, forms) in which().items()
    }


def case(method: Any, mesh: Any, forms: Any = "auto") -> dict[str, Any]:
    """The numbers of a method on all samples; mesh: None: on one device."""
    train, held_out = (shaped(method, pair) for pair in ((X, Y), HELD_OUT))
    return numbers(fitted(method, train, mesh, forms, validation=held_out))


def share(process: int, processes: int) -> tuple:
    """The samples that a process holds: every so-manieth."""
    return X[process::processes], Y[process::processes]


def my_share() -> Any:
    return sharding.ProcessSamples(*share(jax.process_index(), jax.process_count()))


def sharers() -> dict[str, tuple]:
    """Methods and meshes on which samples are split between the processes."""
    averaged = cases()["local_sgd"]
    return {
        "sgd": (cases()["sgd"][0], (1, 1, DEVICES)),
        "local_sgd": averaged[:2],
        "pdadmm": (solvers.pdadmm(NET), (1, 1, DEVICES)),
    }


def run_shares(*names: str) -> dict[str, Any]:
    """Numbers of runs whose samples only the process has whose devices train on them."""
    return {
        name: numbers(fitted(method, my_share(), sharding.make_mesh(*shape)))
        for name, (method, shape) in sharers().items()
        if name in names
    }


def batches(x: np.ndarray, y: np.ndarray, size: int) -> list[tuple]:
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def streamed(x: np.ndarray, y: np.ndarray, parts: int) -> tuple:
    """The samples in an order in which a step's rows are those of `parts` shares, one after another."""
    size = SHARED["batch_size"] // parts
    rows = [np.arange(len(x))[p::parts].reshape(-1, size) for p in range(parts)]
    order = np.concatenate(rows, axis=1).reshape(-1)
    return x[order], y[order]


def run_streams(folder: Path, epochs: int = 2) -> dict[str, Any]:
    """Numbers of streams: the same in each process, or a share in each; with checkpoints."""
    method, steps = cases()["sgd"][0], 6
    mine = share(jax.process_index(), jax.process_count())
    trains = {
        "same": (batches(X, Y, 20), (1, 2, 4)),
        "own": (sharding.ProcessBatches(batches(*mine, 7)), (1, 1, DEVICES)),
    }
    return {
        name: numbers(
            jtssm.fit(
                method,
                train,
                epochs=epochs,
                key=jax.random.key(0),
                mesh=sharding.make_mesh(*shape),
                steps_per_epoch=steps,
                checkpoint=folder / f"stream {name}",
                every=2,
            )
        )
        for name, (train, shape) in trains.items()
    }


def refusals() -> dict[str, str]:
    """What is said where processes could not work together; all of them must say something."""
    sgd, split = cases()["sgd"][0], (1, 1, DEVICES)
    this, (x, y) = jax.process_index(), share(jax.process_index(), jax.process_count())
    samples = sharding.ProcessSamples
    tries = {
        "mesh": (samples(X, Y), (1, 1, 2)),
        "number": (samples(x[this:], y[this:]), split),
        "labels": (samples(x, y + 3 * this), split),
        "alike": (samples(x, y), (1, DEVICES, 1)),
    }
    said = {}
    for name, (train, shape) in tries.items():
        try:
            fitted(sgd, train, sharding.make_mesh(*shape))
        except ValueError as error:
            said[name] = str(error)
    return said


def said(run: Callable[[], Any]) -> str:
    """What a run is refused with; "" if it is not."""
    try:
        run()
    except ValueError as error:
        return str(error)
    return ""


def sgd(net: Any = NET, rate: float = 1e-2, batch_size: int = 16, **options: Any) -> Any:
    """A method with an optimizer and a loss that tell no numbers."""
    return solvers.sgd(net, optimizer=optax.adam(rate), batch_size=batch_size, **options)


def scaled(scale: float) -> Callable:
    """A loss that holds a number."""
    return lambda outputs, y: scale * ((outputs - jax.nn.one_hot(y, 3)) ** 2).sum(axis=-1)


def weighing(first: float) -> losses.Loss:
    """A loss whose weights hold a number."""
    return losses.cross_entropy()._replace(weight=lambda y: jnp.where(y == 0, first, 1.0))


def folder_of_another(folder: Path) -> list[str]:
    """What is said of a folder in use, and of one whose disk is full for process 0 at the second line."""
    method, shape, _ = cases()["sgd"]
    mesh, held, full = sharding.make_mesh(*shape), folder / "held", folder / "full"
    run = lambda at: fitted(method, (X, Y), mesh, checkpoint=at)
    held.mkdir(exist_ok=True)
    lock = Lock(held / "lock")
    found = [said(lambda: run(held))]
    lock.release()
    write, calls = Journal.write, iter(range(9))

    def written(*args: Any) -> Any:
        if jax.process_index() == 0 and next(calls):
            raise OSError("no space left")
        return write(*args)

    Journal.write = written  # type: ignore[method-assign]
    try:
        run(full)
    except OSError as error:
        found += [str(error), str(len(error.result.history))]  # type: ignore[attr-defined]
    Journal.write = write  # type: ignore[method-assign]
    return found


def disagreements(folder: Path) -> dict[str, str]:
    """What is said where process 1 is given something else than process 0."""
    agreement.SEEN_WITHIN = 0.2
    this = jax.process_index()
    mesh, turned = sharding.make_mesh(1, 1, DEVICES), X.copy()
    turned[:2] *= 1 - 2 * this  # an even number of signs
    data, start = (X, Y), NET.init(jax.random.key(this), np.float64)
    bend = jnp.tanh if this else jnp.sin
    bent = sequence([perceptrons.dense(16, activation=bend), perceptrons.dense(3)], (4,))
    other = jax.sharding.Mesh(mesh.devices[..., :: 1 - 2 * this], mesh.axis_names)
    fits: dict[str, tuple] = {
        "key": (sgd(), data, {"key": jax.random.key(this)}),
        "method": (sgd(batch_size=16 + 16 * this), data, {}),
        "rate": (sgd(rate=1e-2 + 1e-3 * this), data, {}),
        "loss": (sgd(loss=scaled(1.0 + this)), data, {}),
        "network": (sgd(bent), data, {}),
        "mesh": (sgd(), data, {"mesh": other}),
        "forms": (
            sgd(DEEP),
            data,
            {
                "mesh": sharding.make_mesh(1, 4, 2),
                "forms": [("model", "row")[this], "batch", "batch"],
            },
        ),
        "train": (sgd(), (turned, Y), {}),
        "kind": (sgd(), sharding.ProcessSamples(X, Y) if this else data, {}),
        "epochs": (sgd(), data, {"epochs": 2 + this}),
        "validation": (sgd(), data, {"validation": None if this else HELD_OUT}),
        "dropout": (sgd(jtssm.mlp([4, 16, 3], dropout=0.1 + 0.4 * this)), data, {}),
        "weights": (sgd(loss=weighing(1.0 + this)), data, {}),
        "resume": (sgd(), data, {"checkpoint": folder / "one", "resume": [None, "anyway"][this]}),
        "estimate": (sgd(), data, {"estimate": [None, False][this]}),
        "address": (sgd(), data, {"checkpoint": Path("gs://bucket/run")}),
        "metrics": (sgd(), data, {"metrics": {} if this else {"size": lambda f, y: f.sum(-1)}}),
        "params": (sgd(), data, {"params": start}),
        "checkpoint": (sgd(), data, {"checkpoint": None if this else folder / "one"}),
        "folder": (sgd(), data, {"checkpoint": folder / f"of {this}"}),
        "refused": (sgd(), (X, Y + 3 * this), {"evaluate_every": 1 - this}),
    }
    plain = {"epochs": 2, "key": jax.random.key(0), "mesh": mesh}
    found = {
        name: said(partial(jtssm.fit, method, train, **(plain | ways)))
        for name, (method, train, ways) in fits.items()
    }
    placed = sharding.place(sgd(), mesh)
    found["init"] = said(lambda: placed.init(jax.random.key(this), X, Y))
    assert not list(folder.glob("of */*"))
    return found


def of_one_process() -> list:
    """What ends a run whose process 0 alone has a callback, and the lines of its result.

    The callback works at the first line, at the second it wants what takes all processes.
    """
    seen = []

    def log(epoch: Any) -> None:
        seen.append(epoch.record["epoch"])
        if len(seen) == 2:
            jtssm.evaluate(epoch.method, epoch.state, HELD_OUT)

    method, shape, _ = cases()["sgd"]
    calls, mesh = [] if jax.process_index() else [log], sharding.make_mesh(*shape)
    try:
        jtssm.fit(method, (X, Y), epochs=3, key=jax.random.key(0), mesh=mesh, callbacks=calls)
    except ValueError as error:
        return [seen, str(error), len(error.result.history)]
    raise AssertionError("nothing was raised")


def own_loop() -> dict[str, Any]:
    """Parameters that a loop of one's own comes to, without `fit`, on meshes with groups of all kinds."""
    found = {}
    for name, (method, shape, forms) in few_cases().items():
        placed = sharding.place(method, sharding.make_mesh(*shape), forms=forms)
        state, step = placed.init(jax.random.key(0), X, Y), jax.jit(placed.step)
        lead = placed.batch_shape or (len(X),)
        for i in range(3):
            rows = np.roll(np.arange(len(X)), 16 * i)[: np.prod(lead)].reshape(lead)
            state, _ = step(state, X[rows], Y[rows])
        found[name] = {"params": [a.tolist() for a in jax.tree.leaves(placed.params(state))]}
    return found


def stopped() -> int:
    """Epochs of a run that the last process alone wants to stop after the second."""
    last = jax.process_index() == jax.process_count() - 1
    stop = lambda epoch: last and epoch.record["epoch"] == 2
    method, shape, _ = cases()["sgd"]
    mesh, key = sharding.make_mesh(*shape), jax.random.key(0)
    return len(jtssm.fit(method, (X, Y), epochs=4, key=key, mesh=mesh, callbacks=[stop]).history)


def diverged() -> list:
    """Where a run with steps that are too long stops, and whether its state is finite."""
    method = solvers.sgd(NET, optimizer=optax.sgd(1e200), batch_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result = fitted(method, (X, Y), sharding.make_mesh(1, 2, 4))
    finite = all(np.isfinite(a).all() for a in jax.tree.leaves(result.params))
    return [result.divergence.step, result.divergence.variable, finite]


def signalled(folder: Path) -> list:
    """Epochs done, and whether it counts as interrupted, of a run of which one process is told to end."""

    def tell(epoch: Any) -> None:
        if jax.process_index() == 0 and epoch.record["epoch"] == 2:
            signal.raise_signal(signal.SIGTERM)

    method, shape, _ = cases()["sgd"]
    result = jtssm.fit(
        method,
        (X, Y),
        epochs=9,
        key=jax.random.key(0),
        mesh=sharding.make_mesh(*shape),
        callbacks=[tell],
        checkpoint=folder / "signalled",
    )
    return [len(result.history), result.interrupted, result.signal]


def kept(folder: Path, epochs: int, which: Callable = cases, here: bool = True) -> dict[str, Any]:
    """Numbers of runs with checkpoints; here: on their meshes, else on one device."""
    found = {}
    for name, (method, shape, forms) in which().items():
        mesh = sharding.make_mesh(*shape) if here else None
        found[name] = numbers(
            jtssm.fit(
                method,
                (X, Y),
                epochs=epochs,
                key=jax.random.key(0),
                mesh=mesh,
                forms=forms if here else "auto",
                checkpoint=folder / f"checkpoints of {name}",
            )
        )
    return found


def endless(folder: Path) -> None:
    """Trains until it is ended from outside; says where it is."""

    def tell(epoch: Any) -> None:
        (folder / f"epoch-{jax.process_index()}").write_text(str(epoch.record["epoch"]))

    method, shape, _ = cases()["sgd"]
    jtssm.fit(
        method,
        (X, Y),
        epochs=10**6,
        key=jax.random.key(0),
        mesh=sharding.make_mesh(*shape),
        callbacks=[tell],
        checkpoint=folder / "checkpoints",
        keep=2,
    )


def command(folder: Path, port: str, processes: str, this: str) -> None:
    """`jtssm train`, which makes the processes meet."""
    arguments = ["train", "--method", "sgd", "--hidden", "16", "--epochs", "2"]
    meeting = ["--coordinator", f"localhost:{port}", "--num-processes", processes]
    mine = ["--process-id", this, "--out", str(folder / f"cli-{this}")]
    mesh = ["--batch-size", "80", "--mesh", f"pc={DEVICES}"]
    with (folder / f"cli-{this}.txt").open("w") as shown, contextlib.redirect_stdout(shown):
        code = cli.main([*arguments, *meeting, *mine, *mesh])
    assert code == 0, code


def one_case() -> dict[str, tuple]:
    """The method of the checkpoint that `make test` looks at."""
    return {"sgd": cases()["sgd"]}


PROGRAMS: dict[str, Callable[[Path], Any]] = {
    "short": lambda folder: {
        "cases": run_cases(few_cases),
        "shares": run_shares("sgd"),
        "refused": refusals(),
        "disagree": disagreements(folder),
        "of one": of_one_process(),
        "folder": folder_of_another(folder),
        "kept": kept(folder, 1, one_case),
        "in batches": in_batches(),
    },
    "long": lambda folder: {
        "cases": run_cases(more_cases),
        "shares": run_shares("local_sgd", "pdadmm"),
        "streams, begun": run_streams(folder, 1),
        "streams": run_streams(folder),
        "stopped": stopped(),
        "diverged": diverged(),
        "signalled": signalled(folder),
    },
    "cases": lambda folder: {"cases": run_cases(cases)},
    "begin": lambda folder: kept(folder, 1),
    "go on": lambda folder: kept(folder, 2),
    "endless": endless,
    "loop": lambda folder: own_loop(),
}


def main(what: str, folder: Path, port: str, processes: str, this: str) -> None:
    """Meet the others, run, write what was found."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    if what == "short":
        command(folder, port, processes, this)
    else:
        jax.config.update("jax_num_cpu_devices", DEVICES // int(processes))
        sharding.connect(f"localhost:{port}", int(processes), int(this), lost_after=LOST_AFTER)
    found = PROGRAMS[what](folder)
    (folder / f"{what}-{this}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
