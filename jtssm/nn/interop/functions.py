"""Plain functions as layers of a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jtssm.arrays import Array, Tree
from jtssm.nn.adapted import Call, Pure
from jtssm.nn.interop.adapt import chained, listed, named
from jtssm.nn.interop.tied import Held, plain
from jtssm.nn.network import Network


def layers(functions: Sequence[Callable | tuple[Tree, Callable]], sample_input: Tree) -> Network:
    """A network of plain functions, each a layer: what `solvers` train and cut.

    Args:
      functions: each one of
        f                   a function x [samples, ...] -> [samples, ...] without parameters (jax.nn.relu)
        (params, f)         f(params, x) and the pytree of floats that its parameters start from
        (init, f)           the same with init(key, x) -> params
        f may also take the keywords `training` (bool) and `key`: what it draws from while training, of
        one sample at a time, else None.
      sample_input: [samples, ...], e.g. jnp.zeros((1, 28, 28, 1)), or a tree of such arrays, which the
        first function gets as x; integers (tokens) of a single array as int32. What functions hand each
        other may be trees of arrays as well.

    Entries between which one array is shared are one layer, and it stays one array.

    Raises:
      ValueError: other entries, a function that does not take what the one before it gives.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jtssm import nn
      >>> init = lambda key, x: {"W": jax.random.normal(key, (x.shape[-1], 3))}
      >>> dense = lambda params, x: x @ params["W"]
      >>> nn.layers([jnp.tanh, (init, dense)], jnp.zeros((1, 4))).shapes
      ((4,), (4,), (3,))
    """
    given = listed(functions)
    makers = [_maker(i, f) for i, f in enumerate(given)]
    return chained(makers, sample_input, [_arrays(entry) for entry in given])


def _arrays(given: Any) -> Held:
    """Those that the parameters of an entry start from, by where they stand."""
    if not isinstance(given, (tuple, list)) or callable(given[0]):
        return []
    return [
        (plain(path), a)
        for path, a in jax.tree_util.tree_leaves_with_path(given[0])
        if isinstance(a, (jax.Array, np.ndarray))
    ]


def _maker(i: int, given: Any) -> Callable[[], Pure]:
    alone = callable(given) and not isinstance(given, (tuple, list))
    pair = isinstance(given, (tuple, list)) and len(given) == 2 and callable(given[1])
    if not alone and not pair:
        raise ValueError(
            f"functions: expected a function, (params, f) or (init, f), f(params, x) a layer; got "
            f"{given!r} as entry {i}"
        )
    return lambda: of_function(given) if alone else _of_pair(*given)


def of_function(f: Callable[..., Array]) -> Pure:
    """A layer without parameters."""
    call = _keywords(f)
    return Pure(
        named(f),
        draw=lambda key, x: ({}, {}),
        run=lambda params, state, x, how: (f(x, **call(how)), {}),
        whole=lambda params, state: f,
    )


def _of_pair(start: Tree, f: Callable[..., Array]) -> Pure:
    call = _keywords(f)

    def draw(key: Array, x: Tree) -> tuple[Tree, Tree]:
        return (start(key, x) if callable(start) else jax.tree.map(lambda a: a, start)), {}

    return Pure(
        named(f),
        draw=draw,
        run=lambda params, state, x, how: (f(params, x, **call(how)), {}),
        whole=lambda params, state: (params, f),
    )


def _keywords(f: Callable) -> Callable[[Call], dict[str, bool | Array | None]]:
    """What f wants to know of a call."""
    try:
        known = inspect.signature(f).parameters
    except (TypeError, ValueError):  # builtins
        known = {}  # type: ignore[assignment]
    wanted = [name for name in ("training", "key") if name in known]
    return lambda how: {name: getattr(how, name) for name in wanted}
