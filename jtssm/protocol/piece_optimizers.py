"""The optimizer of a piece: it sees the tree of the whole network, and is tried before any work begins.

A mask, a function of labels or a rate by layer speaks of layers by their place in the network. So the
optimizer of a piece gets a list of all layers, in which `Elsewhere` stands for the parameters that other
pieces hold: nodes without leaves, of which nothing is stored, added up or sent.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import Jaxpr, Var, jaxprs_in_params
from jax.tree_util import PyTreeDef

from jtssm import checks
from jtssm.arrays import Array, Shaped, Tree
from jtssm.protocol.branching import on_a_mesh
from jtssm.protocol.optimizers import words

if TYPE_CHECKING:
    from jtssm.nn.network import Network

Optimizer: TypeAlias = optax.GradientTransformation
Problem: TypeAlias = tuple[str, str]  # what is expected, what it does
STEADY = "a state and updates that keep their shapes and dtypes from step to step"
ENOUGH = (
    "one that a gradient, the parameters (one tree a layer of the network) and value=, the loss, are "
    "enough for; instead of a line search or lookahead, which want more, use adam or sgd"
)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Elsewhere:
    """A parameter that another piece holds: no leaf of the tree in which it stands."""

    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """As of the array."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """As of the array."""
        return prod(self.shape)


class Trial(NamedTuple):
    """What one step of an optimizer, on shapes alone, has shown."""

    wants_loss: bool = False  # whether the loss enters its numbers
    frozen: tuple[bool, ...] = ()  # the updates that are zeros whatever comes, of each array
    branches: bool = False  # whether there is a `lax.cond` in it
    problem: Problem | None = None  # it cannot be run, or its state changes its shapes
    dtypes: Problem | None = None  # its state changes its dtypes


class PieceOptimizer(optax.GradientTransformationExtraArgs):
    """An optimizer of a piece's own list of trees, one a layer, which was tried on their shapes."""

    wants_loss: bool  # whether its numbers depend on value=
    frozen: tuple[
        bool, ...
    ]  # of each array of the piece: whether its updates are zero whatever comes


def of_pieces(
    optimizer: Optimizer | optax.MultiSteps | Sequence[Optimizer | optax.MultiSteps],
    net: Network,
    starts: Sequence[int],
    name: str = "optimizer",
) -> tuple[PieceOptimizer, ...]:
    """What trains each piece of a cut network.

    Args:
      optimizer: one for all pieces, or one each; of trees of the whole network's layers.
      starts: piece l holds the layers starts[l] .. starts[l + 1] - 1.
      name: of the argument that they were given as, in errors.

    Returns:
      Optimizers of the pieces' own trees.

    Raises:
      ValueError: no optimizers, not as many as pieces, or one that cannot train its piece.
    """
    each = checks.optimizers(optimizer, len(starts) - 1, name)
    shapes = net.parameter_shapes()
    pairs = zip(each, pairwise(starts), strict=True)
    return tuple(_of_piece(one, shapes, first, after, name) for one, (first, after) in pairs)


def wants_loss(optimizer: Optimizer) -> bool:
    """Whether a piece's optimizer must be told what the piece minimises."""
    return getattr(optimizer, "wants_loss", False)


def frozen(optimizer: Optimizer) -> tuple[bool, ...]:
    """Of each array of a piece, whether its optimizer never moves it; () of one nobody tried."""
    return getattr(optimizer, "frozen", ())


def check_state(optimizer: Optimizer, params: Tree, name: str = "optimizer") -> None:
    """Refuse an optimizer that cannot train parameters of these shapes and dtypes.

    Raises:
      ValueError: its update fails, or its state or updates would not keep their shapes and dtypes.
    """
    trial = _trial(optimizer, params)
    _refuse(trial.problem or trial.dtypes, optimizer, name)


def _refuse(problem: Problem | None, optimizer: Optimizer, name: str) -> None:
    if problem is not None:
        raise ValueError(f"{name}: expected {problem[0]}; got {words(optimizer)}, {problem[1]}")


def _trial(optimizer: Optimizer, params: Tree) -> Trial:
    """One step of an optimizer on parameters of these shapes and dtypes."""
    leaves, structure = jax.tree.flatten(params)
    shapes = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves)
    whole = optax.with_extra_args_support(optimizer)
    return _tried(whole.init, whole.update, shapes, structure)


def _of_piece(
    optimizer: Optimizer, shapes: list[Tree], first: int, after: int, name: str
) -> PieceOptimizer:
    whole = optax.with_extra_args_support(optimizer)
    own = whole if after - first == len(shapes) else _among(whole, shapes, first, after)
    trial = _trial(own, shapes[first:after])
    _refuse(trial.problem, optimizer, name)  # dtypes: when they are known, by `check_state`
    found = PieceOptimizer(own.init, on_a_mesh(own.update) if trial.branches else own.update)
    found.wants_loss, found.frozen = trial.wants_loss, trial.frozen
    return found


def _among(
    optimizer: optax.GradientTransformationExtraArgs, shapes: list[Tree], first: int, after: int
) -> optax.GradientTransformationExtraArgs:
    """An optimizer of all layers as one of the layers first .. after - 1."""
    absent = jax.tree.map(lambda a: Elsewhere(tuple(a.shape)), shapes)

    def placed(own: list[Tree]) -> list[Tree]:
        return [*absent[:first], *own, *absent[after:]]

    def init(params: list[Tree]) -> Tree:
        return optimizer.init(placed(params))

    def update(
        gradient: list[Tree], state: Tree, params: list[Tree] | None = None, **more: Tree
    ) -> tuple[list[Tree], Tree]:
        given = None if params is None else placed(params)
        updates, state = optimizer.update(placed(gradient), state, given, **more)
        return list(updates[first:after]), state

    return optax.GradientTransformationExtraArgs(init, update)


@lru_cache(maxsize=64)
def _tried(
    init: Callable, update: Callable, leaves: tuple[Shaped, ...], structure: PyTreeDef
) -> Trial:
    """Kept for those seen last: a planner asks again and again."""
    params = jax.tree.unflatten(structure, leaves)
    loss = jax.ShapeDtypeStruct((), jnp.result_type(*leaves) if leaves else jnp.float32)

    def step(gradient: Tree, state: Tree, params: Tree, loss: Array) -> tuple[Tree, Tree]:
        return update(gradient, state, params, value=loss)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of numbers too large for float32, say: told in training
            state = jax.eval_shape(init, params)
            traced = jax.make_jaxpr(step, return_shape=True)
            jaxpr, (updates, new) = traced(params, state, params, loss)
    except Exception as error:  # whatever an optimizer raises over what it is not given
        raised = f"{type(error).__name__}: {checks.shown(str(error))}"
        return Trial(problem=(ENOUGH, f"which raised {raised}"))
    changed = _changed(state, new, dtypes=False) or _changed(params, updates, dtypes=False)
    other = _changed(state, new, dtypes=True)
    problems = ((STEADY, text) if text else None for text in (changed, other))
    zeros = _zeros(jaxpr.jaxpr)[: len(jax.tree.leaves(updates))]
    return Trial(_read(jaxpr.jaxpr), tuple(zeros), _branches(jaxpr.jaxpr), *problems)


def _read(jaxpr: Jaxpr) -> bool:
    """Whether the last of the arguments is used."""
    last = jaxpr.invars[-1]
    used = [*jaxpr.outvars, *(a for equation in jaxpr.eqns for a in equation.invars)]
    return any(a is last for a in used)


def _branches(jaxpr: Jaxpr) -> bool:
    """Whether there is a branch in it."""
    inner = (each for equation in jaxpr.eqns for each in jaxprs_in_params(equation.params))
    return any(equation.primitive.name == "cond" for equation in jaxpr.eqns) or any(
        map(_branches, inner)
    )


def _zeros(jaxpr: Jaxpr) -> list[bool]:
    """Of each output, whether it is made as zeros, as `optax.set_to_zero` does."""
    found: set[Var] = set()
    zero = lambda a: a in found if isinstance(a, Var) else not np.any(a.val)
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("broadcast_in_dim", "convert_element_type", "copy"):
            made = [zero(equation.invars[0])]
        elif equation.primitive.name in ("pjit", "jit"):
            made = _zeros(equation.params["jaxpr"].jaxpr)
        elif equation.primitive.name == "mul":  # by a pace, a rate
            made = [any(isinstance(a, Var) and a in found for a in equation.invars)]
        else:
            continue
        found |= {a for a, is_zero in zip(equation.outvars, made, strict=True) if is_zero}
    return [zero(a) for a in jaxpr.outvars]


def _changed(old: Tree, new: Tree, *, dtypes: bool) -> str | None:
    """What is not as it was: a text; None: nothing."""
    structures = {jax.tree.structure(tree) for tree in (old, new)}
    if len(structures) > 1:
        return "in which other arrays stand after a step"
    for (path, a), b in zip(jax.tree.leaves_with_path(old), jax.tree.leaves(new), strict=True):
        if a.shape != b.shape or (dtypes and a.dtype != b.dtype):
            one, other = (f"{c.dtype}{list(c.shape)}" for c in (a, b))
            at = jax.tree_util.keystr(path) or "its state"
            return f"in which {at} goes from {one} to {other}"
    return None
