"""Proposals of the planner tried: their steps compiled, counted and run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from jtssm import checks
from jtssm.arrays import Tree
from jtssm.protocol.method import Method
from jtssm.sharding.cost.memory import placed_step
from jtssm.sharding.cost.messages import Sizes
from jtssm.sharding.cost.planner import Proposal
from jtssm.sharding.count import hlo
from jtssm.sharding.count.jaxpr import count_bytes
from jtssm.sharding.count.routes import Route, ring_bytes
from jtssm.sharding.mesh import AXES
from jtssm.sharding.placement import batch_sharding, place

Record = dict[str, Any]


def column(what: str, route: Route) -> str:
    """What a record calls the bytes of a route."""
    return "_".join((what, route.collective, *route.axes))


def ring_sent(found: Mapping[Route, int], shape: Sizes) -> float:
    """Bytes that a device sends to others, by rings."""
    return ring_bytes(found, dict(zip(AXES, shape, strict=True)))


def counted(found: Proposal, mesh: Mesh, samples: int | None) -> Record:
    """The step compiled for a mesh: its bytes, whether they are those predicted, its memory."""
    placed, state, given = placed_step(
        found.method, found.shape, found.forms or "auto", samples, mesh
    )
    program = jax.jit(placed.step, donate_argnums=0).lower(state, *given).compile()
    moved = hlo.moved(program.as_text() or "", mesh)
    agrees = moved == found.bytes or (
        _text_misleads(found, moved) and traced_bytes(placed.step, state, *given) == found.bytes
    )
    memory: Any = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {
        "counted_sent": ring_sent(moved, found.shape),
        "agrees": agrees,
        **{column("counted", route): num for route, num in moved.items()},
        "compiled_memory": held,
        "compiled_temporaries": memory.temp_size_in_bytes,
    }


def _text_misleads(found: Proposal, moved: Mapping[Route, int]) -> bool:
    """Whether a program may move other bytes than its text shows, so that the trace decides."""
    # equal gradients are summed once (two added betas have them)
    fewer = all(moved.get(route, 0) <= num for route, num in found.bytes.items())
    # sums that a CPU's compiler widens
    fewer |= found.method.program.stages.compute_dtype is not None
    # of several switches on the piece the largest branches add up, though no device takes them all
    return fewer or (found.method.resident and found.shape[0] > 1)


def traced_bytes(step: Callable, *given: Tree) -> dict[Route, int]:
    """Bytes of the device that hands in most, each in its own branches."""
    return max(count_bytes(step, *given, by_device=True), key=lambda count: sum(count.values()))


def measured(found: Proposal, mesh: Mesh, samples: int | None, repeats: int = 5) -> float:
    """Median seconds of a step on present devices, after one that compiles; random samples."""
    placed = place(found.method, mesh, forms=found.forms or "auto")
    flat, drawn = drawn_samples(found.method, samples)
    return _repeated(placed, flat, jax.device_put(drawn, batch_sharding(placed)), repeats)


def measured_here(method: Method, samples: int | None = None, repeats: int = 10) -> float:
    """Median seconds of a step of an unplaced method on the default device; random samples."""
    flat, drawn = drawn_samples(method, samples)
    return _repeated(method, flat, jax.device_put(drawn), repeats)


def _repeated(method: Method, flat: Tree, given: Tree, repeats: int) -> float:
    """Median seconds of a step on `given`, after one that compiles; flat: what `init` takes."""
    state = method.init(jax.random.key(0), *flat)
    step, seconds = jax.jit(method.step, donate_argnums=0), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, *given))
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def drawn_samples(
    method: Method, samples: int | None = None
) -> tuple[tuple[Tree, np.ndarray], tuple[Tree, np.ndarray]]:
    """Random (x, y) that `init` takes, [samples, ...], and the same as a step takes them.

    samples: that a resident method keeps.
    """
    lead: tuple = method.batch_shape or (samples,)
    rng, classes = np.random.default_rng(0), method.network.shapes[-1][-1]
    # integers that any network takes: tokens 0 and 1
    drawn = lambda a, most=2: (
        rng.normal(size=a.shape) if a.dtype == np.float32 else rng.integers(0, most, a.shape)
    ).astype(a.dtype)
    like = method.program.samples_like(lead)
    given = jax.tree.map(drawn, like[0]), drawn(like[1], classes)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(lead) :]), given), given


def topology_devices(name: str) -> Sequence[jax.Device]:
    """Devices of TPUs that need not be there: "tpu-v5e:4x4"; needs libtpu.

    Raises:
      ValueError: another name, or libtpu does not know it or is not there.
    """
    if not isinstance(name, str) or not name.startswith("tpu-") or not name.partition(":")[2]:
        raise ValueError(f"topology: expected a name like 'tpu-v5e:4x4'; got {checks.shown(name)}")
    kind, _, shape = name.removeprefix("tpu-").partition(":")
    # one device a chip, as on a host of v4; jax makes no mesh of its single cores
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{kind}:{shape}", **options
        )
    except Exception as error:
        raise ValueError(
            f"topology: expected one that libtpu knows, e.g. 'tpu-v5e:4x4', and libtpu installed; got "
            f"{name!r}: {error}"
        ) from error
    return found.devices
