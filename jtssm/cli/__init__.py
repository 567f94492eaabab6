"""The command line: jtssm train | demo | methods | data, and what `jtssm.cli.plan` adds."""

from __future__ import annotations

import argparse
import inspect
import json
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import jax
import optax

import jtssm
from jtssm import data, plot, sharding, solvers
from jtssm.cli import plan, tables, train
from jtssm.cli.options import parser
from jtssm.protocol.method import Method
from jtssm.sharding.distributed import as_first, is_first
from jtssm.sharding.mesh import AXES
from jtssm.solvers import layerwise
from jtssm.train.history import HistoryFile, save_params
from jtssm.train.loop import fit
from jtssm.train.result import Epoch, Result, evaluate

EVALUATED = 10_000  # training samples on which the composed network is evaluated every epoch


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, 1 after a divergence, 2 for bad input or a full disk.

    130 for Ctrl-C, 143 for SIGTERM.
    """
    runs = {
        "train": run_train, "demo": run_demo, "methods": run_methods, "data": run_data,
        "plan": plan.run_plan, "sweep": plan.run_sweep, "calibrate": plan.run_calibrate,
    }  # fmt: skip
    arguments = parser(runs).parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, OSError, ImportError) as error:
        print(f"jtssm: error: {error}", file=sys.stderr)
        return 2


def run_train(arguments: argparse.Namespace) -> int:
    """Train, write history, weights, figure and result, print a table."""
    train.complete(arguments)
    if train.several(arguments):
        _connect(arguments)
    # what jax finds by itself has its devices already: on CPUs JAX_NUM_CPU_DEVICES says how many
    processes = None if arguments.distributed else arguments.num_processes or 1
    mesh, flat = _devices(arguments.mesh, processes), arguments.net == "mlp"
    size = arguments.size or (14 if flat and "mnist" in arguments.data else None)
    splits = data.load(arguments.data, size=size, flat=flat, data_dir=arguments.data_dir)
    samples, *shape = splits.train.x.shape
    method = train.build(arguments, shape, int(splits.train.y.max()) + 1, samples)
    forms = arguments.forms or "auto"
    placed = method if mesh is None else sharding.place(method, mesh, forms=forms)
    results, state = {}, None
    shallow = train.shallow(arguments, method)
    out = _folder(arguments.out, arguments.overwrite)
    if shallow is not None:
        first = shallow if mesh is None else sharding.place(shallow, mesh)
        name = f"{method.name}, {arguments.shallow} hidden"
        history = out / f"history-shallow.{arguments.history}"
        folder = arguments.checkpoint
        folder = folder and folder.with_name(f"{folder.name}-shallow")
        results[name] = _fit(arguments, first, splits, history, "valid", checkpoint=folder)
        if _broken_off(arguments, results[name]):
            return _code(results)
        state = sharding.gathered(results[name].state)
        _, state = layerwise.grow(shallow, state, method.parts.network)
    history = out / f"history.{arguments.history}"
    results[method.name] = _fit(
        arguments, placed, splits, history, "valid", state, arguments.checkpoint
    )
    if _broken_off(arguments, results[method.name]):
        return _code(results)
    return _finish(out, vars(arguments), results, splits)


def run_demo(arguments: argparse.Namespace) -> int:
    """gsADMM with 2 subnetworks over 2 devices against end-to-end Adam, on the digits."""
    split = partial(sharding.place, mesh=_devices({"subnet": 2}))
    splits = data.load("digits", flat=True)
    net = jtssm.mlp([64, *[128] * 4, 10])
    shared: dict[str, Any] = {"optimizer": optax.adam(1e-3), "batch_size": 60}
    out = _folder(arguments.out, arguments.overwrite)
    arguments.seed, results = 0, {}
    for name, method in (
        ("gsADMM, 2 subnetworks on 2 devices", split(solvers.gsadmm(net, subnets=2, **shared))),
        ("Adam end to end on 1 device", solvers.sgd(net, **shared)),
    ):
        print(f"\n{name}: {arguments.epochs} epochs on {len(splits.train.y)} digits", flush=True)
        history = out / f"history-{method.name}.csv"
        results[name] = _fit(arguments, method, splits, history, "test")
    return _finish(out, {"command": "demo", "epochs": arguments.epochs}, results, splits)


def run_methods(_: argparse.Namespace) -> int:
    """A table of the training methods."""
    rows = []
    for name, builder in solvers.METHODS.items():
        options = [p for p in inspect.signature(builder).parameters if p != "net"]
        rows.append((name, (builder.__doc__ or "").split("\n")[0], ", ".join(options)))
    tables.show("Training methods", ("method", "what it is", "arguments"), rows)
    return 0


def run_data(arguments: argparse.Namespace) -> int:
    """A table of the data sets: which are there, what is missing and how to get it."""
    root = data.default_dir() if arguments.data_dir is None else Path(arguments.data_dir)
    rows = []
    for name, source in data.sources().items():
        absent = data.missing(name, root)
        rows.append((name, source.title, *_status(source, absent)))
    tables.show(f"Data sets in {root}", ("name", "what it is", "status", "how to get it"), rows)
    return 0


def _status(source: data.Source, absent: list[Path]) -> tuple[str, str]:
    if absent:
        return "missing: " + ", ".join(path.name for path in absent), source.obtain
    return ("there" if source.files else "embedded"), ""


def _connect(arguments: argparse.Namespace) -> None:
    """Meet the other processes of a run."""
    sharding.connect(
        arguments.coordinator,
        arguments.num_processes,
        arguments.process_id,
        lost_after=arguments.lost_after,
    )


def _devices(sizes: dict[str, int] | None, processes: int | None = 1):
    """The mesh; on a CPU first as many virtual devices as it needs, in each process its share.

    processes: None: as many as each has.
    """
    if sizes is None:
        return None
    if processes is not None:
        with suppress(RuntimeError):  # jax is in use: make_mesh says whether its devices suffice
            jax.config.update("jax_num_cpu_devices", -(-prod(sizes.values()) // processes))
    return sharding.make_mesh(*(sizes.get(axis, 1) for axis in AXES))


def _folder(out: Path, overwrite: bool) -> Path:
    """The folder for the results, which the first process makes and writes."""
    if as_first((out / "result.json").exists()) and not overwrite:
        raise ValueError(
            f"--out: expected a folder without an earlier run; {out} holds one: name another, or "
            f"add --overwrite"
        )
    if is_first():
        out.mkdir(parents=True, exist_ok=True)
    return out


def _fit(
    arguments, method: Method, splits, history: Path, watched: str, state: Any = None,
    checkpoint: Path | None = None,
) -> Result:  # fmt: skip
    names = ("every", "resume", "on_divergence", "halvings")
    ways = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    seen = data.Split(*(a[:EVALUATED] for a in splits.train))
    result = fit(
        method,
        splits.train,
        epochs=arguments.epochs,
        key=jax.random.key(arguments.seed),
        state=state,
        evaluate_every=getattr(arguments, "evaluate_every", 1),
        validation={"train": seen, watched: getattr(splits, watched)},
        callbacks=[
            HistoryFile(history, keep=checkpoint is not None),
            *_lines(arguments.epochs),
        ],
        checkpoint=checkpoint,
        **ways,
    )
    save_params(history.with_name(history.stem.replace("history", "params")), result.params)
    return result


def _lines(epochs: int) -> list[Callable[[Epoch], None]]:
    """Where no terminal shows a bar, about ten lines a run."""
    if sys.stderr.isatty() or not is_first():
        return []

    def line(epoch: Epoch) -> None:
        record = epoch.record
        if record["epoch"] % max(epochs // 10, 1) == 0:
            shown = (
                "loss",
                "coupling",
                *(("objective", "primal_residual", "c_k") * ("c_k" in record)),
            )
            names = [n for n in record if n in shown or n.endswith("_accuracy")]
            line = "  ".join(f"{name} {record[name]:.4g}" for name in names)
            print(f"epoch {record['epoch']}/{epochs}  {line}", flush=True)

    return [line]


def _finish(out: Path, settings: dict, results: dict[str, Result], splits: data.Splits) -> int:
    rows, report = [], {}
    for name, result in results.items():
        scores = evaluate(result.method, result.state, splits._asdict())
        seconds = [line["seconds"] for line in result.history]
        report[name] = scores | {"seconds": sum(seconds), "epochs": len(seconds)}
        rows.append((
            name, *(f"{scores[f'{part}_accuracy']:.4f}" for part in splits._fields),
            f"{scores['test_loss']:.4f}", f"{sum(seconds):.1f}",
        ))  # fmt: skip
    if is_first():
        _write(out, settings, results, report)
        columns = ("method", "train acc.", "valid acc.", "test acc.", "test loss", "seconds")
        tables.show(f"Accuracy of the composed network ({out}/history.png)", columns, rows)
        for result in results.values():
            if result.divergence is not None:
                print(f"jtssm: {result.divergence.message}", file=sys.stderr)
    return _code(results)


def _write(out: Path, settings: dict, results: dict[str, Result], report: dict) -> None:
    """The figure and result.json."""
    plot.histories(out / "history.png", {name: r.history for name, r in results.items()})
    about = {name: str(value) for name, value in settings.items() if name != "run"}
    versions = {
        "jtssm": jtssm.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
    device = str(jax.devices()[0].device_kind)
    document = {"settings": about, "versions": versions, "device": device, "results": report}
    (out / "result.json").write_text(json.dumps(document, indent=2) + "\n")


def _code(results: dict[str, Result]) -> int:
    """The exit code: as a shell gives it for the signal that ended a run."""
    for result in results.values():
        if result.interrupted:
            return 128 + (result.signal or signal.SIGINT)
    return 1 if any(result.divergence is not None for result in results.values()) else 0


def _broken_off(arguments, result: Result) -> bool:
    """Whether a signal ended a run that the same command can go on with; says so."""
    if not result.interrupted or arguments.checkpoint is None:
        return False
    print(
        f"jtssm: interrupted; the same command goes on from {arguments.checkpoint}", file=sys.stderr
    )
    return True


if __name__ == "__main__":
    sys.exit(main())
