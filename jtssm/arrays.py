"""Names for what functions take and give: an array, a tree of arrays."""

from __future__ import annotations

from typing import Any

import jax

Array = jax.Array
Tree = Any  # a pytree of arrays
