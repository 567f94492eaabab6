"""Batches of a stream: what one is, checked as it comes, and how batches are cut and joined."""

from __future__ import annotations

from typing import Any, TypeGuard

import jax
import numpy as np

from jtssm.arrays import Array, Tree
from jtssm.data.dicts import as_pair
from jtssm.data.own import of_library
from jtssm.nn.inputs import entries
from jtssm.protocol.method import Method
from jtssm.train.samples import Pair


def checked(method: Method, batch: object, number: int, like: Pair | None) -> Pair:
    """A batch of a stream as numpy arrays, once they are samples of the method; some may be empty.

    Args:
      number: of the batch in its pass.
      like: the first batch, whose dtypes and shapes of a sample all have; None: this is it.

    Raises:
      ValueError: no pair of arrays, samples that do not fit the method, others than in the first batch.
    """
    name = f"train, batch {number}"
    batch = as_pair(batch)
    if not is_pair(batch):
        inside = f" of {[type(a).__name__ for a in batch]}" if isinstance(batch, tuple) else ""
        raise ValueError(
            f"{name}: expected a pair (x, y) of numpy arrays; got {type(batch).__name__}{inside}"
        )
    x, y = jax.tree.map(lambda a: np.asarray(of_library(name, a)), tuple(batch))
    arrays = jax.tree.leaves((x, y))
    if strange := [str(a.dtype) for a in arrays if a.dtype.kind in "OSUmM"]:
        raise ValueError(f"{name}: expected arrays of numbers; got one of {strange[0]}")
    if all(a.shape[:1] == (0,) for a in arrays):
        return x, y
    try:
        method.program.check(x, y, "values")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    named, known = (_named(method, pair) for pair in ((x, y), like or (x, y)))
    for (what, a), (_, first) in zip(named, known, strict=True):
        if (a.dtype, a.shape[1:]) != (first.dtype, first.shape[1:]):
            raise ValueError(
                f"{name}: {what}: expected {first.dtype} samples of shape {first.shape[1:]}, as in the "
                f"first batch; got {a.dtype} of {a.shape[1:]}"
            )
    return x, y


def is_pair(batch: object) -> TypeGuard[tuple[Tree, Array | np.ndarray]]:
    """Whether this is a batch: (x, y), both arrays, or x a tree of them."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return False
    arrays = jax.tree.leaves(batch[0])
    return bool(arrays) and all(map(_is_array, (*arrays, batch[1])))


def _is_array(a: object) -> bool:
    return hasattr(a, "__array__") and hasattr(a, "shape")


def joined(one: Pair, other: Pair) -> Pair:
    """The samples of both."""
    return jax.tree.map(lambda a, b: np.concatenate((a, b)) if len(a) else b, one, other)


def cut(pair: Pair, rows: slice) -> Pair:
    """Some of the samples, where they lie."""
    return jax.tree.map(lambda a: a[rows], pair)


def copied(pair: Pair, rows: slice) -> Pair:
    """Some of the samples, which then hold nothing else of the batch in memory."""
    return jax.tree.map(lambda a: a[rows].copy(), pair)


def _named(method: Method, pair: Pair) -> list[tuple[str, Any]]:
    """The arrays of a batch, each with what a message calls it."""
    return [*entries(method.network, "x", pair[0]), ("y", pair[1])]
