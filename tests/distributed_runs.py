"""What every process of tests/test_distributed.py runs, and the one process they are compared with.

As a program: python -m tests.distributed_runs PORT NUM ID DEVICES WHAT.
"""

import json
import sys

import jax
import numpy as np
import optax

import jtssm
from jtssm import problems, sharding, solvers

SHARED = {"optimizer": optax.adam(1e-2), "batch_size": 16}
ROUND = {"optimizer": optax.sgd(0.05), "batch_size": 4, "local_steps": 2}


def cases() -> dict:
    """Name -> (method, mesh, epochs)."""
    net = jtssm.mlp([4, 16, 12, 3])
    mesh = sharding.make_mesh
    return {
        "sgd, pr 2 pc 4": (solvers.sgd(net, **SHARED), mesh(1, 2, 4)),
        "sgd, pc 8": (solvers.sgd(net, **SHARED), mesh(1, 1, 8)),
        "gsadmm, streaming": (solvers.gsadmm(net, subnets=2, **SHARED), mesh(2, 2, 2)),
        "gsadmm, stored": (
            solvers.gsadmm(net, subnets=2, schedule="stored", weight_steps=2, **SHARED),
            mesh(2, 1, 4),
        ),
        "gsam, stored": (
            solvers.gsam(net, subnets=2, schedule="stored", weight_steps=2, **SHARED), mesh(2, 1, 4)
        ),
        "pdadmm": (solvers.pdadmm(net), mesh(2, 1, 4)),
        "ist": (solvers.ist(net, subnets=2, **ROUND), mesh(2, 1, 4)),
        "local_sgd": (solvers.local_sgd(net, workers=4, **ROUND), mesh(4, 1, 2)),
        "ensemble": (solvers.ensemble(net, members=4, **ROUND), mesh(4, 1, 2)),
    }  # fmt: skip


def trained(method, mesh) -> dict:
    x, y = problems.separable(0, 96, 4, 3, np.float64)
    result = jtssm.fit(
        method, (x, y), epochs=2, key=jax.random.key(0), mesh=mesh, validation=(x[:30], y[:30])
    )
    line = {k: v for k, v in result.history[-1].items() if k != "seconds"}
    return {
        "history": line,
        "params": [a.sum().item() for a in jax.tree.leaves(result.params)],
        "outputs": result.predict(x[:8]).tolist(),
    }


def main():
    import time

    port, num, this, devices = map(int, sys.argv[1:5])
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    if num > 1:
        jax.distributed.initialize(f"localhost:{port}", num, this)
    for name, case in cases().items():
        start = time.perf_counter()
        try:
            got = trained(*case)
        except Exception as error:
            import traceback

            traceback.print_exc()
            got = repr(error)[:300]
        print(json.dumps([name, got]), flush=True)
        print(time.perf_counter() - start, name, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
