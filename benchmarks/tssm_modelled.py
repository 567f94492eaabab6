"""When would splitting pay? Modelled seconds on machines that are not at hand.

Streaming gsADMM against data parallel and against a synchronous pipeline (`solvers.pipeline`, 1F1B, any
number of microbatches), on 2 to 16 devices, for the machines of `jtssm.sharding.cost.seconds`: seconds an
epoch, and to given held-out accuracies, with the epochs that each method really needed in
benchmarks.tssm_tradeoff (data parallel and the pipeline: those of end-to-end Adam, whose numbers they
have). Bytes and products are what the methods declare, which tests hold equal to the traced and the
compiled program. Also a wide network, seconds a step alone. The assumptions are printed. Nothing here
was measured on those machines.

    python -m benchmarks.tssm_modelled [--smoke]

Seconds. Reads benchmarks/results/tssm_tradeoff.json. Last result: benchmarks/results/tssm_modelled.json.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from typing import Any

import optax

import jtssm
from benchmarks import record
from benchmarks.tssm_tradeoff import ADAM, WHOLE
from jtssm import sharding, solvers
from jtssm.sharding import cost

SAMPLES = 55_000
DEVICES = (2, 4, 5, 8, 10, 16)
MACHINES = ("tpu-v5e", "h100-nvlink", "h100-ethernet")


def main() -> None:
    """Model, print, write the JSON."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument("--smoke", action="store_true", help="made-up accuracies, no result file")
    parse.add_argument("--targets", type=float, nargs="+", default=[0.97, 0.98])
    given = parse.parse_args()
    curves = _curves(given.smoke)
    print("assumptions:", " ".join((cost.seconds.__doc__ or "").split()))
    report: dict[str, Any] = {"targets": given.targets}
    for machine in (sharding.MACHINES[name] for name in MACHINES):
        print(f"\n{machine.name}: {machine.source}")
        small = [_row(machine, 512, 110, d, curves, given.targets) for d in DEVICES]
        wide = [_row(machine, 4096, 1100, d, {}, []) for d in DEVICES]
        report[machine.name] = {"512 wide, batch 110": small, "4096 wide, batch 1100": wide}
        _show("512 wide, batch 110", small)
        _show("4096 wide, batch 1100", wide)
    if not given.smoke:
        print(record.write("tssm_modelled", "benchmarks.tssm_modelled", report))


def _curves(smoke: bool) -> dict[str, list[float]]:
    """Mean held-out accuracy after each epoch, by line of the trade-off table."""
    if smoke:
        return {name: [0.9, 0.975, 0.985] for name in (ADAM, *map(WHOLE, (2, 4, 5, 8, 10)))}
    results = json.loads((record.RESULTS / "tssm_tradeoff.json").read_text())["results"]
    return {name: line["valid_accuracy_by_epoch"] for name, line in results.items()}


def _net(width: int) -> jtssm.nn.Network:
    return jtssm.mlp([196, *[width] * 9, 10])


@cache  # for every machine; the model's optimizer is Adam whatever stands here, and this is tried sooner
def _method(name: str, width: int, batch: int, **options: int) -> jtssm.protocol.Method:
    make = solvers.METHODS[name]
    return make(_net(width), optimizer=optax.sgd(1e-3), batch_size=batch, **options)


def _row(machine, width, batch, devices, curves, targets) -> dict:
    """What each kind takes on that many devices, with every mesh and number of microbatches."""
    net = _net(width)
    lines = list(_lines(net, batch, machine, devices))
    for line in lines:
        steps, curve = SAMPLES // batch, curves.get(line.pop("epochs_of"), [])
        line["epoch_seconds"] = steps * line["step_seconds"]
        for target in targets:
            epochs = next((e for e, a in enumerate(curve, 1) if a >= target), None)
            ticks = None if epochs is None else epochs * steps + line["delay"]
            line[f"seconds_to_{target}"] = ticks and ticks * line["step_seconds"]
    return {"devices": devices, "lines": lines}


def _lines(net, batch, machine, devices):
    width = net.shapes[1][0]
    plain = _method("sgd", width, batch)
    yield _line("one device", "1 x 1", sharding.step_seconds(plain, machine))
    if batch % devices == 0:
        seconds = sharding.step_seconds(plain, machine, pc=devices)
        yield _line("data parallel", f"1 x {devices}", seconds)
    for pc in (p for p in range(1, devices + 1) if devices % p == 0 and batch % p == 0):
        stages, mesh = devices // pc, f"{devices // pc} x {pc}"
        if not 2 <= stages <= len(net.layers):
            continue
        # in minibatches, as those that the epochs were counted with
        method = _method("gsadmm", width, batch, subnets=stages, microbatches=1)
        seconds = sharding.step_seconds(method, machine, subnet=stages, pc=pc)
        delay = max(solvers.delays(stages))
        yield _line("gsADMM", mesh, seconds, epochs_of=WHOLE(stages), delay=delay)
        for m in (m for m in range(2, 23) if batch // pc % m == 0):
            made = _method("pipeline", width, batch, subnets=stages, microbatches=m)
            seconds = sharding.step_seconds(made, machine, subnet=stages, pc=pc)
            yield _line("pipeline", mesh, seconds, microbatches=m)


def _line(kind, mesh, seconds: cost.Seconds, epochs_of=ADAM, delay=0, microbatches=None) -> dict:
    parts = {f"{name}_seconds": getattr(seconds, name) for name in ("compute", "messages")}
    return {
        "kind": kind,
        "mesh": mesh,
        "microbatches": microbatches,
        "delay": delay,
        "epochs_of": epochs_of,
        "step_seconds": seconds.total,
        **parts,
    }


def _show(title: str, rows: list[dict]) -> None:
    """The fastest mesh of each kind."""
    print(f"  {title}: subnetworks or stages x batch split, ms a step (of it messages)")
    fastest = lambda lines, kind: min(
        (line for line in lines if line["kind"] == kind),
        key=lambda a: a["step_seconds"],
        default=None,
    )
    for row in rows:
        lines = row["lines"]
        kinds = ("one device", "data parallel", "gsADMM", "pipeline")
        best = {kind: fastest(lines, kind) for kind in kinds}
        print(f"   {row['devices']} devices")
        for line in filter(None, best.values()):
            sent = line["messages_seconds"]
            m = f", m = {line['microbatches']}" if line["microbatches"] else ""
            ends = [
                f"to {name.removeprefix('seconds_to_')}: {'never' if s is None else f'{s:.3f} s'}"
                for name, s in line.items()
                if name.startswith("seconds_to")
            ]
            took = f"{1e3 * line['step_seconds']:.3f} ({1e3 * sent:.3f})"
            print(f"    {line['kind'] + ' ' + line['mesh'] + m:28} {took:18} {'  '.join(ends)}")


if __name__ == "__main__":
    main()
