"""How users' modules become a network, one layer each (`jtssm.nn.adapted`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import Array, Shaped, Tree
from jtssm.nn.adapted import Adapted, Call, Pure, adapted
from jtssm.nn.boundary import ARRAYS, Sample, SampleTree, boolean, of_arrays, sample_of
from jtssm.nn.interop.tied import Held, Mend, joined, spans, ties
from jtssm.nn.network import Network, sequence


def chained(
    makers: Sequence[Callable[[], Pure]],
    sample_input: Tree,
    held: Sequence[Held],
    mend: Mend = lambda owner, owner_path, module, path: None,
) -> Network:
    """A network of modules, each adapted in its turn; those that share parameters are one layer.

    Args:
      sample_input: [samples, ...], an array or a tree of them.
      held: of each module what it holds.
      mend: ties what a layer of several gives back, see `joined`.

    Raises:
      ValueError: no modules, a bad sample, a module that does not take what the one before it gives.
    """
    entry, integer = _sample(sample_input)
    for i, holds in enumerate(held):
        for path, a in holds:
            check_held(f"module {i}: {'.'.join(map(str, path))}", a)
    found = ties(held)
    parts = [make() for make in makers]
    layers: list[Adapted] = []
    given = entry
    for span in spans(len(parts), found):
        first = given
        for i in span:
            layer = _layer(f"module {i}", parts[i], given, integer and i == 0)
            given = layer.shape(given)
        if len(span) > 1:
            own = [
                t._replace(module=t.module - span.start, owner=t.owner - span.start)
                for t in found
                if t.owner in span
            ]
            one = joined([parts[i] for i in span], own, mend)
            name = f"modules {span[0]} to {span[-1]}"
            layer = _layer(name, one, first, integer and span.start == 0)
        layers.append(layer)
    return sequence(layers, entry)


def check_held(name: str, a: object) -> None:
    """Arrays to start from have numbers, all of them finite; anything else is left alone.

    Raises:
      ValueError: an array without numbers, or with NaN or infinite ones.
    """
    if isinstance(a, (np.ndarray, jax.Array)) and not isinstance(a, jax.core.Tracer):
        if 0 in a.shape:
            raise ValueError(f"{name}: expected sizes of at least 1; got shape {a.shape}")
        if jnp.issubdtype(a.dtype, jnp.floating):
            checks.finite(name, a)


def _layer(which: str, one: Pure, given: Sample, integer: bool) -> Adapted:
    try:
        return adapted(one, given, integer)
    except Exception as error:
        what = str(given)
        if not isinstance(given, SampleTree):
            what = f"shape {given} of {'int32' if integer else 'float32'}"
        raise ValueError(
            f"modules: expected that {which}, {one.name}, takes samples of {what} and gives "
            f"[samples, ...]; got {type(error).__name__}: {error}"
        ) from error


def _sample(sample_input: Tree) -> tuple[Sample, bool]:
    """One sample, and whether it is one array of integers."""
    given = isinstance(sample_input, ARRAYS) and boolean(cast(Shaped, sample_input))
    if of_arrays(sample_input) or given:
        try:
            return sample_of(jax.tree.map(_shape_of, sample_input)), False
        except ValueError as error:
            raise ValueError(f"sample_input: {error}") from error
    checks.array("sample_input", sample_input)
    shape = tuple(jnp.shape(sample_input))
    dtype: DTypeLike = jnp.result_type(sample_input) if shape else "nothing"
    numbers = shape and any(jnp.issubdtype(dtype, k) for k in (jnp.floating, jnp.integer))
    if len(shape) < 2 or not numbers or min(shape) < 1:
        raise ValueError(
            f"sample_input: expected samples [samples, ...] of floats or integers, as the first module "
            f"takes them, e.g. jnp.zeros((1, 28, 28, 1)); got shape {shape} of {dtype}"
        )
    return shape[1:], jnp.issubdtype(dtype, jnp.integer)


def _shape_of(a: Shaped) -> jax.ShapeDtypeStruct:
    """In the dtype that jax has it in."""
    return jax.ShapeDtypeStruct(a.shape, jax.dtypes.canonicalize_dtype(a.dtype))


def dropped(x: Array, call: Call, number: int, rate: float, same: Sequence[int]) -> Array:
    """Dropout of x [b, ...] with a mask for each sample.

    number: of dropouts so far in this call.  same: dimensions along which the mask is the same.
    """
    if x.shape[0] != len(call.keys):  # type: ignore[arg-type]
        raise ValueError(
            f"expected dropout of samples [{len(call.keys)}, ...] beside batch statistics; got {x.shape}"  # type: ignore[arg-type]
        )
    if rate == 0 or 0 in same:
        return x * (rate < 1)
    shape = [1 if d in same or d - x.ndim in same else n for d, n in enumerate(x.shape)]
    draw = lambda key: jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, shape[1:])
    kept = jnp.broadcast_to(jax.vmap(draw)(call.keys), x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


def need_flax(name: str) -> ModuleType:
    """The package flax.

    Raises:
      ImportError: it is not installed.
    """
    try:
        import flax
    except ImportError as error:
        raise ImportError(f"{name} needs flax: pip install 'jtssm[flax]'") from error
    return flax


def listed(modules: object) -> list[Any]:
    """A list or tuple of at least one module.

    Raises:
      ValueError: anything else.
    """
    if not isinstance(modules, (list, tuple)) or not modules:
        raise ValueError(
            f"modules: expected a list of modules, one a layer, e.g. [nnx.Linear(...), jax.nn.relu]; got "
            f"{modules!r}"
        )
    return list(modules)


def named(given: object) -> str:
    """What a layer made of a function or module is called."""
    return getattr(given, "__name__", None) or type(given).__name__
