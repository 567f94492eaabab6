"""What a layer is: pure functions of parameters, and what this folder asks of any of them.

A kind of layer is a frozen dataclass whose fields are what a person says of it (width, size, stride).
What one solver or the grid alone wants to know of a layer is no field: it is asked by a
`functools.singledispatch` function in that folder, with an answer for layers that it does not know.

Layers equal and hash by identity (`eq=False`): an activation or a user's module may be any object,
without a hash or with an == that gives an array. Two layers made alike are two, as their parameters are.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, is_dataclass

from jax.typing import DTypeLike

from jtssm.arrays import Array, Tree
from jtssm.nn.norm import Statistics
from jtssm.nn.ops import Products

Shape = tuple[int, ...]
Activation = Callable[[Array], Array]


class Layer(ABC):
    """One layer: `init`, `apply`, `shape` and `cost` make one; the rest has defaults.

    A layer of one's own with these four trains by every method that asks no more of it, whole or cut,
    on a mesh in the forms "batch" and "gathered". Its other answers are overridden by properties or by
    attributes of the class.

    Examples:
      >>> import jax
      >>> from jtssm import nn
      >>> class Double(nn.Layer):
      ...     def init(self, key, shape, dtype):
      ...         return {}
      ...
      ...     def apply(self, params, x, products):
      ...         return 2 * x
      ...
      ...     def shape(self, shape):
      ...         return shape
      ...
      ...     def cost(self, shape):
      ...         return 0
      >>> net = nn.sequence([Double(), nn.dense(3)], (4,))
      >>> net.apply(net.init(jax.random.key(0)), jax.numpy.ones((2, 4))).shape
      (2, 3)
    """

    @abstractmethod
    def init(self, key: Array, shape: Shape, dtype: DTypeLike) -> Tree:
        """Random parameters.

        Args:
          key: what they are drawn from.
          shape: of one sample of the inputs.
          dtype: of the parameters.
        """

    @abstractmethod
    def apply(self, params: Tree, x: Array, products: Products) -> Array:
        """Outputs [b, ...] for x [b, ...]; `products`: the operations as the mesh has them."""

    @abstractmethod
    def shape(self, shape: Shape) -> Shape:
        """The shape of one sample of the outputs for that of one of the inputs.

        Of outputs that are a tree of arrays, or of integers, a `jtssm.nn.SampleTree`.

        Raises:
          ValueError: samples that the layer does not take.
        """

    @abstractmethod
    def cost(self, shape: Shape) -> int:
        """Multiply-adds of the forward product for one sample of this shape."""

    def estimate(self, params: Tree, x: Array, products: Products) -> Tree:
        """The parameters, those in `estimated` as x [b, ...] has them."""
        return params

    @property
    def name(self) -> str:
        """What messages, results and checkpoints call it."""
        return type(self).__name__

    @property
    def estimated(self) -> tuple[str, ...]:
        """Parameters that `estimate` sets and no optimizer moves."""
        return ()

    def moving(self, params: Tree) -> Tree:
        """The statistics among its parameters, but for those that are frozen."""
        return {name: params[name] for name in self.estimated}

    @property
    def pretrained(self) -> bool:
        """Whether it is made with such statistics, of other samples."""
        return False

    @property
    def random(self) -> bool:
        """Whether it draws from `products.mode.keys` while training."""
        return False

    @property
    def statistics(self) -> tuple[Statistics, ...]:
        """Means and variances that it takes while training, for what they cost on a mesh."""
        return ()

    @property
    def integer(self) -> bool:
        """Whether it takes one array of integers (tokens)."""
        return False

    @property
    def trees(self) -> bool:
        """Whether it takes trees of arrays, whose `SampleTree` is then given as the shape."""
        return False

    @property
    def words(self) -> int | None:
        """How many integers it knows, from 0; None: any, or it takes floats."""
        return None

    @property
    def uncast(self) -> tuple[str, ...]:
        """Parameters that keep their dtype where the others are cast to a `compute_dtype`."""
        return ()

    def __repr__(self) -> str:
        told = [f"{name}={_told(value)}" for name, value in _given(self)]
        return f"{type(self).__name__}({', '.join(told)})"


def titled(*words: str | Activation | None) -> str:
    """The name of a layer: what is said of it, functions by their names, without what is None.

    It stands in checkpoints: of a `functools.partial` no address, which differs between processes.
    """
    partly = lambda word: _told(word) if isinstance(word, functools.partial) else word
    return " ".join(str(getattr(word, "__name__", partly(word))) for word in words if word)


def _given(layer: Layer) -> list[tuple[str, object]]:
    """The fields of a layer that are not as they are by default."""
    shown: list = [f for f in fields(layer) if f.repr] if is_dataclass(layer) else []
    return [(f.name, a) for f in shown if (a := getattr(layer, f.name)) is not f.default]


def _told(value: object) -> str:
    """A field as a person would write it."""
    if isinstance(value, functools.partial):
        settings = [_told(a) for a in value.args]
        settings += [f"{name}={_told(a)}" for name, a in value.keywords.items()]
        return f"partial({', '.join((_told(value.func), *settings))})"
    if callable(value) and not isinstance(value, Layer):
        return getattr(value, "__name__", type(value).__name__)
    if isinstance(value, tuple):
        return f"({', '.join(map(_told, value))}{',' if len(value) == 1 else ''})"
    return repr(value)
