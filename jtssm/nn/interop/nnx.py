"""flax nnx modules as layers of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jtssm.arrays import Array, Shaped, Tree
from jtssm.nn.adapted import Call, Pure
from jtssm.nn.interop.adapt import chained, dropped, listed, need_flax
from jtssm.nn.interop.functions import of_function
from jtssm.nn.network import Network

if TYPE_CHECKING:
    from flax import nnx


def from_nnx(
    modules: Sequence[nnx.Module | Callable], sample_input: Shaped | None = None
) -> Network:
    """A network of flax nnx modules, each a layer: what `solvers` train and cut.

    Training starts from the values that the modules hold, whatever the key. The modules given stay as
    they are; `Result.module()` gives new ones with what was trained. Dropout, and whatever else draws
    from the modules' `rngs`, draws anew in every step; `nnx.BatchNorm` trains as `jtssm.nn.adapted` says.

    Args:
      modules: nnx modules and functions without parameters (jax.nn.relu), called as f(x).
      sample_input: [samples, ...], e.g. jnp.zeros((1, 28, 28, 1)); integers (tokens) up to 2^24 reach the
        first module as int32. Not needed if the first module is an `nnx.Linear`.

    Raises:
      ImportError: without flax.
      ValueError: no modules, two that share a variable, one that does not take what the one before it
        gives, keeps a state other than that of `nnx.BatchNorm`, or has parameters that are no floats.

    Examples:
      >>> import jax
      >>> from flax import nnx
      >>> from jtssm import nn
      >>> rngs = nnx.Rngs(0)
      >>> modules = [nnx.Linear(4, 8, rngs=rngs), jax.nn.relu, nnx.Linear(8, 3, rngs=rngs)]
      >>> nn.from_nnx(modules).shapes
      ((4,), (8,), (8,), (3,))
    """
    need_flax("from_nnx")
    from flax import nnx

    given = listed(modules)
    for i, module in enumerate(given):
        if not isinstance(module, nnx.Module) and not callable(module):
            raise ValueError(
                f"modules: expected nnx modules or functions; got {module!r} as entry {i}"
            )
    _apart(given)
    if sample_input is None:
        if not isinstance(given[0], nnx.Linear):
            raise ValueError(
                f"sample_input: expected samples [samples, ...], as the first module, "
                f"{type(given[0]).__name__}, does not tell their shape; got None"
            )
        sample_input = jax.ShapeDtypeStruct((1, given[0].in_features), jnp.float32)
    makers: list[Callable[[], Pure]] = [lambda m=m: _adapted(m) for m in given]  # type: ignore[misc]
    return chained(makers, sample_input)


def _apart(modules: Sequence[nnx.Module | Callable]) -> None:
    """No two modules share a variable: each layer trains its own."""
    from flax import nnx

    owner: dict[int, int] = {}
    for i, module in enumerate(modules):
        if not isinstance(module, nnx.Module):
            continue
        for path, node in nnx.iter_graph(module):
            if isinstance(node, nnx.Variable) and owner.setdefault(id(node), i) != i:
                name = ".".join(map(str, path))
                raise ValueError(
                    f"modules: expected modules that share nothing; got {name} of module {i}, which is "
                    f"module {owner[id(node)]}'s too: put what shares it into one module"
                )


def _adapted(module: nnx.Module | Callable) -> Pure:
    from flax import nnx

    if not isinstance(module, nnx.Module):
        return of_function(module)
    graph, params, stats, draws, rest = _split(module)

    def merged(given: Tree, state: Tree, random: nnx.State) -> nnx.Module:
        return nnx.merge(
            graph, _filled(params, given), _filled(stats, state), random, _copied(rest)
        )

    def run(given: Tree, state: Tree, x: Array, call: Call) -> tuple[Array, Tree]:
        live = merged(given, state, _seeded(draws, call.key))
        _set(live, call)
        y = live(x)
        *_, after, _, left = _split(live)
        _unchanged(type(module).__name__, rest, left)
        return y, nnx.to_pure_dict(after)

    return Pure(
        type(module).__name__,
        draw=lambda key, x: (nnx.to_pure_dict(params), nnx.to_pure_dict(stats)),
        run=run,
        whole=lambda given, state: merged(given, state, _copied(draws)),
    )


def _split(module: nnx.Module) -> tuple[Any, ...]:
    """(graph, parameters, statistics, random streams, all else)."""
    from flax import nnx

    return nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState, ...)


def _filled(state: nnx.State, values: Tree) -> nnx.State:
    """An nnx State with other values."""
    from flax import nnx

    new = _copied(state)
    nnx.replace_by_pure_dict(new, values)
    return new


def _copied(state: nnx.State) -> nnx.State:
    return jax.tree.map(lambda a: a, state)


def _seeded(draws: nnx.State, key: Array | None) -> nnx.State:
    """Random streams that start from a key, each from its own."""
    if key is None:
        return _copied(draws)
    leaves, structure = jax.tree.flatten(draws)
    keys = jnp.issubdtype
    fresh = [
        jax.random.fold_in(key, i) if keys(a.dtype, jax.dtypes.prng_key) else jnp.zeros_like(a)
        for i, a in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, fresh)


def _set(module: nnx.Module, call: Call) -> None:
    """Train or predict; means over all devices and samples at hand."""
    from flax import nnx

    module.train() if call.training else module.eval()
    module.set_attributes(deterministic=not call.drops, raise_if_not_found=False)
    if call.keys is not None:
        drops = [node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.Dropout)]
        for number, node in enumerate(drops):
            _mask_each_sample(node, call, number)
    norms: dict[str, Any] = {"axis_name": call.axes or None} | (
        {"momentum": 0.0} if call.estimating else {}
    )
    module.set_attributes(nnx.BatchNorm, raise_if_not_found=False, **norms)


def _mask_each_sample(dropout: nnx.Dropout, call: Call, number: int) -> None:
    """Let a Dropout draw a mask for each sample; a module used twice draws the same one twice."""
    from flax import nnx

    class Masked(nnx.Dropout):
        def __call__(
            self,
            inputs: Array,
            *,
            deterministic: bool | None = None,
            rngs: nnx.Rngs | nnx.RngStream | Array | None = None,
        ) -> Array:
            if self.deterministic if deterministic is None else deterministic:
                return inputs
            return dropped(inputs, call, number, self.rate, self.broadcast_dims)

    object.__setattr__(dropout, "__class__", Masked)


def _unchanged(name: str, before: nnx.State, after: nnx.State) -> None:
    """A call leaves variables of other kinds as they are, or they would be lost."""
    paths = [jax.tree_util.tree_leaves_with_path(state) for state in (before, after)]
    if len(paths[0]) != len(paths[1]) or any(
        a is not b for (_, a), (_, b) in zip(*paths, strict=True)
    ):
        raise ValueError(
            f"expected modules that keep nothing but parameters, statistics of nnx.BatchNorm and random "
            f"streams; got {name}, which changes other variables as it runs"
        )
