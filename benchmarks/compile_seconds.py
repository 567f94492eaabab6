"""How long until a deep network's step is compiled, block by block and with equal blocks as one layer?

24 transformer blocks of width 64, Adam, batch 96 x 32 tokens: gsADMM on four devices of a mesh (virtual
ones of a CPU), in whole minibatches and in six microbatches, and `sgd` on one device. Seconds to start
the state, to trace and to compile a step, each in a process of its own; nothing is kept.

    python -m benchmarks.compile_seconds [--smoke]

Four minutes on 2 cores. Last result: benchmarks/results/compile_seconds.json, in
docs/how-to/own-network.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import jax
import numpy as np
import optax

from benchmarks import record
from jtssm import nn, sharding, solvers

WIDTH, TOKENS, BATCH, DEVICES = 64, 32, 96, 4
CASES = {  # method, microbatches (None: of no use), blocks that are one layer
    "gsADMM, n = 4, M = 1, block by block": ("gsadmm", 1, 1),
    "gsADMM, n = 4, M = 6, block by block": ("gsadmm", 6, 1),
    "gsADMM, n = 4, M = 6, six blocks a layer": ("gsadmm", 6, 6),
    "sgd, block by block": ("sgd", None, 1),
    "sgd, six blocks a layer": ("sgd", None, 6),
}


def timed(name: str, blocks: int) -> dict[str, float]:
    """Seconds of a case."""
    kind, parts, together = CASES[name]
    ways = {"heads": 4, "sequence": TOKENS, "classes": 10, "together": together}
    net = nn.transformer(blocks, width=WIDTH, **ways)
    shared = {"optimizer": optax.adam(1e-3), "batch_size": BATCH}
    if kind == "sgd":
        method = solvers.sgd(net, **shared)
    else:
        method = solvers.gsadmm(net, subnets=DEVICES, microbatches=parts, **shared)
        method = sharding.place(method, sharding.make_mesh(DEVICES))
    x, y = np.zeros((BATCH, TOKENS, WIDTH), np.float32), np.zeros(BATCH, np.int32)
    times = [time.perf_counter()]
    state = jax.block_until_ready(method.init(jax.random.key(0), x, y))
    times.append(time.perf_counter())
    lowered = jax.jit(method.step).lower(state, x, y)
    times.append(time.perf_counter())
    lowered.compile()
    times.append(time.perf_counter())
    names = ("start", "trace", "compile")
    return {name: b - a for name, a, b in zip(names, times, times[1:], strict=False)}


def main() -> None:
    """Time every case in a process of its own; write the JSON."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument("--smoke", action="store_true", help="half the blocks, no result file")
    parse.add_argument("--case", help=argparse.SUPPRESS)
    given = parse.parse_args()
    if given.case:
        jax.config.update("jax_num_cpu_devices", DEVICES)
        print(json.dumps(timed(given.case, 12 if given.smoke else 24)))
        return
    found = {}
    for name in CASES:
        again = [sys.executable, "-m", "benchmarks.compile_seconds", "--case", name]
        again += ["--smoke"] if given.smoke else []
        said = subprocess.run(again, check=True, capture_output=True, text=True).stdout
        found[name] = json.loads(said.splitlines()[-1])
        print(name, "  ".join(f"{k} {v:.1f}" for k, v in found[name].items()), flush=True)
    if not given.smoke:
        print(record.write("compile_seconds", "benchmarks.compile_seconds", {"results": found}))


if __name__ == "__main__":
    main()
