"""flax linen modules as layers of a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import count
from typing import TYPE_CHECKING, Any

import jax

from jtssm.arrays import Array, Tree
from jtssm.nn.adapted import Call, Pure, fresh
from jtssm.nn.interop.adapt import chained, dropped, listed, need_flax
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
from jtssm.nn.interop.pairs import Draw, Entry, Variables, entry, tied_alike
from jtssm.nn.interop.pairs import given as given_by
from jtssm.nn.interop.tied import Path
from jtssm.nn.interop.whole import linen_in_a_list
from jtssm.nn.network import Network

if TYPE_CHECKING:
    from flax import linen

STREAMS = ("params", "dropout")  # of random numbers, unless given
STATE = "batch_stats"


def from_linen(
    modules: Sequence[linen.Module | tuple[linen.Module, Variables] | Callable],
    sample_input: Tree,
    *,
    streams: Sequence[str] = STREAMS,
    mode: Mapping[str, Any] | None = None,
) -> Network:
    """A network of flax linen modules, each a layer: what `solvers` train and cut.

    Parameters start from `module.init` with the key of the method, those of a pair (module, variables)
    from these, whatever the key: what `Network.modules` gives back goes in again. An argument of
    `__call__`, or a field, named train, training or is_training is True while training, one named
    deterministic, use_running_average or eval is False then; others are told by `mode`. Dropout draws
    anew in every step; `nn.BatchNorm` trains as `jtssm.nn.adapted` says, but
    `nn.BatchNorm(use_running_average=True)` in the list stays as it is. Collections other than "params"
    and "batch_stats" are kept as they are drawn, or given.

    Modules between which a module is shared are one layer, and it stays one.

    Args:
      modules: linen modules, pairs (module, variables) with the collections that `module.init` gives,
        and functions without parameters (jax.nn.relu), called as f(x).
      sample_input: [samples, ...], as for `module.init`, or a tree of such arrays, which the first module
        gets as its one argument; integers (tokens) of a single array as int32. What modules hand each
        other may be trees as well.
      streams: of random numbers that modules draw from.
      mode: arguments and fields by name, each with its value while training, True or False (its opposite
        in prediction), or a pair of both; {"use_running_average": (True, True)} freezes the statistics
        of every batch normalisation.

    Raises:
      ImportError: without flax.
      ValueError: no modules, a whole model, variables of other shapes than the module's, a module that
        does not take what the one before it gives, that stands in two
        places, has a boolean argument nobody speaks of, batch statistics that no training moves, or
        changes other variables than those of "batch_stats" as it runs.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import linen
      >>> from jtssm import nn
      >>> class Block(linen.Module):
      ...     @linen.compact
      ...     def __call__(self, x, is_train: bool = False):
      ...         return linen.Dropout(0.5, deterministic=not is_train)(linen.Dense(8)(x))
      >>> net = nn.from_linen(
      ...     [Block(), linen.Dense(3)], jnp.zeros((1, 4)), mode={"is_train": True}
      ... )
      >>> net.random
      True
    """
    need_flax("from_linen")
    from flax import linen

    linen_in_a_list(modules, sample_input, streams)
    entries, said = [entry(module) for module in listed(modules)], told(mode)
    given = [module for module, _ in entries]
    for i, module in enumerate(given):
        if not isinstance(module, linen.Module) and not callable(module):
            raise ValueError(
                f"modules: expected linen modules, pairs (module, variables) or functions; got "
                f"{module!r} as entry {i}"
            )
    own = [(i, m) for i, m in enumerate(given) if isinstance(m, linen.Module)]
    all_taken(said, [FREEZING, DROPPING, *(name for i, m in own for name in _known(i, m, said))])
    makers: list[Callable[[], Pure]] = [
        lambda i=i, e=e: (
            _adapted(i, e, tuple(streams), said)  # type: ignore[misc]
            if isinstance(e.module, linen.Module)
            else of_function(e.module)
        )
        for i, e in enumerate(entries)
    ]
    held = [list(_within(module, ())) for module in given]
    tied_alike(entries, held)
    return chained(makers, sample_input, held)


def _within(value: Any, path: Path) -> Iterator[tuple[Path, object]]:
    """The linen modules in a value, itself and those in fields, by where their parameters stand."""
    from flax import linen

    if isinstance(value, linen.Module) and not isinstance(value, linen.Dropout):
        yield path, value
        for f in fields(value):
            if f.name not in ("parent", "scope"):
                yield from _in_field(getattr(value, f.name, None), path, f.name)


def _in_field(value: Any, path: Path, name: str) -> Iterator[tuple[Path, object]]:
    if isinstance(value, (list, tuple)):
        for k, each in enumerate(value):
            yield from _in_field(each, path, f"{name}_{k}")
    elif isinstance(value, Mapping):
        for k, each in value.items():
            yield from _in_field(each, path, f"{name}_{k}")
    else:
        yield from _within(value, (*path, name))


def _known(i: int, module: linen.Module, said: Words) -> set[str]:
    """Words that a module takes, as arguments or fields."""
    return {*words(i, module, said), *(f.name for f in fields(module))}


def _by_fields(module: linen.Module, found: Words, said: Words) -> tuple[linen.Module, Words]:
    """The module, and the fields that tell it whether it trains, where no argument does.

    flax's own have both; one of the two is given. A field that says they predict says so for ever.
    """
    set_here = {
        f.name: getattr(module, f.name)
        for f in fields(module)
        if f.name in {**MODES, **said} and getattr(module, f.name) is not None
    }
    for name in set_here.keys() & found.keys():
        if of_flax(module) and name not in said and set_here[name] is not MODES[name]:
            del found[name]
        else:
            unset: dict[str, Any] = {name: None}
            module = module.clone(**unset)
    by_field = {
        name: said[name] if name in said else (MODES[name], not MODES[name])
        for name, value in set_here.items()
        if name not in found and not of_flax(module) and isinstance(value, bool)
    }
    return module, by_field


def _adapted(i: int, one: Entry, streams: tuple[str, ...], said: Words) -> Pure:
    from flax import linen

    given: Any = one.module
    found = words(i, given, said)
    if "rngs" in inspect.signature(given.__call__).parameters:
        raise ValueError(
            f"modules: expected random numbers by make_rng, or by an argument 'rng'; got module {i}, "
            f"{type(given).__name__}, with an argument 'rngs', which linen's apply takes for its own"
        )
    module, by_field = _by_fields(given, found, said)
    arguments = calling(module, found)
    frozen = FREEZING in said and bool(said[FREEZING][0])
    may_be_off = of_flax(given) or kept_off(said)
    forced = said.get(FREEZING) if FREEZING not in {**found, **by_field} else None

    def ready(training: bool) -> linen.Module:
        values = {name: pair[not training] for name, pair in by_field.items()}
        return module.clone(**values) if values else module

    def draw(key: Array, x: Tree) -> tuple[Tree, Tree]:
        positional, named = arguments(Call())
        variables = dict(ready(False).init(_keys(key, streams), x, *positional, **named))
        return variables.pop("params", {}), variables

    def run(params: Tree, state: Tree, x: Tree, call: Call) -> tuple[Tree, Tree]:
        rngs = _keys(jax.random.key(0) if call.key is None else call.key, streams)
        positional, named = arguments(call)
        kept = list(state) if call.training else False
        with linen.intercept_methods(_interceptor(call, forced, may_be_off)):
            done: Any = ready(call.training).apply(
                {"params": params} | state, x, *positional, rngs=rngs, mutable=kept, **named
            )
        if kept is False:
            return done, state
        y, new = done
        _unchanged(type(module).__name__, state, new)
        return y, state | {STATE: new[STATE]} if STATE in state else state

    def moved(state: Tree) -> Tree:
        stays = frozen or (of_flax(given) and getattr(given, FREEZING, None) is True)
        return {} if stays else state.get(STATE, {})

    whole = lambda params, state: (given, {"params": params} | state)
    begin: Draw = draw
    known = False
    if one.variables is not None:
        begin, known = given_by(draw, one.variables), not fresh(moved(dict(one.variables)))
    return Pure(type(module).__name__, begin, run, whole, moved, pretrained=known)


def _unchanged(name: str, before: Tree, after: Tree) -> None:
    """A call leaves collections other than batch statistics as they are, or they would be lost."""
    for collection in before.keys() | after.keys():
        old, new = (jax.tree.leaves(a.get(collection, {})) for a in (before, after))
        same = len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))
        if collection != STATE and not same:
            raise ValueError(
                f"expected modules that change nothing but {STATE!r} as they run; got {name}, which "
                f"changes {collection!r}"
            )


def _keys(key: Array, streams: Sequence[str]) -> dict[str, Array]:
    return {name: jax.random.fold_in(key, i) for i, name in enumerate(streams)}


def _interceptor(call: Call, forced: tuple[Any, Any] | None, may_be_off: bool) -> Callable:
    """Means over all devices and samples at hand; without a key no dropout.

    forced: of every batch normalisation, whether it uses running averages while training, in prediction.
    may_be_off: whether dropout may stay off while training.
    """
    from flax import linen

    numbers = count()

    def intercept(
        next_fun: Callable, args: tuple, kwargs: dict, context: linen.module.InterceptorContext
    ) -> Any:
        module = context.module
        if context.method_name == "__call__" and isinstance(module, linen.BatchNorm):
            _set(module, axis_name=call.axes or None)
            if forced is not None:
                _set(module, use_running_average=None)
                args, kwargs = args[:1], kwargs | {FREEZING: forced[not call.training]}
            if call.estimating:
                _set(module, momentum=0.0)
        if context.method_name == "__call__" and isinstance(module, linen.Dropout):
            fixed = kwargs.get("deterministic", args[1] if len(args) > 1 else module.deterministic)
            if fixed and call.training and module.rate and not may_be_off:
                raise ValueError(OFF)
            if fixed or not call.drops:
                return args[0]
            if call.keys is not None:
                return dropped(args[0], call, next(numbers), module.rate, module.broadcast_dims)
        return next_fun(*args, **kwargs)

    return intercept


def _set(module: linen.Module, **attributes: object) -> None:
    """As flax itself sets attributes of its frozen modules."""
    for name, value in attributes.items():
        object.__setattr__(module, name, value)
