"""What is known of a traced program before it runs: constants, axis indices, what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from jtssm.arrays import Array
from jtssm.sharding.count.routes import Sizes

Atom = Var | Literal  # what an equation takes
Value = np.ndarray | Array

# Inside shard_map these only change how a value is typed.
CASTS = {"pvary", "preduced", "reduced_vary_cast", "vary_unreduced_cast", "vary_unreduced_cast_p"}
_OWN_ARGUMENTS = {
    "cond",
    "scan",
    "shard_map",
    "while",
}  # their jaxprs take other arguments than they


class Source(NamedTuple):
    """Where an argument of a jaxpr comes from."""

    scope: Scope  # that hands it in
    atom: Atom
    spec: Sequence = ()  # of shard_map: the axes along which it is cut

    def known(self, indexed: bool) -> bool:
        """Whether its value is known before the program runs; indexed: on a given device."""
        return self.scope.knows(self.atom) and (indexed or not any(self.spec))

    def value(self, position: int, sizes: Sizes) -> Value:
        """The part of it that the device at a position holds."""
        value = self.scope.value(self.atom, position)
        for axis, names in enumerate(self.spec):
            if names:
                names = names if isinstance(names, tuple) else (names,)
                blocks = np.split(np.asarray(value), prod(sizes[n] for n in names), axis)
                value = blocks[index(names, position, sizes)]
        return value


class _Made(NamedTuple):
    """Where a known value comes from."""

    order: int  # of its equation in the program
    eqn: JaxprEqn
    which: int  # of the equation's results


def index(names: Sequence[str], position: int, sizes: Sizes) -> int:
    """Where the device at a position stands along some axes together, the first varying slowest."""
    place = dict(zip(sizes, np.unravel_index(position, tuple(sizes.values())), strict=True))
    at = 0
    for name in names:
        at = at * sizes[name] + int(place[name])
    return at


class Scope:
    """A jaxpr where it is called, and which of its values are known.

    Args:
        jaxpr: open or closed.
        consts: values of its constvars.
        sources: of its first arguments; None for one of which nothing is known.
        sizes: of the mesh's axes; empty outside shard_map.
        indexed: whether the index of a device along an axis counts as known.
    """

    def __init__(
        self,
        jaxpr: Jaxpr | ClosedJaxpr,
        consts: Sequence[Value] = (),
        sources: Sequence[Source | None] = (),
        sizes: Sizes | None = None,
        indexed: bool = False,
    ):
        self.jaxpr, self.sizes, self.indexed = jaxpr, sizes or {}, indexed
        self._sources = {
            var: source
            for var, source in zip(jaxpr.invars, sources, strict=False)
            if source and source.known(indexed)
        }
        self._consts = dict(zip(jaxpr.constvars, consts, strict=False))
        self._values: dict[int, dict[Var, Value]] = {}
        self._calls: dict[int, Scope] = {}
        self._made: dict[Var, _Made] = {}
        for order, eqn in enumerate(jaxpr.eqns):
            self._meet(order, eqn)

    @property
    def positions(self) -> range:
        """Of the devices on which known values may differ; only the first where they cannot."""
        return range(prod(self.sizes.values()) if self.indexed else 1)

    def knows(self, atom: Atom) -> bool:
        """Whether the value is known before the program runs."""
        if isinstance(atom, Literal):
            return True
        return atom in self._consts or atom in self._made or atom in self._sources

    def enter(
        self,
        jaxpr: Jaxpr | ClosedJaxpr,
        atoms: Sequence[Atom | None] = (),
        specs: Sequence[Sequence] | None = None,
        sizes: Sizes | None = None,
    ) -> Scope:
        """The scope of a jaxpr called from here; atoms: its first arguments, None for an unknown one."""
        specs = specs or [()] * len(atoms)
        sources = [
            None if atom is None else Source(self, atom, spec)
            for atom, spec in zip(atoms, specs, strict=True)
        ]
        consts = getattr(jaxpr, "consts", ())
        return Scope(jaxpr, consts, sources, self.sizes if sizes is None else sizes, self.indexed)

    def call(self, eqn: JaxprEqn) -> Scope | None:
        """The scope of what an equation calls with its own arguments (jit, remat, custom_jvp, ...)."""
        inner = called(eqn)
        if len(inner) != 1 or eqn.primitive.name in _OWN_ARGUMENTS:
            return None
        if len(inner[0].invars) != len(eqn.invars) or len(inner[0].outvars) != len(eqn.outvars):
            return None
        if id(eqn) not in self._calls:
            self._calls[id(eqn)] = self.enter(inner[0], eqn.invars)
        return self._calls[id(eqn)]

    def value(self, atom: Atom, position: int) -> Value:
        """A known value, on the device at a position of the mesh."""
        if isinstance(atom, Literal):
            aval: Any = atom.aval
            return np.asarray(atom.val, aval.dtype)
        if atom in self._consts:
            return self._consts[atom]
        if atom in self._sources:
            return self._sources[atom].value(position, self.sizes)
        values = self._values.setdefault(position, {})
        # In the order of the program and not by recursion, which a long program would make too deep.
        for var in self._needed(atom, values):
            values[var] = self._evaluated(var, position)
        return values[atom]

    def _needed(self, atom: Var, have: Mapping[Var, Value]) -> list[Var]:
        """The known results that a value rests on and that are not yet there, in program order."""
        needed: dict[Var, int] = {}
        wanted: list[Atom] = [atom]
        while wanted:
            var = wanted.pop()
            if isinstance(var, Literal) or var in have or var in needed:
                continue
            if made := self._made.get(var):
                needed[var] = made.order
                wanted += made.eqn.invars
        return sorted(needed, key=needed.__getitem__)

    def _meet(self, order: int, eqn: JaxprEqn) -> None:
        """Notes which results of an equation are known; called in the order of the program."""
        inner, name = self.call(eqn), eqn.primitive.name
        if inner is not None:
            known = [inner.knows(out) for out in inner.jaxpr.outvars]
        elif name == "axis_index":
            known = [self.indexed]
        else:
            plain = name in CASTS or not (eqn.effects or called(eqn))
            known = [plain and all(map(self.knows, eqn.invars))] * len(eqn.outvars)
        for which, (var, yes) in enumerate(zip(eqn.outvars, known, strict=True)):
            if yes:
                self._made[var] = _Made(order, eqn, which)

    def _evaluated(self, var: Var, position: int) -> Value:
        """A known result, from the values it rests on."""
        _, eqn, which = self._made[var]
        if eqn.primitive.name == "axis_index":
            name = eqn.params["axis_name"]
            names = name if isinstance(name, tuple) else (name,)
            return np.asarray(index(names, position, self.sizes), np.int32)
        inner = self.call(eqn)
        if inner is not None:
            return inner.value(inner.jaxpr.outvars[which], position)
        given = [self.value(atom, position) for atom in eqn.invars]
        if eqn.primitive.name in CASTS:
            return given[which]
        with jax.ensure_compile_time_eval():
            out = eqn.primitive.bind(*given, **eqn.params)
        return out[which] if eqn.primitive.multiple_results else out


def called(eqn: JaxprEqn) -> list[Jaxpr | ClosedJaxpr]:
    """The jaxprs among an equation's parameters, closed ones with their constants."""
    groups = [p if isinstance(p, (tuple, list)) else (p,) for p in eqn.params.values()]
    return [p for group in groups for p in group if hasattr(p, "eqns") and hasattr(p, "invars")]
