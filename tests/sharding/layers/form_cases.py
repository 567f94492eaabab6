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
FEW_GRIDS = [(2, 4), (3, 2), (5, 1), (8, 1)]  # a third of them
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


def covering(grids: list[tuple[int, int]], strength: int) -> list[Case]:
    """Few cases in which all values of so many settings occur together, chosen greedily."""
    factors = FACTORS | {"grid": grids}
    names, cases = list(factors), []
    missing = {
        frozenset(zip(chosen, values, strict=True))
        for chosen in combinations(names, strength)
        for values in product(*(factors[name] for name in chosen))
    }
    first = names[:strength]
    starts = [list(zip(first, v, strict=True)) for v in product(*(factors[n] for n in first))]
    while missing:
        # sorted: a set has another order in every process
        chosen = starts.pop(0) if starts else min(sorted(some, key=str) for some in missing)
        for name in names:
            if name not in dict(chosen):
                chosen.append(_most_missing(name, factors[name], chosen, missing, len(cases)))
        missing -= {frozenset(some) for some in combinations(chosen, strength)}
        cases.append(Case(**dict(chosen)))
    return cases


def _most_missing(
    name: str, values: list, chosen: list[tuple], missing: set[frozenset], turn: int
) -> tuple:
    """The setting's value with which, beside those chosen, most of what is missing occurs."""
    strength = len(next(iter(missing))) if missing else 1
    turn %= len(values)  # of equal gains in turns, not always the first
    pairs = [(name, value) for value in values[turn:] + values[:turn]]
    others = list(combinations(chosen, strength - 1))
    return max(pairs, key=lambda pair: sum(frozenset([pair, *o]) in missing for o in others))
