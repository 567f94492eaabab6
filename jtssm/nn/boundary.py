"""What one sample is between two layers: one array of floats, or any tree of arrays.

Floats of a tree are as wide as the samples are. Integers and booleans keep their dtype; they travel
forward with the floats, and no gradient of theirs travels back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NoReturn, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import PyTreeDef
from jax.typing import DTypeLike

from jtssm.arrays import Shaped, Tree

ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


@dataclass(frozen=True, repr=False)
class SampleTree:
    """One sample that is not just an array of floats; whoever needs one array is refused.

    It stands in `Network.shapes` where else the shape of an array does.
    """

    leaves: tuple[jax.ShapeDtypeStruct, ...]  # without the dimension of samples
    structure: PyTreeDef

    @property
    def tree(self) -> Tree:
        """The tree of its arrays' `jax.ShapeDtypeStruct`s; floats are float32."""
        return jax.tree.unflatten(self.structure, self.leaves)

    def __repr__(self) -> str:
        told = [_Told(f"{a.dtype} {a.shape}") for a in self.leaves]
        return repr(jax.tree.unflatten(self.structure, told))

    def __len__(self) -> int:
        self._refuse()

    def __getitem__(self, _: int) -> int:
        self._refuse()

    def __iter__(self) -> Iterator[int]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError(f"net: expected one array between its layers here; got a tree, {self}")


class _Told(str):
    """A leaf in the repr of a tree."""

    def __repr__(self) -> str:
        return str(self)


Sample: TypeAlias = tuple[int, ...] | SampleTree  # the shape of an array of floats, or a tree


def sample_of(arrays: Tree) -> Sample:
    """One sample of arrays [samples, ...], or of their shapes.

    Raises:
      ValueError: no arrays, one that has no samples, or not as many as others, or is not of numbers.
    """
    leaves = jax.tree.leaves(arrays)
    lengths = {a.shape[:1] for a in leaves}
    if len(lengths) != 1 or () in lengths or not all(map(_numbers, leaves)):
        got = jax.tree.map(lambda a: _Told(f"{a.dtype}{list(a.shape)}"), arrays)
        raise ValueError(
            f"expected [samples, ...] of floats, integers or booleans, samples first, as many in each; "
            f"got {got}"
        )
    if leaves[0] is arrays and floating(leaves[0]):
        return tuple(arrays.shape[1:])
    kept = tuple(
        jax.ShapeDtypeStruct(a.shape[1:], np.float32 if floating(a) else a.dtype) for a in leaves
    )
    return SampleTree(kept, jax.tree.structure(arrays))


def described(sample: Sample, integer: bool = False) -> Tree:
    """The tree of `jax.ShapeDtypeStruct`s of one sample; integer: a single array is of integers."""
    if isinstance(sample, SampleTree):
        return sample.tree
    return jax.ShapeDtypeStruct(sample, np.int32 if integer else np.float32)


def stacked(described: Tree, *lead: int, dtype: DTypeLike = np.float32) -> Tree:
    """Shapes [*lead, ...] of such samples; dtype: of floats."""

    def one(a: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*lead, *a.shape), dtype if floating(a) else a.dtype)

    return jax.tree.map(one, described)


def zeros(shapes: Tree) -> Tree:
    """Arrays of zeros of these shapes and dtypes."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


def floating(a: Shaped) -> bool:
    """Whether an array, or the shape of one, is of floats."""
    return jnp.issubdtype(a.dtype, jnp.floating)


def boolean(a: Shaped) -> bool:
    """Whether an array, or the shape of one, is of booleans."""
    return jnp.issubdtype(a.dtype, jnp.bool_)


def _numbers(a: Shaped) -> bool:
    return floating(a) or jnp.issubdtype(a.dtype, jnp.integer) or boolean(a)


def of_arrays(x: object) -> bool:
    """Whether it is a tree of arrays, and not just one array or a list of numbers."""
    leaves = jax.tree.leaves(x)
    return not isinstance(x, ARRAYS) and bool(leaves) and all(isinstance(a, ARRAYS) for a in leaves)


def num_samples(x: Tree) -> int:
    """How many samples arrays [samples, ...] hold."""
    return jnp.shape(jax.tree.leaves(x)[0])[0]


def partition(tree: Tree) -> tuple[Tree, Tree]:
    """(floats, all else) of a tree of arrays: of its structure, with None for what is the other's."""
    floats = jax.tree.map(lambda a: a if floating(a) else None, tree)
    return floats, jax.tree.map(lambda a: None if floating(a) else a, tree)


def merge(floats: Tree, rest: Tree) -> Tree:
    """The tree of its two parts; see `partition`."""
    pick = lambda a, b: b if a is None else a
    return jax.tree.map(pick, floats, rest, is_leaf=lambda a: a is None)


def floats_of(tree: Tree) -> Tree:
    """The tree with None for what is not of floats: of what has a gradient."""
    return partition(tree)[0]


def numbers(sample: Sample) -> int:
    """How many numbers a sample has, of whatever dtypes."""
    return sum(prod(a.shape) for a in jax.tree.leaves(described(sample)))


def rows_of(sample: Sample) -> int:
    """Rows of a sample in a product: all but the last dimension; of a tree the most that an array has."""
    return max(prod(a.shape[:-1]) for a in jax.tree.leaves(described(sample)))


def by_dtype(described: Tree) -> dict[np.dtype, int]:
    """How many numbers of each dtype a sample has, floats first."""
    found: dict[np.dtype, int] = {}
    for a in sorted(jax.tree.leaves(described), key=lambda a: not floating(a)):
        found[a.dtype] = found.get(a.dtype, 0) + prod(a.shape)
    return found


def float_dtype(x: Tree) -> np.dtype:
    """The dtype of parameters and variables for samples x: its floats', of integers jax's default.

    Never below float32: samples may be stored in 16 bits, parameters and sums may not.
    """
    given = [t for t in map(jnp.result_type, jax.tree.leaves(x)) if jnp.issubdtype(t, jnp.floating)]
    if not given:
        return jnp.zeros(()).dtype
    return jnp.promote_types(jnp.result_type(*given), jnp.float32)


def cast(tree: Tree, dtype: DTypeLike) -> Tree:
    """The tree with its floats in another dtype."""
    return jax.tree.map(lambda a: a.astype(dtype) if floating(a) else a, tree)


def first(x: Tree, num: int = 1) -> Tree:
    """The first samples of arrays [samples, ...]."""
    return jax.tree.map(lambda a: a[:num], x)
