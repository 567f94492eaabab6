"""The commands jtssm plan | sweep | calibrate: which mesh shape, before a machine is paid for."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import optax

import jtssm
from jtssm import checks, plot, solvers
from jtssm.cli import tables
from jtssm.cli.options import OPTIMIZERS
from jtssm.planning import plan, sweeps
from jtssm.planning.builders import LOCAL_STEPS, WORKERS
from jtssm.planning.trials import Record
from jtssm.sharding.cost.calibration import calibrate
from jtssm.sharding.cost.planner import Proposal

PASSED = ("subnets", "cuts", "local_steps", "schedule", "sweeps")  # to the method, if given
LISTED = 4  # shapes that do not go
CAUSES = ("permute", "all_gather", "reduce_scatter", "all_reduce", "all_to_all")


def run_plan(arguments: argparse.Namespace) -> int:
    """Print the fastest mesh, those that come next, and the Python that builds it."""
    asked = _asked(arguments)
    found = plan(**asked, runners_up=arguments.runners_up)
    rows = [_plan_row(each) for each in (found.best, *found.runners_up)]
    title = f"{_title(arguments)}: predicted for a step"
    columns = ("subnet x pr x pc", "seconds", "compute", *CAUSES, "hidden", "sent MB", "memory MB")
    tables.show(title, columns, rows)
    if found.refused:
        tables.say(
            f"{len(found.refused)} other meshes do not go; the first: {_first(found.refused)}"
        )
    tables.say("\n" + code(found.best, arguments))
    return 0


def _first(refused: dict) -> str:
    shape, why = next(iter(refused.items()))
    return f"{' x '.join(map(str, shape))}: {why}"


def _plan_row(found: Proposal) -> tuple[str, ...]:
    seconds = found.seconds
    parts = (seconds.total, seconds.compute, *(getattr(seconds, c) for c in CAUSES), seconds.hidden)
    sent = sweeps.sent_bytes(found)
    return (
        " x ".join(map(str, found.shape)), *(f"{s:.3g}" if s else "" for s in parts),
        f"{sent / 1e6:.3f}", f"{found.memory.total / 1e6:.1f}",
    )  # fmt: skip


def code(found: Proposal, arguments: argparse.Namespace) -> str:
    """Python that builds the method on its mesh."""
    named = arguments.widths is None
    net = (
        f'architectures.find_architecture("{arguments.net}")()'
        if named
        else f"jtssm.mlp({arguments.widths})"
    )
    given = {
        name: getattr(arguments, name) for name in PASSED if getattr(arguments, name) is not None
    }
    given |= {"batch_size": arguments.batch} if arguments.method != "pdadmm" else {}
    if arguments.method in WORKERS:
        num = found.method.parts.num
        given |= {WORKERS[arguments.method]: num, "batch_size": arguments.batch // num}
        given.setdefault("local_steps", LOCAL_STEPS)
    elif len(found.method.parts.starts) > 2 and arguments.method != "pdadmm":
        given.pop("subnets", None)
        given["cuts"] = list(found.cuts)
    options = [f"{name}={value!r}" for name, value in given.items()]
    if arguments.method != "pdadmm":
        options.insert(0, f"optimizer=optax.{arguments.optimizer}(1e-3)")
    forms = f", forms={list(found.forms)}" if found.forms and found.shape[1] > 1 else ""
    return (
        "import jtssm\nimport optax\nfrom jtssm import architectures, sharding, solvers\n\n"
        f"net = {net}\nmethod = solvers.{arguments.method}(net, {', '.join(options)})\n"
        f"mesh = sharding.make_mesh{found.shape}\n"
        f"placed = sharding.place(method, mesh{forms})\n"
    )


def run_sweep(arguments: argparse.Namespace) -> int:
    """Predict, count and measure every mesh shape; a table, CSV, JSON and a figure."""
    out = _folder(arguments)
    with suppress(RuntimeError):  # jax is in use: shapes are counted if its devices suffice
        if arguments.count or arguments.measure:
            jax.config.update("jax_num_cpu_devices", arguments.devices)
    asked = _asked(arguments)
    records = sweeps.sweep(
        **asked, count=arguments.count, measure=arguments.measure, topology=arguments.compile,
        resume=out / "records.jsonl",
    )  # fmt: skip
    _write(out, arguments, records)
    _show(records, arguments, out)
    plot.shapes(out / "sweep.png", records, _title(arguments))
    return 1 if any(r.get("agrees") is False for r in records) else 0


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    checks.one_of("--optimizer", arguments.optimizer, OPTIMIZERS)
    checks.one_of("--method", arguments.method, list(solvers.METHODS))
    options = {
        name: getattr(arguments, name) for name in PASSED if getattr(arguments, name) is not None
    }
    net = arguments.net if arguments.widths is None else jtssm.mlp(arguments.widths)
    return {
        "net": net, "num_devices": arguments.devices, "batch": arguments.batch,
        "machine": arguments.machine, "method": arguments.method,
        "optimizer": getattr(optax, arguments.optimizer)(1e-3), "memory_limit": arguments.memory_limit,
        "overlap": arguments.overlap, "samples": arguments.samples, **options,
    }  # fmt: skip


def _title(arguments: argparse.Namespace) -> str:
    net = arguments.net if arguments.widths is None else f"mlp {arguments.widths}"
    where = f"{arguments.devices} x {arguments.machine}"
    return f"{arguments.method} on {net}, batch {arguments.batch}, {where}"


def _folder(arguments: argparse.Namespace) -> Path:
    out: Path = arguments.out
    records = out / "records.jsonl"
    if records.exists() and not (arguments.overwrite or arguments.resume):
        raise ValueError(
            f"--out: expected a folder without an earlier sweep; {out} holds one: name another, or add "
            f"--resume or --overwrite"
        )
    out.mkdir(parents=True, exist_ok=True)
    if arguments.overwrite:
        records.unlink(missing_ok=True)
    return out


def _write(out: Path, arguments: argparse.Namespace, records: list[Record]) -> None:
    """sweep.csv and sweep.json."""
    names = dict.fromkeys(name for record in records for name in record)
    with (out / "sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(records)
    about = {k: str(v) for k, v in vars(arguments).items() if k != "run"}
    versions = {"jtssm": jtssm.__version__, "jax": jax.__version__}
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    document = {"settings": about, "versions": versions, "device": device, "records": records}
    (out / "sweep.json").write_text(json.dumps(document, indent=1) + "\n")


def _show(records: list[Record], arguments: argparse.Namespace, out: Path) -> None:
    """The table; marks the best."""
    columns = [
        "",
        "subnet x pr x pc",
        "predicted s",
        "compute",
        *CAUSES,
        "sent MB",
        "counted MB",
        "memory MB",
    ]
    columns += ["compiled MB"] if arguments.count else []
    columns += ["measured s"] if arguments.measure else []
    columns += [f"{arguments.compile} MB", "its MB sent"] if arguments.compile else []
    rows, failed = [], []
    for record in records:
        if "seconds" not in record:
            failed.append(f"{record['mesh']}: {record['error']}")
            continue
        rows.append(_sweep_row(record, arguments))
        if "error" in record:
            failed.append(f"{record['mesh']}: {record['error']}")
    tables.show(f"{_title(arguments)} ({out}/sweep.csv, .json, .png)", columns, rows)
    for line in failed[:LISTED]:
        tables.say(f"does not go: {line}")
    if len(failed) > LISTED:
        tables.say(f"nor do {len(failed) - LISTED} more: {out}/sweep.csv says why")
    if differ := [r["mesh"] for r in records if r.get("agrees") is False]:
        print(f"jtssm: predicted and counted bytes differ for {', '.join(differ)}", file=sys.stderr)


def _sweep_row(record: Record, arguments: argparse.Namespace) -> tuple[str, ...]:
    shown = lambda value: "" if not value else f"{value:.3g}"
    mega = lambda name: f"{record[name] / 1e6:.3f}" if name in record else ""
    compute = record["seconds_products"] + record["seconds_optimizer"]
    row = [
        "best" if record["best"] else "", record["mesh"], shown(record["seconds"]), shown(compute),
        *(shown(record[f"seconds_{cause}"]) for cause in CAUSES), mega("bytes_sent"),
        mega("counted_sent"), mega("memory"),
    ]  # fmt: skip
    row += [mega("compiled_memory")] if arguments.count else []
    row += [shown(record.get("measured_seconds"))] if arguments.measure else []
    row += [mega("topology_memory"), mega("topology_counted_sent")] if arguments.compile else []
    return tuple(row)


def run_calibrate(arguments: argparse.Namespace) -> int:
    """Measure the present devices and write a machine file."""
    with suppress(RuntimeError):
        if arguments.devices:
            jax.config.update("jax_num_cpu_devices", arguments.devices)
    found = calibrate(arguments.file)
    rows = [(name, str(value)) for name, value in found._asdict().items()]
    tables.show(f"Machine file {arguments.file}", ("field", "value"), rows)
    return 0
