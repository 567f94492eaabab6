"""What does a device hold in a step, by formula and compiled, of language models on every mesh of eight?

A decoder of `nn.decoder` and the one of flax modules of `examples/language_model.py`, trained by sgd and
by streaming gsADMM (as many subnetworks as "subnet" is long, cut by parameters), with Adam, in the forms
that hold the fewest bytes. Beside what the formulas say (`sharding.step_memory`: what a step is given,
exact; and with what lives within it, a bound) stands what XLA plans for the compiled step
(`memory_analysis()`). Nothing is run, and nothing depends on time.

    python -m benchmarks.memory_held [--smoke]

Three minutes on 2 cores. Last result: benchmarks/results/memory_held.json.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import Any

import jax
import optax

import jtssm
from benchmarks import record
from examples import language_model
from jtssm import nn, sharding
from jtssm.planning import trials
from jtssm.planning.builders import builder
from jtssm.sharding.cost import planner, refusals

DEVICES, BATCH = 8, 32
MACHINE = sharding.MACHINES["h100-nvlink"]  # of no use: memory alone decides


def networks(smoke: bool) -> dict[str, nn.Network]:
    """By name."""
    if smoke:
        return {"decoder": nn.decoder(1, width=8, heads=2, sequence=4, vocabulary=16)}
    shape = {"width": 128, "heads": 8, "sequence": 64, "vocabulary": 256}
    return {
        "decoder, 2 blocks of 128, 64 bytes": nn.decoder(2, **shape),
        "language model of flax modules, 2 blocks of 32, 32 bytes": language_model.network(),
    }


def main() -> None:
    """Compile every mesh of every case; write the JSON."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument("--smoke", action="store_true", help="seconds, two meshes, no result file")
    given = parse.parse_args()
    with suppress(RuntimeError):  # jax is in use: it keeps the devices it has
        jax.config.update("jax_num_cpu_devices", DEVICES)
    report = {}
    for name, net in networks(given.smoke).items():
        for method in ("sgd",) if given.smoke else ("sgd", "gsadmm"):
            report[f"{name}, {method}"] = held(name, net, method, given.smoke)
    if not given.smoke:
        print(record.write("memory_held", "benchmarks.memory_held", {"results": report}))


def held(name: str, net: nn.Network, method: str, smoke: bool) -> list[dict[str, Any]]:
    """Bytes of a device on every mesh that goes."""
    build = builder(
        method,
        optimizer=optax.adam(1e-3),
        **({} if method == "sgd" else {"balance": "memory"}),
    )
    found = []
    shapes = planner.factorisations(2 if smoke else DEVICES)
    for sizes in shapes if method == "sgd" else [s for s in shapes if s[0] > 1]:
        try:
            made = build(net, sizes[0], BATCH)
            lean = leanest(made, sizes)
        except ValueError as error:
            print(f"{name}, {method}, {sizes}: {error}")
            continue
        compiled = trials.counted(lean, sharding.make_mesh(*sizes), None)
        line = {
            "mesh": " x ".join(map(str, sizes)),
            "forms": list(lean.forms),
            "arguments": lean.memory.arguments,
            "total": lean.memory.total,
            "compiled": compiled["compiled_memory"],
            "parts": lean.memory._asdict(),
        }
        found.append(line)
        print(f"{name}, {method}, {line['mesh']}: {line}", flush=True)
    return found


def leanest(method: jtssm.Method, sizes: tuple[int, int, int]) -> planner.Proposal:
    """The proposal in the forms that hold the fewest bytes."""
    try:
        return planner.propose(method, sizes, MACHINE, limit=1)
    except refusals.NoRoomError as error:  # which says how many
        return planner.propose(method, sizes, MACHINE, limit=1 + error.missing)


if __name__ == "__main__":
    main()
