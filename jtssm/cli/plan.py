"""jtssm plan METHOD | sweep METHOD | calibrate: which mesh shape, before a machine is paid for."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from math import inf
from pathlib import Path
from typing import Any

import jax

import jtssm
from jtssm import checks, files, plot, solvers
from jtssm.cli import outside, tables
from jtssm.cli.constructors import given, takes
from jtssm.cli.results import drawn, figures, folder
from jtssm.nn.network import Network
from jtssm.planning import fitted_here, plan, sweeps
from jtssm.planning.builders import LOCAL_STEPS, as_network, workers_argument
from jtssm.planning.trials import Record
from jtssm.protocol.optimizers import Told, optimizer
from jtssm.sharding.cost.calibration import calibrate
from jtssm.sharding.cost.machine_files import write_machine
from jtssm.sharding.cost.messages import Sizes
from jtssm.sharding.cost.planner import Proposal
from jtssm.sharding.cost.refusals import distinct

RATE = 1e-3  # of optimizers, of which only the kind counts here
RECORDS = "records.jsonl"
CAUSES = ("permute", "all_gather", "reduce_scatter", "all_reduce", "all_to_all")
HELD = ("weights", "optimizer", "variables", "samples", "temporaries")  # parts of a device's memory


def run_plan(arguments: argparse.Namespace) -> int:
    """Print the fastest mesh, those that come next, and the Python that builds it."""
    asked = _asked(arguments)
    found = plan(**asked, runners_up=arguments.runners_up)
    rows = [_plan_row(each) for each in (found.best, *found.runners_up)]
    title = f"{_title(arguments)}: predicted for a step"
    columns = ("subnet x pr x pc", "ms", "compute", *CAUSES, "hidden", "sent MB", "holds MB", *HELD)
    tables.show(title, columns, rows)
    tables.say("ms: of a step; MB: of one device, of which it holds weights, ... at once (a bound)")
    if found.refused:
        tables.say(f"{len(found.refused)} other meshes do not go:")
        _say_why({_mesh(sizes): why for sizes, why in found.refused.items()})
    tables.say("\n" + code(found.best, arguments))
    return 0


def _mesh(sizes: Sizes) -> str:
    return " x ".join(map(str, sizes))


def _say_why(refused: Mapping[str, str]) -> None:
    """The distinct reasons why meshes do not go, those of the most plausible first."""
    for line in distinct(refused):
        tables.say(f"does not go: {line}")


def _plan_row(found: Proposal) -> tuple[str, ...]:
    seconds = found.seconds
    parts = (seconds.total, seconds.compute, *(getattr(seconds, c) for c in CAUSES), seconds.hidden)
    sent = sweeps.sent_bytes(found)
    held = [getattr(found.memory, part) for part in HELD]
    return (
        _mesh(found.shape),
        *(_shown(s) for s in parts),
        f"{sent / 1e6:.3f}",
        f"{found.memory.total / 1e6:.1f}",
        *(f"{a / 1e6:.1f}" if a >= 5e4 else "" for a in held),
    )


def code(found: Proposal, arguments: argparse.Namespace) -> str:
    """Python that builds the method on its mesh."""
    imports, net = _made(arguments)
    options = [f"{name}={_written(value)}" for name, value in _options(found, arguments).items()]
    if takes(solvers.METHODS[arguments.method], "optimizer"):
        options.insert(0, f"optimizer=optax.{arguments.optimizer}({RATE})")
    if arguments.loss is not None:
        more, loss = _named(arguments.loss)
        imports, options = imports + more, [*options, f"loss={loss}"]
    forms = f", forms={list(found.forms)}" if found.forms and found.shape[1] > 1 else ""
    return (
        f"import jtssm\nimport optax\n{imports}from jtssm import nn, sharding, solvers\n\n"
        f"net = {net}\nmethod = solvers.{arguments.method}({', '.join(['net', *options])})\n"
        f"mesh = sharding.make_mesh{found.shape}\n"
        f"placed = sharding.place(method, mesh{forms})\n"
    )


def _made(arguments: argparse.Namespace) -> tuple[str, str]:
    """(import of the user's module, if it is one; Python that makes the network)."""
    if arguments.widths is not None:
        return "", f"jtssm.mlp({arguments.widths})"
    if ":" not in arguments.net:
        return "", f'nn.find_architecture("{arguments.net}")()'
    imports, function = _named(arguments.net)
    return imports, f"{function}()"


def _named(word: str) -> tuple[str, str]:
    """package.module:name, or a name alone, as (import, Python)."""
    module, _, name = word.rpartition(":")
    return (f"import {module}\n", f"{module}.{name}") if module else ("", repr(word))


def _written(value: object) -> str:
    """A value as Python writes it where jtssm.solvers and optax are at hand."""
    if isinstance(value, Told):
        words = (f"{name}={each!r}" for name, each in value.arguments.items())
        return f"optax.{value.name}({', '.join(words)})"
    return f"solvers.{value!r}" if is_dataclass(value) else repr(value)


def _options(found: Proposal, arguments: argparse.Namespace) -> dict[str, object]:
    """What the constructor is called with: what is given, and what the mesh says."""
    make = solvers.METHODS[arguments.method]
    options: dict[str, object] = given(arguments, make)
    if workers := workers_argument(make):
        _, num, _ = found.method.batch_shape or (0, 1, 0)
        options |= {workers: num, "batch_size": arguments.batch // num}
        return {"local_steps": LOCAL_STEPS} | options
    if takes(make, "batch_size"):
        options["batch_size"] = found.method.program.batch.size
    if takes(make, "cuts") and found.method.program.stages.cuts:
        for name in ("subnets", "balance"):
            options.pop(name, None)
        options["cuts"] = list(found.cuts)
    return options


def run_sweep(arguments: argparse.Namespace) -> int:
    """Predict, count and measure every mesh shape; a table, CSV, JSON and a figure."""
    out = _folder(arguments)
    with suppress(RuntimeError):  # jax is in use: shapes are counted if its devices suffice
        if arguments.count or arguments.measure:
            jax.config.update("jax_num_cpu_devices", arguments.devices)
    asked = _asked(arguments)
    records = sweeps.sweep(
        **asked,
        count=arguments.count,
        measure=arguments.measure,
        topology=arguments.compile,
        resume=out / RECORDS,
    )
    _write(out, arguments, records)
    _show(records, arguments, out)
    drawn(out / "sweep.png", lambda path: plot.shapes(path, records, _title(arguments)))
    return 1 if any(r.get("agrees") is False for r in records) else 0


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `plan` and `sweep` are called with."""
    make = solvers.METHODS[arguments.method]
    asked = given(arguments, make)
    if takes(make, "optimizer"):
        asked["optimizer"] = optimizer(arguments.optimizer, learning_rate=RATE)
    if arguments.loss is not None:
        asked["loss"] = outside.loss(arguments.loss)
    return asked | {
        "net": _network(arguments),
        "num_devices": arguments.devices,
        "batch": arguments.batch,
        "machine": arguments.machine,
        "method": arguments.method,
        "overlap": arguments.overlap,
        "memory_limit": arguments.memory_limit,
        "samples": arguments.samples,
    }


def _network(arguments: argparse.Namespace) -> Network | str:
    """The network, or its name."""
    if arguments.widths is not None:
        return jtssm.mlp(arguments.widths)
    return _named_network(arguments.net)


def _named_network(name: str) -> Network | str:
    return outside.network(name, {}) if ":" in name else name


def _title(arguments: argparse.Namespace) -> str:
    net = arguments.net if arguments.widths is None else f"mlp {arguments.widths}"
    where = f"{arguments.devices} x {arguments.machine}"
    return f"{arguments.method} on {net}, batch {arguments.batch}, {where}"


def _folder(arguments: argparse.Namespace) -> Path:
    """The folder for the results; --resume goes on with the records that stand there."""
    names = [RECORDS, "sweep.csv", "sweep.json", *figures("sweep.png")]
    goes_on = lambda out: arguments.resume and (out / RECORDS).is_file()
    out = folder(arguments.out, names, overwrite=arguments.overwrite, goes_on=goes_on, what="sweep")
    if arguments.overwrite:
        (out / RECORDS).unlink(missing_ok=True)
    return out


def _write(out: Path, arguments: argparse.Namespace, records: list[Record]) -> None:
    """sweep.csv and sweep.json."""
    names = dict.fromkeys(name for record in records for name in record)
    with files.replacing(out / "sweep.csv") as new, new.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(records)
    about = {k: str(v) for k, v in vars(arguments).items() if k != "run"}
    versions = {"jtssm": jtssm.__version__, "jax": jax.__version__}
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    document = {"settings": about, "versions": versions, "device": device, "records": records}
    with files.replacing(out / "sweep.json") as new:
        new.write_text(json.dumps(document, indent=1) + "\n")


def _show(records: list[Record], arguments: argparse.Namespace, out: Path) -> None:
    """The table, with the best marked, and the shapes that do not go."""
    columns = [
        "",
        "subnet x pr x pc",
        "predicted ms",
        "compute",
        *CAUSES,
        "sent MB",
        "counted MB",
        "memory MB",
    ]
    columns += ["compiled MB"] if arguments.count else []
    columns += ["measured ms"] if arguments.measure else []
    columns += [f"{arguments.compile} MB", "its MB sent"] if arguments.compile else []
    rows = [_sweep_row(record, arguments) for record in records if "seconds" in record]
    failed = [record for record in records if "error" in record]
    failed.sort(key=lambda record: record.get("memory_missing", inf))
    tables.show(f"{_title(arguments)} ({out}/sweep.csv, .json, .png)", columns, rows)
    _say_why({record["mesh"]: record["error"] for record in failed})
    if differ := [r["mesh"] for r in records if r.get("agrees") is False]:
        print(f"jtssm: predicted and counted bytes differ for {', '.join(differ)}", file=sys.stderr)


def _sweep_row(record: Record, arguments: argparse.Namespace) -> tuple[str, ...]:
    compute = record["seconds_products"] + record["seconds_optimizer"]
    row = [
        "best" if record["best"] else "",
        record["mesh"],
        _shown(record["seconds"]),
        _shown(compute),
        *(_shown(record[f"seconds_{cause}"]) for cause in CAUSES),
        _mega(record, "bytes_sent"),
        _mega(record, "counted_sent"),
        _mega(record, "memory"),
    ]
    row += [_mega(record, "compiled_memory")] if arguments.count else []
    row += [_shown(record.get("measured_seconds"))] if arguments.measure else []
    if arguments.compile:
        row += [_mega(record, "topology_memory"), _mega(record, "topology_counted_sent")]
    return tuple(row)


def _shown(seconds: float | None) -> str:
    """In milliseconds."""
    return f"{1000 * seconds:.3g}" if seconds else ""


def _mega(record: Record, name: str) -> str:
    return f"{record[name] / 1e6:.3f}" if name in record else ""


def run_calibrate(arguments: argparse.Namespace) -> int:
    """Measure the present devices and write a machine file."""
    if (arguments.net is None) != (arguments.batch is None):
        raise ValueError("--net, --batch: expected both, e.g. --net decoder --batch 64, or neither")
    with suppress(RuntimeError):
        if arguments.devices is not None:
            checks.count(**{"--devices": arguments.devices})
            jax.config.update("jax_num_cpu_devices", arguments.devices)
    # refused before anything is measured
    net = None if arguments.net is None else as_network(_named_network(arguments.net))
    if net is not None:
        checks.count(**{"--batch": arguments.batch})
    found = calibrate(arguments.file)
    if net is not None:
        found = fitted_here(net, arguments.batch, found)
        write_machine(found, arguments.file)
    rows = [(name, str(value)) for name, value in asdict(found).items()]
    tables.show(f"Machine file {arguments.file}", ("field", "value"), rows)
    return 0
