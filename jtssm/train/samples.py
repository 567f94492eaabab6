"""Samples as `fit` is given them: pairs (x, y) of arrays, in host memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from jtssm import checks
from jtssm.arrays import Tree
from jtssm.data.dicts import as_pair
from jtssm.data.own import of_library
from jtssm.nn.boundary import SampleTree
from jtssm.nn.inputs import entries, on_host
from jtssm.nn.network import Network
from jtssm.protocol.method import Method
from jtssm.sharding.distributed import ProcessSamples

# x is always an array, or a tree of arrays where the network takes one
Given = tuple[Tree, ArrayLike]  # (x, y) as a user gives them
Pair = tuple[Tree, np.ndarray]  # (x [samples, ...], y [samples, ...]) in host memory


def in_memory(
    network: Network, train: object, steps_per_epoch: int | None
) -> Pair | ProcessSamples:
    """The pair (x, y), or `ProcessSamples`, in host memory.

    Raises:
      ValueError: it is no pair of arrays, or epochs are counted in steps.
    """
    if steps_per_epoch is not None:
        raise ValueError(
            f"steps_per_epoch: expected None with arrays, all of which are an epoch; got "
            f"{steps_per_epoch!r}"
        )
    x, y = _pair(network, "train", train)
    return ProcessSamples(x, y) if isinstance(train, ProcessSamples) else (x, y)


def evaluated(method: Method, validation: Given | Mapping[str, Given] | None) -> dict[str, Pair]:
    """The samples that every line evaluates, by name."""
    one = as_pair(validation)
    sets = one if isinstance(one, Mapping) else {"validation": one}
    sets = {
        name: _pair(method.network, name, pair) for name, pair in sets.items() if pair is not None
    }
    for pair in sets.values():
        x, y = pair
        method.program.check(x, y, "values")
    return sets


def _pair(network: Network, name: str, given: object) -> Pair:
    """x and y in host memory, of a pair of arrays or of lists of numbers, or of {"image", "label"}."""
    pair = as_pair(given)
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{name}: expected a pair (x, y); got {type(pair).__name__}")
    pair = jax.tree.map(lambda a: of_library(name, a), tuple(pair))
    trees = isinstance(network.shapes[0], SampleTree)
    for part, a in _named(network, name, *pair):
        if isinstance(a, (np.ndarray, jax.Array)):  # np.asarray would lose a mask
            checks.array(part, a, booleans=trees)
    try:
        x, y = on_host(network, pair[0]), np.asarray(pair[1])
    except (ValueError, TypeError) as error:  # lists of unequal lengths
        raise ValueError(f"{name}: expected a pair of arrays (x, y); got {error}") from error
    for part, a in _named(network, name, x, y):
        checks.array(part, a, booleans=trees)
        if not a.ndim:
            raise ValueError(f"{part}: expected [samples, ...]; got a single number, {a}")
    return x, y


def _named(network: Network, name: str, x: Tree, y: Tree) -> list[tuple[str, Any]]:
    """The arrays of a pair, each with what a message calls it."""
    return [*entries(network, f"{name}: x", x), (f"{name}: y", y)]
