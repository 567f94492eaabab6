"""How users' modules become a network, one layer each (`jtssm.nn.adapted`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jtssm.arrays import Array, Shaped
from jtssm.nn.adapted import ROWS, Call, Pure, adapted
from jtssm.nn.network import Network, sequence


def chained(makers: Iterable[Callable[[], Pure]], sample_input: Shaped) -> Network:
    """A network of modules, each adapted in its turn; sample_input [samples, ...].

    Raises:
      ValueError: no modules, a bad sample, a module that does not take what the one before it gives.
    """
    x = _sample(sample_input)
    layers, shape, integer = [], x.shape[1:], jnp.issubdtype(x.dtype, jnp.integer)
    for i, make in enumerate(makers):
        one = make()
        given = jax.ShapeDtypeStruct((ROWS, *shape), x.dtype if i == 0 else jnp.float32)
        try:
            layer = adapted(one, given, integer and i == 0)
            shape = layer.shape(shape)
        except Exception as error:
            raise ValueError(
                f"modules: expected that module {i}, {one.name}, takes samples of shape {shape} of "
                f"{given.dtype} and gives [samples, ...]; got {type(error).__name__}: {error}"
            ) from error
        layers.append(layer)
    return sequence(layers, x.shape[1:])


def _sample(sample_input: Shaped) -> jax.ShapeDtypeStruct:
    shape = tuple(jnp.shape(sample_input))
    dtype: DTypeLike = jnp.result_type(sample_input) if shape else "nothing"
    numbers = shape and any(jnp.issubdtype(dtype, k) for k in (jnp.floating, jnp.integer))
    if len(shape) < 2 or not numbers or min(shape) < 1:
        raise ValueError(
            f"sample_input: expected samples [samples, ...] of floats or integers, as the first module "
            f"takes them, e.g. jnp.zeros((1, 28, 28, 1)); got shape {shape} of {dtype}"
        )
    return jax.ShapeDtypeStruct(
        shape, jnp.int32 if jnp.issubdtype(dtype, jnp.integer) else jnp.float32
    )


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


def apart(what: str, held: Sequence[Iterable[tuple[str, object]]]) -> None:
    """No two layers hold the same object: each trains its own, and would train a copy.

    Args:
      what: the argument that they came in.
      held: of each layer what it holds, by name.

    Raises:
      ValueError: two that do, or one that holds an array twice.
    """
    owner: dict[int, int] = {}
    for i, holds in enumerate(held):
        for name, a in holds:
            if owner.setdefault(id(a), i) != i:
                raise ValueError(
                    f"{what}: expected modules that share nothing; got {name} of module {i}, which is "
                    f"module {owner[id(a)]}'s too: put what shares it into one module"
                )


def named(given: object) -> str:
    """What a layer made of a function or module is called."""
    return getattr(given, "__name__", None) or type(given).__name__
