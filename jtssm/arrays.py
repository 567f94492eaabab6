"""Names for what functions take and give: an array, a tree of arrays, a number of an equation.

And the one checksum of their bytes.
"""

from __future__ import annotations

import zlib
from typing import Any

import jax
import numpy as np

Array = jax.Array
Tree = Any  # a pytree of arrays: parameters, an optimizer's state, a method's; () holds none
Scalar = float | Array  # a number of an equation, or an array [] of it, which may be traced
AnyArray = Array | np.ndarray  # as a person hands it in: jax's or numpy's
Shaped = AnyArray | jax.ShapeDtypeStruct  # or what stands for one where only shapes are asked


def crc(tree: Tree, before: int = 0) -> int:
    """The crc32 of the bytes of a tree's arrays in host memory, one after the other.

    Args:
      before: the crc of what stands before them.
    """
    for a in jax.tree.leaves(tree):
        before = zlib.crc32(np.ascontiguousarray(a).reshape(-1).view(np.uint8).data, before)
    return before
