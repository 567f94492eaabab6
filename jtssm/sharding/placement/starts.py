"""Programs that start states on a mesh, compiled once: training again there compiles nothing."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import jax

from jtssm.arrays import Tree


class Starts:
    """Those of one placed method, by the shapes that they were made for."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, Callable[..., Tree]] = {}

    def run(self, start: Callable[..., Tree], *args: Tree, told: Tree = (), **ways: Any) -> Tree:
        """start(*args), jitted.

        Args:
          start: the same for arguments of the same shapes.
          told: arrays, or shapes of them, that tell two starts apart whose arguments are alike.
          ways: of `jax.jit`.
        """
        leaves, structure = jax.tree.flatten((args, told))
        key = structure, tuple((a.shape, a.dtype) for a in leaves)
        if key not in self._programs:
            self._programs[key] = jax.jit(start, **ways)
        return self._programs[key](*args)
