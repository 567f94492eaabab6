"""What moves, counted from a traced program: nothing is compiled or run."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any, overload

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters import partial_eval
from jax.sharding import AbstractMesh, Mesh

from jtssm.arrays import Tree
from jtssm.protocol.branching import trips_a_run
from jtssm.sharding.count import hlo, routes
from jtssm.sharding.count.jaxpr_values import CASTS, Atom, Scope, called
from jtssm.sharding.count.routes import Count, Route, Sizes

_KINDS = {
    "psum": "all_reduce",
    "psum_invariant": "all_reduce",
    "unreduced_psum": "all_reduce",
    "pmax": "all_reduce",
    "pmin": "all_reduce",
    "unreduced_pmax": "all_reduce",
    "unreduced_pmin": "all_reduce",
    "all_gather": "all_gather",
    "all_gather_invariant": "all_gather",
    "all_gather_reduced": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "unreduced_reduce_scatter": "reduce_scatter",
    "all_to_all": "all_to_all",
    "ppermute": "permute",
}


@overload
def count_bytes(
    fn: Callable,
    *args: Tree,
    compiled: bool = ...,
    mesh: Mesh | AbstractMesh | None = ...,
    by_device: typing.Literal[False] = ...,
) -> dict[Route, int]: ...


@overload
def count_bytes(
    fn: Callable,
    *args: Tree,
    compiled: bool = ...,
    mesh: Mesh | AbstractMesh | None = ...,
    by_device: typing.Literal[True],
) -> list[dict[Route, int]]: ...


def count_bytes(
    fn: Callable,
    *args: Tree,
    compiled: bool = False,
    mesh: Mesh | AbstractMesh | None = None,
    by_device: bool = False,
) -> dict[Route, int] | list[dict[Route, int]]:
    """Bytes that a device hands to collectives in one call of fn, by collective and mesh axes.

    Counted are the operands: of an all-gather the part that a device contributes, of a
    reduce-scatter the whole array, of a permute what a device that sends gives away. Loops count as
    often as they run. What ring algorithms make of it, `ring_bytes` says.

    From the trace (the default), nothing is compiled, and an `AbstractMesh` of any size will do:
    collectives are those written in `jax.shard_map`, and their gradients; dead code is left out.
    Code that the partitioner splits has no collectives in the trace; there, use compiled=True. The
    compiler may do less than what is written (merge equal collectives, fold sums of constants, move
    a sum out of a loop), or move more (reshard arguments, widen bfloat16 on the CPU).

    Args:
        fn: a function of arrays, jitted or not.
        args: arrays or `jax.ShapeDtypeStruct`s; with compiled=True those need a sharding where the
            device's share matters.
        compiled: count in the compiled program instead of the trace.
        mesh: of the shard_map; needed with compiled=True.
        by_device: a count for each device, as the trace has it. A switch on values that are known
            before the program runs (indices of devices, tables of them) then counts the branch that
            the device takes.

    Returns:
        {Route(collective, axes): bytes}, axes in the mesh's order without those of size 1; with
        by_device a list of these, in the order of `mesh.devices.flat`. Without by_device it is, for
        each route, the device that hands in most, and of a switch (or by_device, where the branch
        is not known) the branch that moves most in all.

    Raises:
        ValueError: a loop whose trips are not known moves something; a collective in groups or of a
            kind that is not counted; several meshes; arguments that do not go together.
    """
    staged: Any = fn if hasattr(fn, "trace") else jax.jit(fn)
    if compiled:
        if mesh is None or by_device:
            raise ValueError(
                f"count_bytes: expected a mesh and no by_device with compiled=True; got mesh={mesh}, "
                f"by_device={by_device}"
            )
        return hlo.moved(staged.lower(*args).compile().as_text(), mesh)
    closed = staged.trace(*args).jaxpr
    walk = _Walk(None if mesh is None else mesh.shape)
    count = walk.count(Scope(_live(closed), closed.consts, indexed=by_device))
    if not by_device:
        return routes.most(count)
    if walk.sizes is None:
        raise ValueError(
            "mesh: expected the mesh whose devices to list, fn has no shard_map; got None"
        )
    return [routes.at(count, position) for position in range(prod(walk.sizes.values()))]


def _live(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    """The jaxpr without what none of its results needs."""
    opened: Any = getattr(jaxpr, "jaxpr", jaxpr)  # jax 0.12 has one class for both
    return partial_eval.dce_jaxpr(opened, [True] * len(opened.outvars), instantiate=True)[0]


class _Walk:
    """Counts the collectives of a program, jaxpr by jaxpr."""

    def __init__(self, sizes: Sizes | None):
        self.sizes = sizes  # of the axes of the one mesh, once it is known

    def count(self, scope: Scope) -> Count:
        """Of a jaxpr run once."""
        rules = {
            "cond": self._switch,
            "scan": self._scan,
            "while": self._while,
            "shard_map": self._shard_map,
        }
        return routes.added(
            rules.get(eqn.primitive.name, self._other)(scope, eqn) for eqn in scope.jaxpr.eqns
        )

    def _other(self, scope: Scope, eqn: JaxprEqn) -> Count:
        """A collective, a call, or something in which nothing moves."""
        inner = scope.call(eqn)
        if inner is not None:
            return self.count(inner)
        if _names(eqn, scope.sizes):
            share = 1 / trips_a_run(str(eqn.source_info.name_stack))
            return routes.times(_collective(eqn, scope.sizes), share)
        return routes.added(self.count(scope.enter(jaxpr)) for jaxpr in called(eqn))

    def _shard_map(self, scope: Scope, eqn: JaxprEqn) -> Count:
        sizes = dict(eqn.params["mesh"].shape)
        if self.sizes is None:
            self.sizes = sizes
        if list(self.sizes.items()) != list(sizes.items()):
            raise ValueError(
                f"count_bytes: expected every shard_map on one mesh, {dict(self.sizes)}; got {sizes}"
            )
        jaxpr, specs = eqn.params["jaxpr"], eqn.params["in_specs"]
        return self.count(scope.enter(jaxpr, eqn.invars, specs, sizes))

    def _scan(self, scope: Scope, eqn: JaxprEqn) -> Count:
        consts = eqn.invars[: _num_consts(eqn.params)]
        return routes.times(
            self.count(scope.enter(eqn.params["jaxpr"], consts)), eqn.params["length"]
        )

    def _switch(self, scope: Scope, eqn: JaxprEqn) -> Count:
        index, *operands = eqn.invars
        branches = [self.count(scope.enter(b, operands)) for b in eqn.params["branches"]]
        if not any(branches) or not scope.knows(index):
            return routes.largest(branches)
        which = [int(scope.value(index, d)) for d in scope.positions]
        return routes.chosen(branches, np.clip(which, 0, len(branches) - 1))

    def _while(self, scope: Scope, eqn: JaxprEqn) -> Count:
        params, invars = eqn.params, eqn.invars
        split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        condition = self.count(scope.enter(params["cond_jaxpr"], invars[: split[0]]))
        body = self.count(scope.enter(_live(params["body_jaxpr"]), invars[split[0] : split[1]]))
        if not (condition or body):
            return {}
        trips = _trips(scope, eqn, invars[: split[0]], invars[split[1] :])
        if trips is None:
            raise ValueError(
                "count_bytes: expected a known number of trips of each loop that moves something "
                "(scan, or fori_loop between constants); got a while loop that moves "
                f"{routes.most(routes.added([condition, body]))} bytes a trip"
            )
        return routes.added([routes.times(body, trips), routes.times(condition, trips + 1)])


def _num_consts(params: Mapping) -> int:
    """How many arguments of a scan are the same in every trip."""
    if "num_consts" in params:
        return params["num_consts"]
    return len(params["ft_in"].unpack()[0])  # jax 0.12 on


def _trips(
    scope: Scope, eqn: JaxprEqn, consts: list[Atom], carried: list[Atom]
) -> np.ndarray | None:
    """How often a `fori_loop` runs on each device; None if it is another loop or its bounds are unknown.

    Its condition is `i < bound`, its body adds one to i and leaves the bound as it is.
    """
    condition, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    tests = [e for e in condition.eqns if e.primitive.name not in CASTS]
    if len(tests) != 1 or tests[0].primitive.name != "lt":
        return None
    i, end = (_uncast(condition, atom) for atom in tests[0].invars)
    counter, bound = _place(i, condition.invars), _place(end, condition.invars)
    before = [*consts, *body.invars[eqn.params["body_nconsts"] :]]
    after = [*consts, *body.outvars]
    if counter is None or not _counts_up(body, before[counter], after[counter]):
        return None
    if bound is not None and before[bound] is not after[bound]:
        return None
    given = [*consts, *carried]
    start, end = given[counter], end if bound is None else given[bound]
    if not (scope.knows(start) and scope.knows(end)):
        return None
    value = lambda atom, position: int(scope.value(atom, position))
    return np.asarray([max(0, value(end, d) - value(start, d)) for d in scope.positions])


def _place(atom: Atom, atoms: Sequence[Atom]) -> int | None:
    return next((k for k, other in enumerate(atoms) if other is atom), None)


def _uncast(jaxpr: Jaxpr | ClosedJaxpr, atom: Atom) -> Atom:
    """What a value was before casts."""
    casts = {e.outvars[0]: e.invars[0] for e in jaxpr.eqns if e.primitive.name in CASTS}
    while not isinstance(atom, Literal) and atom in casts:
        atom = casts[atom]
    return atom


def _counts_up(body: ClosedJaxpr, before: Atom, after: Atom) -> bool:
    """Whether a loop's body adds one to a carried value."""
    for eqn in body.eqns:
        if eqn.outvars[0] is after and eqn.primitive.name == "add":
            i, step = (_uncast(body, atom) for atom in eqn.invars)
            return i is before and isinstance(step, Literal) and step.val == 1
    return False


def _names(eqn: JaxprEqn, sizes: Sizes) -> tuple[str, ...]:
    """The axes of the mesh that an equation's devices meet along."""
    name = eqn.primitive.name
    if name in CASTS or name == "axis_index" or name.endswith("_done"):
        return ()
    names = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    return tuple(n for n in (names if isinstance(names, (tuple, list)) else (names,)) if n in sizes)


def _collective(eqn: JaxprEqn, sizes: Sizes) -> Count:
    kind = _KINDS.get(eqn.primitive.name.removesuffix("_start"))
    groups = eqn.params.get("axis_index_groups")
    if groups is not None and all(len(group) == 1 for group in groups):
        return {}  # each device alone: a cast in disguise
    if kind is None or groups is not None:
        raise ValueError(
            f"count_bytes: expected collectives among {sorted(_KINDS)} without axis_index_groups; got "
            f"{eqn}"
        )
    names = _names(eqn, sizes)
    given: Any = [
        v.aval for v in eqn.invars
    ]  # of arrays; jax says no more than that it is abstract
    num_bytes = sum(a.size * a.dtype.itemsize for a in given)
    if kind == "permute":
        return routes.permuted(num_bytes, _pairs(eqn.params["perm"], names, sizes), sizes)
    return routes.along(kind, num_bytes, names, sizes)


def _pairs(perm: Iterable[tuple[int, int]], names: tuple[str, ...], sizes: Sizes) -> np.ndarray:
    """Positions of (source, target) for pairs of indices along some axes together."""
    positions = np.arange(prod(sizes.values())).reshape(tuple(sizes.values()))
    order = [list(sizes).index(name) for name in names]
    rows = np.moveaxis(positions, order, range(len(order)))
    rows = rows.reshape(prod(sizes[name] for name in names), -1)
    return np.stack([rows[list(end)] for end in zip(*perm, strict=True)], -1).reshape(-1, 2)
