"""Names for what functions take and give: an array, a tree of arrays, a number of an equation."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

Array = jax.Array
Tree = Any  # a pytree of arrays: parameters, an optimizer's state, a method's; () holds none
Scalar = float | Array  # a number of an equation, or an array [] of it, which may be traced
AnyArray = Array | np.ndarray  # as a person hands it in: jax's or numpy's
Shaped = AnyArray | jax.ShapeDtypeStruct  # or what stands for one where only shapes are asked
