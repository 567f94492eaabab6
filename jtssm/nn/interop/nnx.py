"""flax nnx modules as layers of a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jtssm.arrays import Array, Tree
from jtssm.nn.adapted import Call, Pure, fresh
from jtssm.nn.interop.adapt import chained, check_held, dropped, listed, need_flax
from jtssm.nn.interop.functions import of_function
from jtssm.nn.interop.modes import (
    DROPPING,
    FREEZING,
    MODES,
    OFF,
    Words,
    all_taken,
    calling,
    kept_off,
    of_flax,
    told,
    words,
)
from jtssm.nn.interop.tied import Held, Path
from jtssm.nn.interop.whole import nnx_in_a_list
from jtssm.nn.network import Network

if TYPE_CHECKING:
    from flax import nnx


def from_nnx(
    modules: Sequence[nnx.Module | Callable],
    sample_input: Tree = None,
    *,
    mode: Mapping[str, Any] | None = None,
) -> Network:
    """A network of flax nnx modules, each a layer: what `solvers` train and cut.

    Training starts from the values that the modules hold, whatever the key. The modules given stay as
    they are; `Result.module()` gives new ones with what was trained. Dropout, and whatever else draws
    from the modules' `rngs` or from an argument `rngs`, draws anew in every step; `nnx.BatchNorm` trains
    as `jtssm.nn.adapted` says, but one whose `use_running_average` is True keeps its statistics: after
    `model.eval()` call `model.train()`. Arguments of `__call__`, and attributes of modules of one's own,
    tell whether a module trains as in `from_linen`.

    Modules between which a variable is shared (tied embeddings) are one layer, and it stays one variable.

    Args:
      modules: nnx modules and functions without parameters (jax.nn.relu), called as f(x).
      sample_input: [samples, ...], e.g. jnp.zeros((1, 28, 28, 1)), or a tree of such arrays, which the
        first module gets as its one argument; integers (tokens) of a single array as int32. What modules
        hand each other may be trees as well. Not needed if the first module is an `nnx.Linear`.
      mode: arguments and attributes by name, as for `from_linen`.

    Raises:
      ImportError: without flax.
      ValueError: no modules, a whole model, a module that does not take what the one before it
        gives, keeps a state other than that of `nnx.BatchNorm`, has parameters that are no floats, a
        boolean argument nobody speaks of, dropout in evaluation mode, or batch statistics that no
        training moves.

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

    nnx_in_a_list(modules)
    given, said = listed(modules), told(mode)
    for i, module in enumerate(given):
        if not isinstance(module, nnx.Module) and not callable(module):
            raise ValueError(
                f"modules: expected nnx modules or functions; got {module!r} as entry {i}"
            )
    own = [(i, m) for i, m in enumerate(given) if isinstance(m, nnx.Module)]
    for i, module in own:
        held: Any = _variables(module)
        for path, variable in held:
            check_held(f"module {i}: {'.'.join(map(str, path))}", variable[...])
    all_taken(said, [FREEZING, DROPPING, *(name for i, m in own for name in _known(i, m, said))])
    if sample_input is None:
        if not isinstance(given[0], nnx.Linear):
            raise ValueError(
                f"sample_input: expected samples [samples, ...], as the first module, "
                f"{type(given[0]).__name__}, does not tell their shape; got None"
            )
        sample_input = jax.ShapeDtypeStruct((1, given[0].in_features), jnp.float32)
    makers: list[Callable[[], Pure]] = [
        lambda i=i, m=m: _adapted(i, m, said) if isinstance(m, nnx.Module) else of_function(m)  # type: ignore[misc]
        for i, m in enumerate(given)
    ]
    return chained(makers, sample_input, [_variables(module) for module in given], _tied)


def _variables(module: nnx.Module | Callable) -> Held:
    """Those of a module, by where they stand."""
    from flax import nnx

    if not isinstance(module, nnx.Module):
        return []
    return [
        (path, node)
        for path, node in nnx.iter_graph(module)
        if isinstance(node, nnx.Variable) and not isinstance(node, nnx.RngState)
    ]


def _tied(owner: nnx.Module, owner_path: Path, module: nnx.Module, path: Path) -> None:
    """Let a module hold the very variable of another."""
    at = lambda node, key: node[key] if isinstance(key, int) else getattr(node, key)
    node: Any = reduce(at, path[:-1], module)
    variable = reduce(at, owner_path, owner)
    if isinstance(path[-1], int):
        node[path[-1]] = variable
    else:
        setattr(node, path[-1], variable)


def _nodes(module: nnx.Module) -> Iterator[nnx.Module]:
    """The module and those within it."""
    from flax import nnx

    return (node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.Module))


def _known(i: int, module: nnx.Module, said: Words) -> set[str]:
    """Words that a module takes, as arguments or as attributes of it or of those within it."""
    attributes = {name for node in _nodes(module) for name in said if _is_word(node, name)}
    return {*words(i, module, said), *attributes}


def _has_dropout(module: nnx.Module) -> bool:
    from flax import nnx

    return any(isinstance(node, nnx.Dropout) and node.rate for node in _nodes(module))


def _not_left_off(i: int, module: nnx.Module, said: Words) -> None:
    """No dropout stands in evaluation mode: it would stay off, and nothing would show it."""
    for node in _nodes(module):
        rate = getattr(node, "rate", 0) or getattr(node, "dropout_rate", 0)
        if getattr(node, "deterministic", None) is True and rate and DROPPING not in said:
            raise ValueError(
                f"modules: expected dropout that is on while training; got module {i}, "
                f"{type(module).__name__}, with a {type(node).__name__} whose deterministic is True, as "
                f"after eval(): call train() on it (then set use_running_average of what is to stay "
                f"frozen), or say mode={{'deterministic': False}}"
            )


def _frozen(module: nnx.Module) -> list[nnx.Module]:
    """Those within it that keep their statistics."""
    return [node for node in _nodes(module) if getattr(node, FREEZING, None) is True]


def _adapted(i: int, module: nnx.Module, said: Words) -> Pure:
    from flax import nnx

    _not_left_off(i, module, said)
    found = words(i, module, said)
    if of_flax(module):  # told by its attributes
        found = {name: pair for name, pair in found.items() if name in said}
    arguments = calling(module, found)
    graph, params, stats, draws, rest = _split(module)
    wants = inspect.signature(module.__call__).parameters.get("rngs")
    bare = wants is not None and (wants.default is wants.empty or not jax.tree.leaves(draws))
    stays = bool(_frozen(module)) or bool(said.get(FREEZING, (False,))[0])

    def merged(given: Tree, state: Tree, random: nnx.State) -> nnx.Module:
        return nnx.merge(
            graph, _filled(params, given), _filled(stats, state), random, _copied(rest)
        )

    def run(given: Tree, state: Tree, x: Tree, call: Call) -> tuple[Tree, Tree]:
        live = merged(given, state, _seeded(draws, call.key))
        _set(live, call, said)
        positional, named = arguments(call)
        if bare:  # its random numbers come with the call
            named["rngs"] = nnx.Rngs(jax.random.key(0) if call.key is None else call.key)
        y = live(x, *positional, **named)
        *_, after, _, left = _split(live)
        _unchanged(type(module).__name__, rest, left)
        return y, nnx.to_pure_dict(after)

    return Pure(
        type(module).__name__,
        draw=lambda key, x: (nnx.to_pure_dict(params), nnx.to_pure_dict(stats)),
        run=run,
        whole=lambda given, state: merged(given, state, _copied(draws)),
        moved=lambda state: {} if stays else state,
        must_draw=None if kept_off(said) or not _has_dropout(module) else OFF,
        pretrained=not (stays or fresh(stats)),
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


def _set(module: nnx.Module, call: Call, said: Words) -> None:
    """Train or predict; means over all devices and samples at hand."""
    from flax import nnx

    frozen = _frozen(module)
    module.train() if call.training else module.eval()
    module.set_attributes(deterministic=not call.drops, raise_if_not_found=False)
    for node in frozen:
        node.set_attributes(use_running_average=True)
    _set_words(module, call.training, said)
    if call.keys is not None or not call.drops:
        drops = [node for node in _nodes(module) if isinstance(node, nnx.Dropout)]
        for number, node in enumerate(drops):
            _mask_each_sample(node, call, number)
    if not call.drops:
        module.set_attributes(nnx.MultiHeadAttention, dropout_rate=0.0, raise_if_not_found=False)
    norms: dict[str, Any] = {"axis_name": call.axes or None} | (
        {"momentum": 0.0} if call.estimating else {}
    )
    module.set_attributes(nnx.BatchNorm, raise_if_not_found=False, **norms)


def _set_words(module: nnx.Module, training: bool, said: Words) -> None:
    """Attributes that tell modules of one's own whether they train, and all that the user speaks of."""
    ours = {name: (value, not value) for name, value in MODES.items()}
    del ours[DROPPING], ours[FREEZING]  # which flax's own have, and `_set` has set
    for node in _nodes(module):
        for name, pair in said.items() if of_flax(node) else (ours | said).items():
            if (name in said and _is_word(node, name)) or isinstance(getattr(node, name, 0), bool):
                setattr(node, name, pair[not training])


def _is_word(node: nnx.Module, name: str) -> bool:
    """Whether a module has an attribute, not a method, of that name."""
    return hasattr(node, name) and not callable(getattr(node, name))


def _mask_each_sample(dropout: nnx.Dropout, call: Call, number: int) -> None:
    """Let a Dropout draw a mask for each sample, without keys none; used twice it draws the same."""
    from flax import nnx

    class Masked(nnx.Dropout):
        def __call__(
            self,
            inputs: Array,
            *,
            deterministic: bool | None = None,
            rngs: nnx.Rngs | nnx.RngStream | Array | None = None,
        ) -> Array:
            off = self.deterministic if deterministic is None else deterministic
            if off or call.keys is None:
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
