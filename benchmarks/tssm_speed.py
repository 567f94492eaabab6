"""What does cutting cost on one device, and what moves over a mesh?

Nine hidden layers of 512, inputs 196, batch 110, made-up data. (1) One device: seconds a step of
end-to-end Adam and of streaming gsADMM at each n, in chunks of 50 steps, methods in turns, ratio of
medians to Adam's; and the share of each step that its own matrix products take alone, with the same
shapes and as often, chained one after another without activations, losses and optimizer. (2) 1, 2, 4
and 8 devices (virtual ones on a CPU, which share its cores: not a speed-up to expect): steps a second
and the bytes that cross boundaries in a step, counted in the compiled program.

    python -m benchmarks.tssm_speed [--precisions highest tensorfloat32 bfloat16] [--smoke]

About 5 minutes on 2 cores. Precisions matter on accelerators, where jax's default is not float32.
Last result: benchmarks/results/tssm_speed.json, in the README.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jtssm
from benchmarks import record
from jtssm import sharding, solvers
from jtssm.sharding import cost, count

BATCH, ADAM = 110, "Adam end to end"


def main() -> None:
    """Time, count, print, write the JSON."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parse.add_argument
    add("--smoke", action="store_true", help="seconds instead of minutes, no result file")
    add("--subnets", type=int, nargs="+", default=[2, 3, 5, 10])
    add("--precisions", nargs="+", default=[None], help="of the products; default: jax's")
    add("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    add("--repeats", type=int, default=15)
    add("--steps", type=int, default=50, help="steps a dispatch")
    given = parse.parse_args()
    if not given.smoke:
        jax.config.update("jax_num_cpu_devices", max(given.devices))
    width, depth = (32, 3) if given.smoke else (512, 9)
    if given.smoke:
        given.subnets, given.devices, given.repeats, given.steps = [2], [1, 2], 1, 2
    net = jtssm.mlp([196, *[width] * depth, 10])
    one = {str(p): _one_device(net, p, given) for p in given.precisions}
    mesh = _meshes(net, given)
    if not given.smoke:
        content = {"batch": BATCH, "one_device_by_precision": one, "meshes": mesh}
        print(record.write("tssm_speed", "benchmarks.tssm_speed", content))


def _methods(net: Any, precision: Any, given: argparse.Namespace) -> dict[str, Any]:
    shared = {"optimizer": optax.adam(1e-3), "batch_size": BATCH, "precision": precision}
    methods = {ADAM: solvers.sgd(net, **shared)}
    for n in given.subnets:
        methods[f"n = {n}"] = solvers.gsadmm(net, subnets=n, microbatches=1, **shared)
    methods["n = 2, 2 sweeps"] = solvers.gsadmm(
        net, subnets=2, schedule=solvers.Streaming(sweeps=2), **shared
    )
    return methods


def _one_device(net: Any, precision: Any, given: argparse.Namespace) -> dict:
    methods, (xs, ys) = _methods(net, precision, given), _samples(net, given.steps)
    runs = {}
    for name, method in methods.items():
        state = method.init(jax.random.key(0), xs[0], ys[0])
        runs[name] = _many(method, state, xs, ys)
        runs[f"{name}: products"] = products_alone(method, xs, precision)
    seconds = record.alternating(runs, given.repeats)
    adam, report = np.median(seconds[ADAM]), {}
    for name, method in methods.items():
        alone = np.median(seconds[f"{name}: products"])
        report[name] = record.spread([s / given.steps for s in seconds[name]]) | {
            "ratio_to_adam": float(np.median(seconds[name]) / adam),
            "product_share": float(alone / np.median(seconds[name])),
            "product_flops": cost.step_flops(method),
        }
        print(
            f"{precision or 'default'} {name:16} ratio {report[name]['ratio_to_adam']:.2f}  "
            f"share of its own products {report[name]['product_share']:.2f}",
            flush=True,
        )
    return report


def _meshes(net: Any, given: argparse.Namespace) -> list[dict]:
    (xs, ys), report = _samples(net, given.steps), []
    for n in sorted({2, 4, 8, *given.subnets}):
        for devices in _fitting(n, net, given.devices):
            ways = {"optimizer": optax.adam(1e-3), "batch_size": BATCH, "microbatches": 1}
            method = solvers.gsadmm(net, subnets=n, **ways)
            placed = sharding.place(method, sharding.make_mesh(subnet=devices))
            state = placed.init(jax.random.key(0), xs[0], ys[0])
            text = jax.jit(placed.step).lower(state, xs[0], ys[0]).compile().as_text()
            run = {"run": _many(placed, state, xs, ys)}
            seconds = record.alternating(run, max(given.repeats // 3, 1))["run"]
            line = {
                "subnets": n,
                "devices": devices,
                "steps_a_second": given.steps / float(np.median(seconds)),
                "boundary_bytes_a_step": count.permuted_bytes(text),
            }
            report.append(line)
            print(line, flush=True)
    return report


def _fitting(n: int, net: Any, devices: list[int]) -> list[int]:
    most = jax.device_count() if n <= len(net.layers) else 0
    return [d for d in devices if n % d == 0 and d <= most]


def _samples(net: Any, steps: int) -> tuple:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps, BATCH, *net.shapes[0])).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(rng.integers(0, net.shapes[-1][0], (steps, BATCH)))


def _many(method: Any, state: Any, xs: Any, ys: Any) -> Any:
    run = jax.jit(lambda s, xs, ys: lax.scan(lambda s, b: method.step(s, *b), s, (xs, ys)))
    return lambda: run(state, xs, ys)


def products_alone(method: Any, xs: Any, precision: Any) -> Any:
    """A run of nothing but the products of as many steps: each one's result is the next one's input."""
    net, starts = method.network, method.program.stages.starts
    weights = [layer["W"] for layer in net.init(jax.random.key(0))]
    runs = [run for l in range(len(starts) - 1) for run in method.program.declared.work(l, BATCH)]

    def step(gradients: list, x: Any) -> tuple:
        gradients = list(gradients)
        for l, (_, forward, backward, *_) in enumerate(runs):
            layers = range(starts[l], starts[l + 1])
            width = net.shapes[starts[l]][0]
            p = x if l == 0 else jnp.tile(x, (1, -(-width // x.shape[1])))[:, :width]
            for k in range(forward):
                keep = [p * (1 + k)]
                for i in layers:
                    keep.append(keep[-1] @ weights[i])
                if k < forward - backward:  # the pass on the minibatch that comes in
                    gradients.append(keep[-1])
                    continue
                g = keep[-1]
                for i in reversed(layers):
                    gradients[i] = keep[i - layers[0]].T @ g
                    if i or l:
                        g = g @ weights[i].T
                gradients.append(g)
        return gradients[: len(weights)], gradients[len(weights) :]

    def run(weights_like: list, xs: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return lax.scan(step, weights_like, xs)

    jitted = jax.jit(run)
    return lambda: jitted(weights, xs)


if __name__ == "__main__":
    main()
