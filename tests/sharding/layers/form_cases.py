"""Cases of layers on the grid: every pair of settings occurs in one of few."""

from itertools import combinations, product
from typing import NamedTuple

import jax.numpy as jnp

from jtssm.nn.images import convolution
from jtssm.nn.network import sequence
from jtssm.nn.ops import Window
from jtssm.nn.perceptrons import dense
from jtssm.sharding.layers.forms import FORMS
from jtssm.sharding.layers.halo import Halo

GRIDS = [(r, c) for r, c in product(range(2, 9), range(1, 5)) if r * c <= 8]
FEW_GRIDS = [(2, 1), (2, 4), (3, 2), (4, 2), (5, 1), (8, 1)]  # a half of them
SIZES = [
    9,
    13,
    17,
    25,
    33,
    41,
    57,
    73,
    89,
    105,
    129,
]  # heights, odd; the first that fits is taken, or the next


class Case(NamedTuple):
    """A convolution in a form on a grid, between others."""

    form: str
    grid: tuple[int, int]  # pr, pc
    kernel: int
    stride: int
    padding: str
    further: int  # sizes past the first that fits
    few: bool  # fewer samples than devices
    dtype: str

    @property
    def height(self) -> int:
        """Of the images."""
        window = Window(self.kernel, self.stride, self.padding)
        fits = lambda h: (
            window.outputs(h) > 0
            and (self.form != "domain" or Halo.of(window, h, self.grid[0]).fits)
        )
        return [h for h in SIZES if fits(h)][self.further]

    @property
    def batch(self) -> int:
        """Samples of a minibatch: as many as devices, or one on each device of pc."""
        pr, pc = self.grid
        return pc if self.few else pr * pc

    def network(self):
        """1 x 1 convolution, the one under test, two dense layers; widths that pr divides."""
        pr, width = self.grid[0], 2 * self.grid[0]
        tall = convolution(pr, 1, 1, "SAME", jnp.tanh)
        tested = convolution(width, self.kernel, self.stride, self.padding, jnp.tanh)
        shape = (self.height, max(11, self.kernel), 2)
        return sequence([tall, tested, dense(width, jnp.tanh), dense(3)], shape)

    def forms(self) -> list[str]:
        """Of its layers."""
        beside = "batch" if self.form == "domain" else self.form
        return ["batch", self.form, beside, "batch"]


FACTORS = {
    "form": [form for form in FORMS if form != "paired"],  # of which a convolution has none
    "grid": GRIDS,
    "kernel": [1, 3, 5, 11],
    "stride": [1, 2, 4],
    "padding": ["SAME", "VALID"],
    "further": [0, 1],
    "few": [False, True],
    "dtype": ["float64", "float32"],
}


def every() -> list[Case]:
    """All grids, forms, windows and sizes; few samples and float32 in turns."""
    names = [name for name in FACTORS if name not in ("few", "dtype")]
    turns = list(product(FACTORS["few"], FACTORS["dtype"]))
    return [
        Case(*values, *turns[i % len(turns)])
        for i, values in enumerate(product(*(FACTORS[name] for name in names)))
    ]


def covering(grids: list[tuple[int, int]]) -> list[Case]:
    """Few cases in which every pair of values of two settings occurs, chosen greedily."""
    factors = FACTORS | {"grid": grids}
    names = list(factors)
    missing = {
        frozenset([(a, x), (b, y)])
        for a, b in combinations(names, 2)
        for x, y in product(factors[a], factors[b])
    }
    cases = []
    for form, grid in product(factors["form"], grids):
        chosen = [("form", form), ("grid", grid)]
        for name in names[2:]:
            # of equal gains in turns, not always the first
            turned = len(cases) % len(factors[name])
            pairs = [(name, v) for v in factors[name][turned:] + factors[name][:turned]]
            gains = [sum(frozenset([pair, old]) in missing for old in chosen) for pair in pairs]
            chosen.append(pairs[gains.index(max(gains))])
        missing -= {frozenset(pair) for pair in combinations(chosen, 2)}
        cases.append(Case(**dict(chosen)))
    assert not missing
    return cases
