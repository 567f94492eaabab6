"""An iteration of pdADMM where every product counts: modelled, not measured.

19 layers of 2 400 (the largest network of the paper's speed-up), 784 inputs, 55 000 samples, on 1 to 19
devices along "subnet": seconds of an iteration and gigabytes of a device by the cost model
(`jtssm.sharding.cost`), for H100s joined by NVLink, and by links of 10 Gbit/s. Beside it what the same
samples cost end to end: full-batch Adam, data parallel over as many devices.

    python -m benchmarks.pdadmm_devices [--smoke]

Seconds. Last result: benchmarks/results/pdadmm_devices.json, in docs/methods/pdadmm.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import optax

import jtssm
from benchmarks import record
from jtssm import sharding, solvers
from jtssm.sharding import cost
from jtssm.sharding.cost.demand import step_demand

WIDTHS, SAMPLES = (784, *[2400] * 18, 10), 55_000
DEVICES = (1, 2, 4, 5, 7, 10, 19)
GIGABIT = 1.25e8  # bytes a second
Row = dict[str, Any]


def rows(widths: tuple[int, ...], samples: int) -> Iterator[Row]:
    """Every method on every number of devices."""
    net = jtssm.mlp(list(widths))
    machine = sharding.MACHINES["h100-nvlink"]
    slow = replace(machine, name="h100, 10 Gbit/s", link=10 * GIGABIT, latency=2e-5)
    for n in DEVICES:
        batch = samples // n * n  # what data parallel devices share evenly
        methods = {
            "pdADMM, damped": (solvers.pdadmm(net), (n, 1, 1)),
            "pdADMM, along the gradient": (solvers.pdadmm(net, steps="gradient"), (n, 1, 1)),
            "pdADMM, damped, 8 bits": (solvers.pdadmm(net, grid=8), (n, 1, 1)),
            "Adam, full batch, data parallel": (
                solvers.sgd(net, optimizer=optax.adam(1e-3), batch_size=batch),
                (1, 1, n),
            ),
        }
        for name, (method, sizes) in methods.items():
            yield {"method": name, "devices": n} | costs(method, sizes, samples, (machine, slow))


def costs(method: jtssm.Method, sizes: tuple, samples: int, machines: tuple) -> Row:
    """Seconds by machine, and bytes of a device."""
    kept = samples if method.resident else None
    subnet, pr, pc = sizes
    forms = ("batch",) * len(method.network.layers)
    step = step_demand(method, sizes, forms, kept)
    memory = cost.step_memory(method, sizes, step, forms=forms, samples=kept)
    seconds = {
        machine.name: sharding.step_seconds(
            method, machine, subnet=subnet, pr=pr, pc=pc, samples=kept
        ).total
        for machine in machines
    }
    return {"seconds": seconds, "bytes": memory.total}


def main() -> None:
    """Model, show and write."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--smoke", action="store_true", help="a narrow network, no result file")
    smoke = parse.parse_args().smoke
    widths = tuple(min(w, 24) for w in WIDTHS) if smoke else WIDTHS
    found = list(rows(widths, 380 if smoke else SAMPLES))
    for row in found:
        times = "  ".join(f"{name} {1e3 * a:.1f} ms" for name, a in row["seconds"].items())
        print(f"{row['method']:32} {row['devices']:2}  {times}  {row['bytes'] / 1e9:.1f} GB")
    if not smoke:
        content = {"widths": WIDTHS, "samples": SAMPLES, "rows": found}
        print(record.write("pdadmm_devices", "benchmarks.pdadmm_devices", content))


if __name__ == "__main__":
    main()
