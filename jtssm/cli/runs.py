"""The commands jtssm train METHOD | demo: train, and write what came of it."""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path

import jax
import optax

import jtssm
from jtssm import checks, data, files, plot, sharding, solvers
from jtssm.arrays import Tree
from jtssm.cli import samples, tables, train
from jtssm.cli.results import FIGURE, MARK, RESULT, Mark, drawn, figures, unfinished
from jtssm.cli.results import folder as results_folder
from jtssm.protocol.method import Method
from jtssm.sharding.distributed import is_first
from jtssm.sharding.mesh import AXES
from jtssm.solvers import layerwise
from jtssm.train.evaluation import evaluate
from jtssm.train.history import HistoryFile
from jtssm.train.loop import fit
from jtssm.train.result import Epoch, Result
from jtssm.train.written import save_params

EVALUATED = 10_000  # training samples on which the composed network is evaluated every epoch
LINES = ("loss", "coupling")  # of a record, beside the accuracies
CERTIFICATE = ("objective", "primal_residual", "c_k")  # of a method that has one


def run_train(arguments: argparse.Namespace) -> int:
    """Train, write history, weights, figure and result, print a table."""
    train.complete(arguments)
    mesh = _mesh(arguments)
    parts = samples.load(arguments)
    method = train.build(arguments, parts["train"])
    samples.check(method, parts)
    forms = arguments.forms or "auto"
    placed = method if mesh is None else sharding.place(method, mesh, forms=forms)
    shallow = train.shallow(arguments, method)
    out = _folder(arguments, ("",) if shallow is None else ("-shallow", ""))
    results, state = {}, None
    if shallow is not None:
        first = shallow if mesh is None else sharding.place(shallow, mesh)
        result = _stage(arguments, first, parts, out, part="-shallow")
        results[f"{method.name}, {arguments.shallow} hidden"] = result
        if _broken_off(arguments, result):
            return _code(results)
        _, state = layerwise.grow(shallow, sharding.gathered(result.state), method.network)
    results[method.name] = _stage(arguments, placed, parts, out, state)
    if _broken_off(arguments, results[method.name]):
        return _code(results)
    return _finish(out, vars(arguments), results, parts)


def run_demo(arguments: argparse.Namespace) -> int:
    """gsADMM with 2 subnetworks over 2 devices against end-to-end Adam, on the digits."""
    checks.count(**{"--epochs": arguments.epochs})
    split = partial(sharding.place, mesh=_devices({"subnet": 2}))
    parts = data.load("digits", flat=True)._asdict()
    net, adam = jtssm.mlp([64, *[128] * 4, 10]), optax.adam(1e-3)
    ours = split(solvers.gsadmm(net, subnets=2, optimizer=adam, batch_size=60))
    methods = {
        "gsADMM, 2 subnetworks on 2 devices": ours,
        "Adam end to end on 1 device": solvers.sgd(net, optimizer=adam, batch_size=60),
    }
    out, results = _folder(arguments, [f"-{method.name}" for method in methods.values()]), {}
    for name, method in methods.items():
        print(f"\n{name}: {arguments.epochs} epochs on {len(parts['train'].y)} digits", flush=True)
        results[name] = fit(
            method,
            parts["train"],
            epochs=arguments.epochs,
            key=jax.random.key(0),
            validation=_evaluated(parts, "test"),
            callbacks=[
                Mark(out, None),
                HistoryFile(out / f"history-{method.name}.csv"),
                *lines(arguments.epochs),
            ],
        )
        save_params(out / f"params-{method.name}.npz", results[name].params)
    return _finish(out, {"command": "demo", "epochs": arguments.epochs}, results, parts)


def _mesh(arguments: argparse.Namespace) -> jax.sharding.Mesh | None:
    """The mesh of a run, over the devices of all processes, which meet first."""
    if train.several(arguments):
        sharding.connect(
            arguments.coordinator,
            arguments.num_processes,
            arguments.process_id,
            lost_after=arguments.lost_after,
        )
    # what jax finds by itself has its devices already: on CPUs JAX_NUM_CPU_DEVICES says how many
    processes = None if arguments.distributed else arguments.num_processes or 1
    return None if arguments.mesh is None else _devices(arguments.mesh, processes)


def _devices(sizes: Mapping[str, int], processes: int | None = 1) -> jax.sharding.Mesh:
    """The mesh; on a CPU first as many virtual devices as it needs, in each process its share.

    processes: None: as many as each has.
    """
    if processes is not None:
        with suppress(RuntimeError):  # jax is in use: make_mesh says whether its devices suffice
            jax.config.update("jax_num_cpu_devices", -(-prod(sizes.values()) // processes))
    return sharding.make_mesh(*(sizes.get(axis, 1) for axis in AXES))


def _folder(arguments: argparse.Namespace, suffixes: Sequence[str]) -> Path:
    """The folder for the results; suffixes: what files of the run bear behind their names."""
    history = getattr(arguments, "history", "csv")
    files_of = lambda end: (f"history{end}.{history}", f"params{end}.npz", f"params{end}.json")
    names = [name for end in suffixes for name in files_of(end)]
    checkpoint = getattr(arguments, "checkpoint", None)
    return results_folder(
        arguments.out,
        [*names, *figures(FIGURE), RESULT, MARK],
        overwrite=arguments.overwrite,
        goes_on=lambda out: unfinished(out, checkpoint),
    )


def _stage(
    arguments: argparse.Namespace,
    method: Method,
    parts: samples.Parts,
    out: Path,
    state: Tree = None,
    part: str = "",
) -> Result:
    """Train one method of a run; part: what its files bear behind their names."""
    folder = arguments.checkpoint
    if folder is not None and part:
        folder = folder.with_name(f"{folder.name}{part}")
    history = HistoryFile(out / f"history{part}.{arguments.history}")
    result = fit(
        method,
        parts["train"],
        epochs=arguments.epochs,
        key=jax.random.key(arguments.seed),
        state=state,
        evaluate_every=arguments.evaluate_every,
        validation=_evaluated(parts, "valid"),
        callbacks=[Mark(out, arguments.checkpoint), history, *lines(arguments.epochs)],
        checkpoint=folder,
        compilation_cache=arguments.compilation_cache,
        every=arguments.every,
        resume=arguments.resume,
        on_divergence=arguments.on_divergence,
        halvings=arguments.halvings,
    )
    save_params(out / f"params{part}.npz", result.params)
    return result


def _evaluated(parts: samples.Parts, watched: str) -> dict[str, data.Split]:
    """What each line of the history evaluates."""
    seen = data.Split(*(a[:EVALUATED] for a in parts["train"]))
    return {"train": seen} | {name: parts[name] for name in (watched,) if name in parts}


def lines(epochs: int) -> list[Callable[[Epoch], None]]:
    """Where no terminal shows a bar, about ten lines a run."""
    if sys.stderr.isatty() or not is_first():
        return []

    def line(epoch: Epoch) -> None:
        record = epoch.record
        if record["epoch"] % max(epochs // 10, 1) == 0:
            shown = (*LINES, *(CERTIFICATE if "c_k" in record else ()))
            names = [n for n in record if n in shown or n.endswith("_accuracy")]
            line = "  ".join(f"{name} {record[name]:.4g}" for name in names)
            print(f"epoch {record['epoch']}/{epochs}  {line}", flush=True)

    return [line]


def _finish(
    out: Path, settings: Mapping[str, object], results: dict[str, Result], parts: samples.Parts
) -> int:
    """Judge each result anew, write and show what came of them."""
    rows, report, last = [], {}, list(parts)[-1]
    for name, result in results.items():
        scores = evaluate(result.method, result.state, parts)
        seconds = [line["seconds"] for line in result.history]
        report[name] = scores | {"seconds": sum(seconds), "epochs": len(seconds)}
        rows.append(
            (
                name,
                *(_accuracy(result.method, scores[f"{part}_accuracy"]) for part in parts),
                f"{scores[f'{last}_loss']:.4f}",
                f"{sum(seconds):.1f}",
            )
        )
    if is_first():
        _write(out, settings, results, report)
        columns = ("method", *(f"{part} acc." for part in parts), f"{last} loss", "seconds")
        tables.show(f"Accuracy of the composed network ({out}/{FIGURE})", columns, rows)
        for result in results.values():
            if result.divergence is not None:
                print(f"jtssm: {result.divergence.message}", file=sys.stderr)
    return _code(results)


def _accuracy(method: Method, share: float) -> str:
    """A share, of a loss that knows what is right."""
    return f"{share:.4f}" if share or method.loss.labels else ""


def _write(
    out: Path, settings: Mapping[str, object], results: dict[str, Result], report: dict[str, dict]
) -> None:
    """result.json, then the figure, which may fail; with both the run is complete."""
    about = {name: str(value) for name, value in settings.items() if name != "run"}
    versions = {
        "jtssm": jtssm.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
    device = str(jax.devices()[0].device_kind)
    document = {"settings": about, "versions": versions, "device": device, "results": report}
    with files.replacing(out / RESULT) as new:
        new.write_text(json.dumps(document, indent=2) + "\n")
    (out / MARK).unlink(missing_ok=True)
    histories = {name: r.history for name, r in results.items()}
    drawn(out / FIGURE, lambda path: plot.histories(path, histories))


def _code(results: dict[str, Result]) -> int:
    """The exit code: as a shell gives it for the signal that ended a run."""
    for result in results.values():
        if result.interrupted:
            return 128 + (result.signal or signal.SIGINT)
    return 1 if any(result.divergence is not None for result in results.values()) else 0


def _broken_off(arguments: argparse.Namespace, result: Result) -> bool:
    """Whether a signal ended a run that the same command can go on with; says so."""
    if not result.interrupted or arguments.checkpoint is None:
        return False
    print(
        f"jtssm: interrupted; the same command goes on from {arguments.checkpoint}", file=sys.stderr
    )
    return True
