"""Where `fit` trains: on the user's mesh, or on the one that the cost model finds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import jax
from jax.sharding import Mesh

from jtssm import checks
from jtssm.protocol.method import Method
from jtssm.sharding.cost import planner
from jtssm.sharding.cost.machine_files import present_machine
from jtssm.sharding.cost.machines import Machine
from jtssm.sharding.cost.refusals import NoMeshError
from jtssm.sharding.mesh import make_mesh
from jtssm.sharding.placement import place


def on_mesh(
    method: Method,
    mesh: Mesh | str | None,
    forms: str | Sequence[str],
    machine: Machine | str | None,
    samples: int,
) -> Method:
    """The method on the user's mesh, or on the one that the cost model finds fastest; None: as it is."""
    if isinstance(mesh, Mesh):
        return _placed(method, mesh, forms if isinstance(forms, str) else tuple(forms))
    own = not isinstance(forms, str) or forms != "auto"
    if mesh is None and not own:
        return method
    if not isinstance(mesh, str) or mesh != "auto" or own:
        raise ValueError(
            f"mesh: expected a jax.sharding.Mesh, or 'auto' or None and then no forms; got "
            f"{checks.shown(mesh)}, forms {checks.shown(forms)}"
        )
    best = _fastest(method, machine or present_machine(), samples)
    return _placed(method, make_mesh(*best.shape), best.forms or "auto")


@lru_cache(maxsize=8)
def _placed(method: Method, mesh: Mesh, forms: str | tuple[str, ...]) -> Method:
    """`place`, whose programs are compiled with it: a method that trains again there compiles nothing."""
    return place(method, mesh, forms=forms)


def _fastest(method: Method, machine: Machine | str, samples: int) -> planner.Proposal:
    """The best mesh of all devices that are there."""
    given = lambda net, subnet, batch: method
    size, devices = method.program.batch.size or samples, jax.device_count()
    try:
        found = planner.plan(
            method.network,
            devices,
            size,
            machine,
            method=given,
            samples=samples,
            runners_up=0,
        )
    except NoMeshError as error:
        raise ValueError(
            f"mesh: expected a jax.sharding.Mesh, or 'auto' where some mesh of all {devices} devices "
            f"goes; got 'auto', and none goes: {error.reasons}"
        ) from error
    return found.best
