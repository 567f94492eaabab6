"""Networks that users already have: flax modules and plain functions as layers."""

from __future__ import annotations

from jtssm.nn.interop.functions import layers
from jtssm.nn.interop.linen import from_linen
from jtssm.nn.interop.nnx import from_nnx

__all__ = ["from_linen", "from_nnx", "layers"]
