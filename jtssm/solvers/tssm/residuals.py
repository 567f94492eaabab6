"""What a forward pass leaves for the gradients of a later turn, so that nothing runs forward twice.

`jax.vjp` keeps arrays of two kinds. Some are made of parameters alone (the weights themselves, a cast
of them): they are made again at the turn, of the parameters that the forward pass saw. The others depend
on the samples: they wait, one row a sample, in a line like everything that is in flight. Of these only
what comes in and products wait (and what devices sum); what lies between is made again of them: copying
it took longer, in a transformer by a quarter of a step. What belongs to a whole microbatch, such as the
mean of a batch normalisation that devices share, waits with each of its samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive, Var, jaxpr_as_fun
from jax.tree_util import PyTreeDef

from jtssm.arrays import Array, Tree
from jtssm.nn.boundary import num_samples
from jtssm.nn.ops import PRODUCT

# (params, floats that came in) -> f, the rest of it
Run = Callable[[list[Tree], Tree], tuple[Tree, Tree]]

PRODUCTS = ("dot_general", "conv_general_dilated")
COLLECTIVES = ("psum", "psum_invariant", "pmax", "pmin", "all_gather", "all_gather_invariant")


class Row(NamedTuple):
    """How an array that waits is laid in rows, one a sample."""

    shape: tuple[int, ...]
    axis: int | None  # of the samples; None: it belongs to all of them


class Traced(NamedTuple):
    """f_l and what its gradients need: a forward pass and a turn are parts of one program."""

    program: (
        ClosedJaxpr  # (params, floats that came in) -> f, the rest of it, what the gradients need
    )
    outputs: PyTreeDef  # of these three
    form: PyTreeDef  # of the function that `jax.vjp` gives
    of_samples: tuple[bool, ...]  # which of what the gradients need depends on samples
    waits: tuple[int, ...]  # which of it waits: of what is the same array one
    rows: tuple[Row, ...]  # of these

    def forward(self, params: list[Tree], given: Tree) -> tuple[Tree, Tree, tuple[Array, ...]]:
        """(f, the rest of it, what waits [samples, ...])."""
        found = jaxpr_as_fun(self.program)(*jax.tree.leaves((params, given)))
        f, rest, needed = jax.tree.unflatten(self.outputs, found)
        pairs, samples = zip(self.waits, self.rows, strict=True), num_samples(f)
        return f, rest, tuple(_in_rows(needed[i], row, samples) for i, row in pairs)

    def pull(self, params: list[Tree], waited: Sequence[Array], g_f: Tree) -> tuple[Tree, ...]:
        """What `jax.vjp` gives for a cotangent of f; params: those of the forward pass."""
        outs = self.program.jaxpr.outvars[-len(self.of_samples) :]
        there = {outs[i]: _out_of_rows(a, row) for i, row, a in self._pairs(waited)}
        again = iter(self._again(jax.tree.leaves(params)))
        pairs = zip(outs, self.of_samples, strict=True)
        needed = [there[out] if waits else next(again) for out, waits in pairs]
        return jax.tree.unflatten(self.form, needed)(g_f)

    def _pairs(self, waited: Sequence[Array]) -> list[tuple[int, Row, Array]]:
        return list(zip(self.waits, self.rows, waited, strict=True))

    def _again(self, params: list[Array]) -> list[Array]:
        """What the gradients need of the parameters alone."""
        jaxpr = self.program.jaxpr
        outs = jaxpr.outvars[-len(self.of_samples) :]
        wanted = [out for out, waits in zip(outs, self.of_samples, strict=True) if not waits]
        # as many arguments and results as before, which the program's names of them go with
        own = [*wanted, *jaxpr.invars[:1] * (len(jaxpr.outvars) - len(wanted))]
        part = jaxpr.replace(eqns=_needed_for(jaxpr, wanted), outvars=own)
        blank = [jnp.zeros(var.aval.shape, var.aval.dtype) for var in jaxpr.invars[len(params) :]]
        found = jaxpr_as_fun(ClosedJaxpr(part, self.program.consts))(*params, *blank)
        return found[: len(wanted)]


def _needed_for(jaxpr: Jaxpr, wanted: Sequence[Var | Literal]) -> list[JaxprEqn]:
    """The equations of a program that make some of its variables."""
    needed, eqns = {var for var in wanted if isinstance(var, Var)}, []
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            needed |= {var for var in eqn.invars if isinstance(var, Var)}
            eqns.append(eqn)
    return eqns[::-1]


def traced(
    run: Run, doubled: Run, inner: bool, params: list[Tree], given: Tree, samples: int
) -> Traced:
    """A piece's pass forward, traced.

    Args:
      run: of the samples given.
      doubled: of twice as many, which shows where in an array samples lie.
      inner: whether gradients of what came in are wanted.
      params, given: what it is called with.
      samples: how many.

    Raises:
      ValueError: arrays for the gradients in which samples lie along several dimensions, or mixed.
    """
    program, shapes, form = _program(run, inner, params, given, samples)
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), given)
    more = jax.eval_shape(lambda: _needed(doubled, inner, params, twice, 2 * samples))
    num, count = len(jax.tree.leaves(params)), len(more)
    of_samples = _of_samples(program, num)
    outs = program.jaxpr.outvars[-count:] if count else []
    depends = tuple(isinstance(out, Var) and out in of_samples for out in outs)
    waits = tuple(i for i in range(count) if depends[i] and outs[i] not in outs[:i])
    *_, needed = shapes
    if len(needed) != count:
        raise ValueError(
            f"recompute: expected True with layers that multiply an array of {samples} rows, as many as "
            "there are samples, from the left; got False"
        )
    rows = tuple(_row(needed[i].shape, more[i].shape, samples) for i in waits)
    return Traced(program, jax.tree.structure(shapes), form, depends, waits, rows)


def _program(
    run: Run, inner: bool, params: list[Tree], given: Tree, samples: int
) -> tuple[ClosedJaxpr, tuple[Tree, Tree, list[jax.ShapeDtypeStruct]], PyTreeDef]:
    """What `Traced` holds, and the shapes of its outputs."""
    forms: list[PyTreeDef] = []

    def whole(params: list[Tree], given: Tree) -> tuple[Tree, Tree, list[Array]]:
        f, vjp, rest = _vjp(run, inner, params, given, samples)
        needed, form = jax.tree.flatten(vjp)
        forms.append(form)
        return f, rest, needed

    program, shapes = jax.make_jaxpr(whole, return_shape=True)(params, given)
    return program, shapes, forms[0]


def _vjp(
    run: Run, inner: bool, params: list[Tree], given: Tree, samples: int
) -> tuple[Tree, Callable[[Tree], tuple], Tree]:
    """As `jax.vjp` of run; of the first piece the data has no gradient: its product is left out.

    Of what lies between products nothing is kept: it is made again of these.
    """
    run = jax.checkpoint(run, policy=partial(_kept, samples), prevent_cse=False)
    if inner:
        return jax.vjp(run, params, given, has_aux=True)
    return jax.vjp(lambda params: run(params, given), params, has_aux=True)


def _kept(samples: int, primitive: Primitive, *given: jax.core.ShapedArray, **how: Any) -> bool:
    """Whether the gradients are to have what a primitive makes: a product, or what devices sum."""
    if primitive.name == "name":
        return how["name"] == PRODUCT
    # of a matrix of tokens samples are no dimension; its product has a name where they are one
    product = primitive.name in PRODUCTS and given[0].shape[:1] == (samples,)
    return product or primitive.name in COLLECTIVES


def _needed(run: Run, inner: bool, params: list[Tree], given: Tree, samples: int) -> list[Array]:
    return jax.tree.leaves(_vjp(run, inner, params, given, samples)[1])


def _of_samples(program: ClosedJaxpr, params: int) -> set[Var]:
    """The variables of a program that depend on more than its first arguments, the parameters."""
    jaxpr: Jaxpr = program.jaxpr
    consts = zip(jaxpr.constvars, program.consts, strict=True)
    found = {var for var, value in consts if isinstance(value, jax.core.Tracer)}
    found |= set(jaxpr.invars[params:])
    for eqn in jaxpr.eqns:
        if _depends(eqn, found):
            found |= {var for var in eqn.outvars if isinstance(var, Var)}
    return found


def _depends(eqn: JaxprEqn, on: set[Var]) -> bool:
    return any(not isinstance(var, Literal) and var in on for var in eqn.invars)


def _row(shape: tuple[int, ...], twice: tuple[int, ...], samples: int) -> Row:
    """Where samples lie in an array, which has another shape with twice as many."""
    grown = [axis for axis, (a, b) in enumerate(zip(shape, twice, strict=True)) if a != b]
    if not grown:
        return Row(shape, None)
    if len(grown) > 1 or shape[grown[0]] != samples:
        raise ValueError(
            f"recompute: expected True with layers that mix samples: of {samples} samples one keeps an "
            f"array of shape {shape} for its gradient; got False"
        )
    return Row(shape, grown[0])


def _in_rows(a: Array, row: Row, samples: int) -> Array:
    if row.axis is None:
        return jnp.broadcast_to(a.reshape(1, -1), (samples, a.size))
    return jnp.moveaxis(a, row.axis, 0).reshape(samples, -1)


def _out_of_rows(a: Array, row: Row) -> Array:
    if row.axis is None:
        return a[0].reshape(row.shape)
    behind = tuple(size for axis, size in enumerate(row.shape) if axis != row.axis)
    assert a[0].size == prod(behind)
    return jnp.moveaxis(a.reshape(len(a), *behind), 0, row.axis)
