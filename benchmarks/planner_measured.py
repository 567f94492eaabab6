"""How well do predicted seconds of mesh shapes meet measured ones, on the devices at hand?

The devices are measured first (`calibrate`); then, for small networks and several methods, every shape
subnet x pr x pc that goes: the seconds of a step that the planner predicts for the forms it chooses, the
median seconds of that step as it runs, and their ratio. In each case, too: do predictions rank shapes as
measurements do (Spearman's rho, Kendall's tau), and how much slower than the fastest measured shape is
the one that the planner would take? Virtual devices of a CPU share its cores, and messages between them
are copies that wait for threads: what is measured there is the model's arithmetic more than a machine.
gsadmm and ist have as many subnetworks as "subnet" has devices: their shapes differ in work, too.
Other work on the machine should rest meanwhile.

    python -m benchmarks.planner_measured [--devices 8] [--smoke]

Four minutes on 2 cores. Last result: benchmarks/results/planner_measured.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from math import exp, log
from statistics import mean
from typing import Any, NamedTuple

import jax
import optax
from scipy import stats

import jtssm
from benchmarks import record
from examples import language_model
from jtssm import nn, sharding


class Case(NamedTuple):
    """What is swept."""

    net: nn.Network
    method: str
    batch: int
    options: dict[str, Any]


def cases(smoke: bool) -> dict[str, Case]:
    """By name."""
    if smoke:
        return {"mlp": Case(jtssm.mlp([16, 32, 32, 8]), "sgd", 16, {})}
    mlp, wide = jtssm.mlp([784, 512, 512, 512, 10]), jtssm.mlp([784, 2048, 2048, 10])
    convnet = nn.convnet((28, 28, 1), 10)
    decoder = nn.decoder(4, width=128, heads=8, sequence=64, vocabulary=256)
    return {
        "mlp 784-512-512-512-10, sgd, batch 64": Case(mlp, "sgd", 64, {}),
        "mlp 784-512-512-512-10, sgd, batch 2048": Case(mlp, "sgd", 2048, {}),
        "mlp 784-2048-2048-10, sgd, batch 128": Case(wide, "sgd", 128, {}),
        "convnet 28 x 28, sgd, batch 64": Case(convnet, "sgd", 64, {}),
        "convnet 28 x 28, sgd, batch 4": Case(convnet, "sgd", 4, {}),
        "mlp 784-7 x 256-10, gsadmm, batch 512": Case(
            jtssm.mlp([784, *[256] * 7, 10]), "gsadmm", 512, {"microbatches": 1}
        ),
        "mlp 784-512-512-10, ist, batch 512": Case(
            jtssm.mlp([784, 512, 512, 10]), "ist", 512, {"local_steps": 4}
        ),
        "decoder, 4 blocks of 128, 64 bytes, sgd, batch 32": Case(decoder, "sgd", 32, {}),
        "decoder, 4 blocks of 128, 64 bytes, gsadmm, batch 32": Case(
            decoder, "gsadmm", 32, {"microbatches": 1}
        ),
        "language model of flax modules, 32 bytes, sgd, batch 64": Case(
            language_model.network(), "sgd", 64, {}
        ),
    }


def main() -> None:
    """Measure the devices, then every case; write the JSON."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument(
        "--devices", type=int, default=8, help="virtual ones, where there is a CPU alone"
    )
    parse.add_argument(
        "--smoke", action="store_true", help="seconds, not calibrated, no result file"
    )
    given = parse.parse_args()
    with suppress(RuntimeError):  # jax is in use: it keeps the devices it has
        jax.config.update("jax_num_cpu_devices", given.devices)
    machine = sharding.MACHINES["host"] if given.smoke else sharding.calibrate()
    print(f"{machine.name}: {machine.source}")
    report = {name: swept(name, case, machine) for name, case in cases(given.smoke).items()}
    print("\n" + _summary(report))
    if not given.smoke:
        content = {"machine": asdict(machine), "results": report}
        print(record.write("planner_measured", "benchmarks.planner_measured", content))


def swept(name: str, case: Case, machine: sharding.Machine) -> dict[str, Any]:
    """Every shape of a case, and how predictions rank them."""
    records = jtssm.sweep(
        case.net,
        jax.device_count(),
        case.batch,
        machine,
        method=case.method,
        optimizer=optax.sgd(1e-3),
        count=False,
        measure=True,
        **case.options,
    )
    found = [r for r in records if "measured_seconds" in r]
    print(f"\n{name}: predicted and measured ms a step, measured / predicted")
    for r in found:
        ratio = r["measured_seconds"] / r["seconds"]
        times = f"{1e3 * r['seconds']:9.3f} {1e3 * r['measured_seconds']:9.3f} {ratio:7.2f}"
        print(f"  {r['mesh']:10}{times}  {'best  ' if r['best'] else '':6}{r['forms']}")
    for r in (r for r in records if "seconds" in r and "error" in r):
        print(f"  {r['mesh']:10} failed: {r['error']}")
    agreement = ranked([r["seconds"] for r in found], [r["measured_seconds"] for r in found])
    print(
        "  " + "  ".join(f"{key} {a:.2f}" for key, a in agreement.items() if a is not None),
        flush=True,
    )
    return {"shapes": [r for r in records if "seconds" in r], **agreement}


def ranked(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, float | None]:
    """How well predictions rank shapes, and what trusting them costs."""
    ratios = [b / a for a, b in zip(predicted, measured, strict=True)]
    chosen = min(zip(predicted, measured, strict=True))[1]
    known = min(len(set(predicted)), len(set(measured))) > 1  # else there is no order to agree on
    return {
        "spearman": float(stats.spearmanr(predicted, measured).statistic) if known else None,
        "kendall": float(stats.kendalltau(predicted, measured).statistic) if known else None,
        "least_ratio": min(ratios),
        "mean_ratio": exp(mean(map(log, ratios))),  # geometric
        "largest_ratio": max(ratios),
        "planned_to_fastest": chosen / min(measured),
        "slowest_to_fastest": max(measured) / min(measured),
    }


def _summary(report: dict[str, Any]) -> str:
    """Means over the cases."""
    lines = []
    for key in ("spearman", "kendall", "mean_ratio", "planned_to_fastest", "slowest_to_fastest"):
        values = [found[key] for found in report.values() if found[key] is not None]
        if values:
            lines.append(f"{key} {mean(values):.2f} ({min(values):.2f} .. {max(values):.2f})")
    return f"mean (least .. largest) of {len(report)} cases: " + ", ".join(lines)


if __name__ == "__main__":
    main()
