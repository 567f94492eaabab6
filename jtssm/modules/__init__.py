"""Networks that users already have: flax modules and plain functions as layers."""

from jtssm.modules.functions import layers
from jtssm.modules.linen_modules import from_linen
from jtssm.modules.nnx_modules import from_nnx

__all__ = ["from_linen", "from_nnx", "layers"]
