"""Formulas against programs: bytes of a step of sgd on a grid. Run as a program for many devices."""

import sys

import jax
import numpy as np
import optax

import jtssm
from benchmarks.grid_bytes import abstract, uniform
from jtssm import sharding, solvers
from jtssm.nn import images
from jtssm.sharding import cost
from jtssm.sharding.count import hlo

NETS = {
    "mlp": (jtssm.mlp([96, 128, 64, 192, 64]), 64),
    "alexnet": (images.alexnet(), 64),
    "small alexnet": (images.alexnet(64, size=131, divide=8), 8),
    "few samples": (images.alexnet(64, size=131, divide=8), 2),
}


def check(name, pr, pc, form, *, compiled=True):
    """Formula, trace and compiled program agree; returns the program, and what a step takes."""
    net, batch = NETS[name]
    forms = form if form == "auto" else uniform(net, form, pr)
    return agree(net, batch, pr, pc, forms, compiled=compiled)


# a compiler for CPUs drops barriers, and then gathers once what is gathered again for a backward pass
AS_WRITTEN = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def agree(net, batch, pr, pc, forms, *, compiled=True):
    """As `check`, for any network in any forms."""
    mesh = sharding.make_mesh(1, pr, pc)
    method = solvers.sgd(net, optimizer=optax.sgd(0.1, momentum=0.9), batch_size=batch)
    placed = sharding.place(method, mesh, forms=forms)
    given = abstract(method, placed, batch)
    expected = cost.step_bytes(method, mesh, forms=forms)
    traced = sharding.count_bytes(placed.step, *given)
    assert traced == expected, (pr, pc, forms, "trace", traced, expected)
    if not compiled:
        return None
    program = jax.jit(placed.step).lower(*given).compile(AS_WRITTEN)
    moved = hlo.moved(program.as_text(), mesh)
    assert moved == expected, (pr, pc, forms, "compiled", moved, expected)
    return program, given


def grids(devices):
    """All (pr, pc) of so many devices."""
    return [(pr, devices // pr) for pr in range(1, devices + 1) if devices % pr == 0]


def main(devices, names, forms):
    """Compile for so many devices, all grids; prints how many programs agree."""
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_disable_most_optimizations", True)
    cases = [(n, *g, f) for n in names for g in grids(devices) for f in forms]
    cases = [case for case in cases if NETS[case[0]][1] % case[2] == 0]
    for case in cases:
        check(*case)
    print(len(cases), "programs agree")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(","))


def zeros(given):
    """Arrays for abstract ones."""
    return jax.tree.map(lambda a: jax.device_put(np.zeros(a.shape, a.dtype), a.sharding), given)
