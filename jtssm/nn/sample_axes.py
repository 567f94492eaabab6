"""Where the axis of samples goes in a trace, primitive by primitive: `followed`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from jax.extend.core import Jaxpr, Literal, Var

Axis = int | None  # where samples lie in an array; None: it does not depend on them
AXIS = "samples"  # of a mesh, in a trace
MIXED = -1  # in place of an axis: a sum over samples went into it

ELEMENTWISE = frozenset(
    (
        "abs",
        "acos",
        "acosh",
        "add",
        "add_any",
        "and",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "cbrt",
        "ceil",
        "clamp",
        "conj",
        "convert_element_type",
        "copy",
        "copy_p",
        "cos",
        "cosh",
        "digamma",
        "div",
        "eq",
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "ge",
        "gt",
        "imag",
        "integer_pow",
        "is_finite",
        "le",
        "lgamma",
        "log",
        "log1p",
        "logistic",
        "lt",
        "max",
        "min",
        "mul",
        "name",
        "ne",
        "neg",
        "nextafter",
        "not",
        "optimization_barrier",
        "or",
        "pcast",
        "pow",
        "pvary",
        "real",
        "reduce_precision",
        "rem",
        "round",
        "rsqrt",
        "select_n",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "stop_gradient",
        "sub",
        "tan",
        "tanh",
        "xor",
    )
)
CUMULATIVE = frozenset(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"))


class UntoldError(Exception):
    """The trace does not tell where samples go."""


def followed(jaxpr: Jaxpr, axes: Sequence[Axis]) -> list[Axis]:
    """Where samples lie in the outputs, for where they lie in the inputs.

    Raises:
      UntoldError: a primitive that is not known, or a reshape that merges samples with something else.
    """
    met: dict[Var, Axis] = dict(zip(jaxpr.invars, axes, strict=True))
    of = lambda a: None if isinstance(a, Literal) else met.get(a)
    for equation in jaxpr.eqns:
        given = [of(a) for a in equation.invars]
        found = _through(equation, given)
        met.update(zip(equation.outvars, found, strict=True))
    return [of(a) for a in jaxpr.outvars]


def _through(equation: Any, given: list[Axis]) -> list[Axis]:
    """What an equation (a JaxprEqn) makes of the axes of its inputs."""
    num, name = len(equation.outvars), equation.primitive.name
    if all(axis is None for axis in given):
        return [None] * num
    inner = _inner(equation)
    if inner is not None:
        return followed(inner, given)
    if name in ("psum", "psum_invariant", "pmean", "pmax", "pmin") and equation.params.get("axes"):
        return [None if axis == MIXED else axis for axis in given]
    if MIXED in given:
        return [MIXED] * num
    rule = _elementwise if name in ELEMENTWISE else RULES.get(name)
    if rule is None and name.startswith("reduce_"):
        rule = _window if "window" in name else _reduced
    if rule is None:
        rule = _cumulative if name in CUMULATIVE else None
    if rule is None:
        raise UntoldError(name)
    return [rule(equation, given)] * num


def _inner(equation: Any) -> Jaxpr | None:
    """The body of a call; loops and branches are none."""
    if equation.primitive.name in ("scan", "while", "cond"):
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        body = equation.params.get(name)
        body = getattr(body, "jaxpr", body)
        if body is not None and len(body.invars) == len(equation.invars):
            return body
    return None


def _shape(a: Any) -> tuple[int, ...]:
    return tuple(a.aval.shape)


def _only(equation: Any, given: list[Axis], place: int = 0) -> int:
    """The axis of one input, where no other depends on samples."""
    axis = given[place]
    if axis is None or any(a is not None for i, a in enumerate(given) if i != place):
        raise UntoldError(equation.primitive.name)
    return axis


def _told(equation: Any, whether: bool, axis: int) -> int:
    if not whether:
        raise UntoldError(equation.primitive.name)
    return axis


def _elementwise(equation: Any, given: list[Axis]) -> int:
    axes = {axis for axis in given if axis is not None}
    out = _shape(equation.outvars[0])
    # other dimensions may be 1 where they are repeated
    same = all(
        axis is None or (len(_shape(a)) == len(out) and _shape(a)[axis] == out[axis])
        for a, axis in zip(equation.invars, given, strict=True)
    )
    return _told(equation, len(axes) == 1 and same, axes.pop())


def _reduced(equation: Any, given: list[Axis]) -> int:
    axis, over = _only(equation, given), equation.params["axes"]
    return MIXED if axis in over else axis - sum(d < axis for d in over)


def _cumulative(equation: Any, given: list[Axis]) -> int:
    axis = _only(equation, given)
    return _told(equation, equation.params["axis"] != axis, axis)


def _window(equation: Any, given: list[Axis]) -> int:
    axis = given[0]
    if axis is None or equation.params["window_dimensions"][axis] != 1:
        raise UntoldError(equation.primitive.name)
    before, after = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return _told(equation, before[axis] == after[axis], axis)


def _broadcast(equation: Any, given: list[Axis]) -> int:
    return equation.params["broadcast_dimensions"][_only(equation, given)]


def _reshape(equation: Any, given: list[Axis]) -> int:
    axis, before, after = (
        _only(equation, given),
        _shape(equation.invars[0]),
        _shape(equation.outvars[0]),
    )
    fits = (
        k
        for k in range(len(after))
        if after[k] == before[axis] and prod(after[:k]) == prod(before[:axis])
    )
    found = next(fits, None)
    return _told(equation, found is not None, found or 0)


def _transpose(equation: Any, given: list[Axis]) -> int:
    return list(equation.params["permutation"]).index(_only(equation, given))


def _squeeze(equation: Any, given: list[Axis]) -> int:
    axis, gone = _only(equation, given), equation.params["dimensions"]
    return _told(equation, axis not in gone, axis - sum(d < axis for d in gone))


def _dot(equation: Any, given: list[Axis]) -> int:
    contracted, batch = equation.params["dimension_numbers"]
    ranks = [len(_shape(a)) for a in equation.invars]
    places = []
    for side, axis in enumerate(given):
        if axis is None:
            continue
        if axis in contracted[side]:
            return MIXED
        if axis in batch[side]:
            places.append(list(batch[side]).index(axis))
            continue
        free = [d for d in range(ranks[side]) if d not in (*contracted[side], *batch[side])]
        first = len(batch[0]) + (ranks[0] - len(contracted[0]) - len(batch[0])) * side
        places.append(first + free.index(axis))
    return _told(equation, len(set(places)) == 1, places[0])


def _convolution(equation: Any, given: list[Axis]) -> int:
    numbers = equation.params["dimension_numbers"]
    plain = (
        numbers.lhs_spec[0] == _only(equation, given) and equation.params["batch_group_count"] == 1
    )
    return _told(equation, plain, numbers.out_spec[0])


def _concatenate(equation: Any, given: list[Axis]) -> int:
    axes = {axis for axis in given if axis is not None}
    return _told(equation, len(axes) == 1 and equation.params["dimension"] not in axes, axes.pop())


def _whole(equation: Any, given: list[Axis]) -> int:
    """Padding, slices and the like that keep all samples, each in its place."""
    axis = given[0]
    if axis is None or any(a is not None for a in given[1:]):
        raise UntoldError(equation.primitive.name)
    size = _shape(equation.invars[0])[axis]
    kept = all(_shape(out)[axis] == size for out in equation.outvars)
    strides = equation.params.get("strides")
    padding = equation.params.get("padding_config")
    plain = (strides is None or strides[axis] == 1) and (
        padding is None or tuple(padding[axis]) == (0, 0, 0)
    )
    return _told(equation, kept and plain, axis)


def _along(name: str) -> Callable[[Any, list[Axis]], int]:
    """The rule of what works along one dimension, that parameter, and on each place of the others."""

    def rule(equation: Any, given: list[Axis]) -> int:
        axes = {axis for axis in given if axis is not None}
        worked = equation.params.get(name, len(_shape(equation.invars[0])) - 1)
        worked = worked if isinstance(worked, tuple) else (worked,)
        return _told(equation, len(axes) == 1 and not axes & set(worked), axes.pop())

    return rule


def _gather(equation: Any, given: list[Axis]) -> int:
    numbers = equation.params["dimension_numbers"]
    rank = len(_shape(equation.outvars[0]))
    if given[0] is None:  # rows of a table, one for each index
        free = [d for d in range(rank) if d not in numbers.offset_dims]
        return free[_only(equation, given, 1)]
    axis, sizes = _only(equation, given), equation.params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = axis not in gone and sizes[axis] == _shape(equation.invars[0])[axis]
    left = [d for d in range(len(sizes)) if d not in gone]
    return _told(equation, kept, numbers.offset_dims[left.index(axis)] if kept else 0)


RULES: dict[str, Callable[[Any, list[Axis]], int]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "concatenate": _concatenate,
    "pad": _whole,
    "slice": _whole,
    "dynamic_slice": _whole,
    "argmax": _reduced,
    "argmin": _reduced,
    "sort": _along("dimension"),
    "rev": _along("dimensions"),
    "split": _along("axis"),
    "top_k": _along("none: the last"),
    "gather": _gather,
}
