"""A whole model in place of a list of modules: refused, with what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax

from jtssm import checks
from jtssm.nn.interop.pairs import entry

if TYPE_CHECKING:
    from flax import linen


def nnx_in_a_list(given: object) -> None:
    """The modules come in a list.

    Raises:
      ValueError: one whole module; it names those in it.
    """
    from flax import nnx

    if not isinstance(given, nnx.Module):
        return
    several = lambda a: isinstance(a, (list, tuple, nnx.List))
    among = lambda a: any(isinstance(b, nnx.Module) for b in (a if several(a) else [a]))
    found = {f"model.{name}": value for name, value in vars(given).items() if among(value)}
    found = {"model": given} if several(given) else found
    parts = ["*" * several(value) + name for name, value in found.items()] or ["..."]
    raise ValueError(
        f"modules: expected a list of modules, one a layer; got a whole {type(given).__name__}: give "
        f"what its __call__ does in order, from_nnx([{', '.join(parts)}], sample_input), with the "
        f"functions between them (jax.nn.relu), or from_nnx([model], sample_input) for one layer, which "
        f"no cut parts"
    )


def linen_in_a_list(given: object, sample_input: object, streams: Sequence[str]) -> None:
    """The modules come in a list.

    Raises:
      ValueError: one whole module, alone or in a pair; it says what to do.
    """
    from flax import linen

    module, variables = entry(given)
    if not isinstance(module, linen.Module):
        return
    what = f"modules: expected a list of modules, one a layer; got a whole {type(module).__name__}"
    one = "(model, variables)" if variables is not None else "model"
    alone = f"from_linen([{one}], sample_input) for one layer, which no cut parts"
    if isinstance(module, linen.Sequential):
        raise ValueError(f"{what}: give from_linen([*model.layers], sample_input), or {alone}")
    names = _made(module, sample_input, streams)
    holds = f", whose parameters stand in {checks.shown(', '.join(names))}" if names else ""
    raise ValueError(
        f"{what}{holds}: give what its __call__ does in order, e.g. from_linen([linen.Conv(...), "
        f"linen.relu, ...], sample_input), with weights that there are as pairs (linen.Conv(...), "
        f"{{'params': variables['params'][{(names or ['Conv_0'])[0]!r}]}}), or {alone}"
    )


def _made(module: linen.Module, sample_input: object, streams: Sequence[str]) -> list[str]:
    """The modules that a module calls, by the names of their parameters, as far as it can be tried."""
    keys = {name: jax.random.key(0) for name in streams}
    try:
        return list(jax.eval_shape(module.init, keys, sample_input).get("params", {}))
    except Exception:  # it wants other arguments, which its own list will have
        return []
