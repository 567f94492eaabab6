"""How many bytes does each form of a layer move on each grid, and how many XLA's own partitioning?

A step of `solvers.sgd` (plain SGD) on pr x pc = 8, 16 and 64 devices: what a device sends on rings, by
the formulas of `sharding.cost` for every form (all layers in it where they fit, else "batch"), for
forms="auto" counted in the compiled program, which must agree to the byte. Beside it the
same step of one device (`jax.jit`, no shard_map), compiled by XLA's partitioner from the shardings of
parameters and batch that "auto" uses, and its floating-point operations against those of ours: above 1 it
repeats work on several devices. Nothing is run: 64 virtual CPU devices compile.

    python -m benchmarks.grid_bytes [--smoke]

Three minutes on 2 cores. Last result: benchmarks/results/grid_bytes.json, in the README's table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

import jtssm
from benchmarks import record
from jtssm import nn, sharding, solvers
from jtssm.sharding import count
from jtssm.sharding.layers.questions import mixes

DEVICES = 64  # virtual
UNIFORM = ("batch", "gathered", "model", "scattered", "paired", "domain")


def cases(smoke: bool) -> list[tuple[str, nn.Network, int, Sequence[int]]]:
    """(name, network, batch, numbers of devices)."""
    if smoke:
        small = nn.convnet((8, 8, 1), 8, channels=(8,), hidden=(16,))
        return [("mlp", jtssm.mlp([64, 32, 32, 8]), 16, [8]), ("convnet", small, 16, [8])]
    return [
        (
            "mlp 784-512-512-512-10, batch 128",
            jtssm.mlp([784, 512, 512, 512, 10]),
            128,
            [8, 16, 64],
        ),
        ("mlp 784-512-512-512-10, batch 2048", jtssm.mlp([784, 512, 512, 512, 10]), 2048, [8]),
        ("convnet 28 x 28, batch 64", nn.convnet((28, 28, 1), 10), 64, [8]),
        ("AlexNet, batch 256", nn.alexnet(), 256, [8, 16, 64]),
        # fewer samples than devices; on AlexNet's groups XLA's partitioner then aborts (jax 0.10)
        ("convnet 64 x 64, batch 4", nn.convnet((64, 64, 3), 8, channels=(16, 32, 64)), 4, [8]),
        ("convnet 57 x 57, batch 4", nn.convnet((57, 57, 3), 8, channels=(16, 32, 64)), 4, [8]),
    ]


def main() -> None:
    """Count every case and write the JSON."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument("--smoke", action="store_true", help="seconds, no result file")
    given = parse.parse_args()
    if not given.smoke:
        jax.config.update("jax_num_cpu_devices", DEVICES)
    report = {}
    for name, net, batch, numbers in cases(given.smoke):
        for devices in numbers:
            for pr in (p for p in (1, 2, 4, 8, 16, 32, 64) if devices % p == 0):
                if batch % (devices // pr):
                    continue
                found = counted(net, batch, pr, devices // pr)
                report[f"{name}, {pr} x {devices // pr}"] = found
                shown = "  ".join(
                    f"{key} {found[key] / 1e6:.3f}" for key in (*UNIFORM, "auto", "xla")
                )
                work = f"work of XLA's program {found['xla_work']:.2f}"
                print(f"{name}, {pr} x {devices // pr}: MB sent: {shown}  {work}", flush=True)
    worse = [name for name, found in report.items() if found["auto"] > found["xla"]]
    print("auto moves more than XLA:", ", ".join(worse) or "nowhere")
    if not given.smoke:
        print(record.write("grid_bytes", "benchmarks.grid_bytes", {"bytes": report}))
    sys.exit(bool(worse))


def counted(net: nn.Network, batch: int, pr: int, pc: int) -> dict[str, Any]:
    """Bytes a device sends in a step, by form; of "auto" the compiled program must agree."""
    mesh = sharding.make_mesh(1, pr, pc)
    method = solvers.sgd(net, optimizer=optax.sgd(0.1), batch_size=batch)
    sizes = dict(mesh.shape)
    forms = {name: uniform(net, name, pr) for name in UNIFORM} | {"auto": "auto"}
    routes = {name: sharding.step_bytes(method, mesh, forms=given) for name, given in forms.items()}
    placed = sharding.place(method, mesh)
    state, x, y = abstract(method, placed, batch)
    program = jax.jit(placed.step).lower(state, x, y).compile()
    compiled = count.moved(program.as_text(), mesh)
    if compiled != routes["auto"]:
        raise AssertionError(f"expected {routes['auto']} by formula; got {compiled} compiled")
    found: dict[str, Any] = {
        name: sharding.ring_bytes(given, sizes) for name, given in routes.items()
    }
    other = partitioned(method, state, x, y)
    return found | {
        "xla": sent(other.as_text(), mesh),
        "xla_work": other.cost_analysis()["flops"] / program.cost_analysis()["flops"],
        "auto_forms": placed.forms,
        "auto_routes": {" ".join((r.collective, *r.axes)): n for r, n in compiled.items()},
    }


def uniform(net: nn.Network, name: str, pr: int) -> list[str]:
    """The form for every layer that can have it; "paired": model and row in turns. Else batch."""
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    forms, turn = [], 0
    for i in range(len(net.layers)):
        wanted = ("model", "row")[turn % 2] if name == "paired" else name
        fits = not sharding.misfit(net, i, shapes[i], wanted, pr)
        turn += fits and mixes(net.layers[i])
        forms.append(wanted if fits else "batch")
    return forms


def abstract(method: jtssm.Method, placed: jtssm.Method, batch: int) -> tuple[Any, Any, Any]:
    """The placed state and a minibatch as a step takes them: shapes and shardings."""
    net, sizes = method.network, placed.mesh.shape
    grid = sharding.whole_grid(net, placed.forms, sizes["pr"], sizes["pc"])
    at = sharding.CallSamples(grid, batch // sizes["pc"])
    x = jax.ShapeDtypeStruct((batch, *net.shapes[0]), np.float32)
    y = jax.ShapeDtypeStruct((batch,), np.int32)
    state = jax.eval_shape(lambda x, y: method.init(jax.random.key(0), x, y), x, y)
    return (
        placed.spread(state),
        sharding.put(x, placed.mesh, at.inputs),
        sharding.put(y, placed.mesh, at.outputs),
    )


def partitioned(method: jtssm.Method, state: Any, x: Any, y: Any) -> Any:
    """The program that XLA's partitioner makes of the step of one device."""
    laid_out = jax.tree.map(lambda a: a.sharding, state)
    step = jax.jit(method.step, out_shardings=(laid_out, None))
    return step.lower(state, x, y).compile()


def sent(text: str, mesh: Mesh) -> float:
    """Bytes a device sends on rings, whatever the groups: XLA's need not lie along axes."""
    total = float(max(permuted(text, mesh.size), default=0))
    for found in count.collectives(text):
        size = len(found.groups[0]) if found.groups else mesh.size
        total += found.times * sharding.ring_bytes(
            {sharding.Route(found.kind, ("group",)): found.bytes}, {"group": size}
        )
    return total


def permuted(text: str, devices: int) -> list[int]:
    """Bytes that each device sends by permutes."""
    sends = [0] * devices
    for found in count.permutes(text):
        for source, target in found.pairs:
            sends[source] += found.bytes * (source != target)
    return sends


if __name__ == "__main__":
    main()
