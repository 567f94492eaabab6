"""A layer's forms on pr x pc: how it is split, what each form moves, which form to take."""

from jtssm.sharding.layers.choose import choose_forms, misfit
from jtssm.sharding.layers.forms import FORMS, Grid, whole_grid
from jtssm.sharding.layers.halo import Slabs

__all__ = ["FORMS", "Grid", "Slabs", "choose_forms", "misfit", "whole_grid"]
