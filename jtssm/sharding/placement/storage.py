"""How the state of a network that is trained as one piece is stored: each array whole, split or flat."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jtssm.arrays import AnyArray, Tree
from jtssm.sharding.layers.forms import Grid
from jtssm.sharding.layers.stored import WHOLE, dimension_of
from jtssm.sharding.placement.flat import Flat, flattened, is_flat


class Storage(NamedTuple):
    """Where the arrays of a state lie on the devices of pr."""

    grid: Grid

    def stored(self, state: Tree) -> Tree:
        """A state with every array in the shape in which it is stored; a placed one as it is."""
        return self.laid_out(state)[0]

    def laid_out(self, state: Tree) -> tuple[Tree, Tree]:
        """A state as it is stored, and a PartitionSpec for every array of it."""
        whole = lambda tree: jax.tree.map(lambda _: PartitionSpec(), tree)
        dimensions = [self._dimensions(w) for w in state.weights]
        pairs = list(zip(state.weights, dimensions, strict=True))
        stored = tuple(flattened(w, d, self.grid.size) for w, d in pairs)
        specs = (self._of_weights(w, d) for w, d in zip(stored, dimensions, strict=True))
        rest = {name: whole(getattr(state, name)) for name in state._fields if name != "weights"}
        state = state._replace(weights=stored)
        return state, state._replace(weights=tuple(specs), **rest)

    def given(self, params: tuple[list[Tree], ...]) -> tuple[list[Tree], ...]:
        """Parameters in the shapes in which they are stored."""
        return tuple(flattened(p, self._of_params(p), self.grid.size) for p in params)

    def specs(self, state: Tree) -> Tree:
        """A PartitionSpec for every array of a stored state."""
        return self.laid_out(state)[1]

    def _of_weights(self, weights: Tree, dimensions: Tree) -> Tree:
        axis = self.grid.axis

        def spec(a: AnyArray | Flat, dimension: int) -> PartitionSpec | Flat:
            if isinstance(a, Flat):
                return Flat(PartitionSpec(axis), a.shape)
            return PartitionSpec(*[None] * dimension, axis) if dimension >= 0 else PartitionSpec()

        return jax.tree.map(spec, weights, dimensions, is_leaf=is_flat)

    def _dimensions(self, weights: Tree) -> Tree:
        """For each array the dimension that is split over pr, or as `Grid.stored` has it.

        Of a state of the optimizer: a leaf whose path ends like a parameter's lies as that one does. One
        of another shape than its parameter's, as adafactor keeps, is whole; of a layer in the form
        "gathered" it is split where pr divides a dimension.
        """
        weights = jax.tree.map(_shape_of, weights, is_leaf=is_flat)
        found = weights._replace(params=self._of_params(weights.params), opt_state=())
        places = jax.tree.leaves(found.params)
        pairs = zip(jax.tree.leaves_with_path(weights.params), places, strict=True)
        known = {path: _Place(self._any(path), a.shape, place) for (path, a), place in pairs}

        def of_state(path: tuple, a: jax.ShapeDtypeStruct) -> int:
            ends = (path[k:] for k in range(len(path)))  # the longest first
            like = next((known[end] for end in ends if end in known), None)
            return WHOLE if like is None else like.of(a.shape, self.grid.size)

        return found._replace(opt_state=jax.tree.map_with_path(of_state, weights.opt_state))

    def _of_params(self, params: list[Tree]) -> list[Tree]:
        return [self.grid.stored(i, tree) for i, tree in enumerate(params)]

    def _any(self, path: tuple) -> bool:
        """Whether any dimension of what goes with a parameter may be split."""
        return self.grid.axis is not None and self.grid.forms[path[0].idx] == "gathered"


class _Place(NamedTuple):
    """How a parameter lies."""

    any: bool  # whether any dimension will do for arrays of other shapes
    shape: tuple[int, ...]
    dimension: int

    def of(self, shape: tuple[int, ...], pr: int) -> int:
        """How an array of the optimizer's that goes with it lies."""
        if shape == self.shape:
            return self.dimension
        return max(WHOLE, dimension_of(shape, pr)) if self.any else WHOLE


def _shape_of(a: AnyArray | Flat) -> jax.ShapeDtypeStruct:
    """Of an array of a state, its own where it is stored flat."""
    if isinstance(a, Flat):
        return jax.ShapeDtypeStruct(a.shape, a.row.dtype)
    return jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a))
