"""The form of each layer with the fewest predicted seconds: a shortest path over the chain of layers.

A node is a layer in a form, its length the seconds of the layer's products, updates and messages, an edge
the change of layout between two layers. The path is exact. Where gradients hide behind products a step
takes the longer of two sums, and under a memory limit bytes count beside seconds: then all paths are kept
that no other betters in everything (Pareto's front).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any

import jax

from jtssm import checks
from jtssm.protocol import Method
from jtssm.sharding.choosing import fits
from jtssm.sharding.cost import demand_seconds, is_gradient
from jtssm.sharding.demands import Demand, Layered, Sizes, layered_of, step_samples
from jtssm.sharding.grid import FORMS
from jtssm.sharding.machines import Machine
from jtssm.sharding.memory import GRADIENTS, WORD, activation_bytes, optimizer_words
from jtssm.sharding.tasks import stored_words
from jtssm.workers import WorkerParts

Costs = tuple[int, int, int]
Path = tuple[Any, ...]  # (form of the last layer, path of those before it), () before the first
Label = tuple[Costs, Path]


def fastest_forms(
    method: Method, sizes: Sizes, machine: Machine, *, overlap: float = 0.0,
    samples: int | None = None, limit: float = float("inf"),
) -> tuple[str, ...]:  # fmt: skip
    """One form a layer: those with the fewest predicted seconds whose bytes fit in `limit`.

    Raises:
      ValueError: sizes that do not go, or no forms that fit in the limit.
    """
    if isinstance(method.parts, WorkerParts):
        return ()
    count = len(method.parts.network.layers)
    subnet, pr, pc = sizes
    samples = step_samples(method, samples)
    checks.divides("subnet", subnet, len(method.parts.starts) - 1, "subnetworks")
    checks.divides("pc", pc, samples, "samples of a step")
    if pr == 1:
        return ("batch",) * count
    layered = layered_of(method, sizes, samples)
    local = (len(method.parts.starts) - 1) // subnet
    starts = method.parts.starts[::local]
    chain = Chain(layered, sizes, machine, overlap)
    # as long as all fits, bytes need not count beside seconds
    forms = [chain.fastest(range(a, b), float("inf")) for a, b in pairwise(starts)]
    if limit < float("inf"):
        for d, (a, b) in enumerate(pairwise(starts)):
            if chain.held(range(a, b), forms[d]) > limit:
                forms[d] = chain.fastest(range(a, b), limit)
    return tuple(form for run in forms for form in run)


class Chain:
    """The layers of a network as a chain of nodes (layer, form), with what each pair costs."""

    def __init__(self, layered: Layered, sizes: Sizes, machine: Machine, overlap: float):
        self.layered, self.sizes, self.machine, self.overlap = layered, sizes, machine, overlap
        self.met: dict[Any, Costs] = {}
        net, pr = layered.grid.network, sizes[1]
        self.have = [
            [f for f in FORMS if fits(net, i, params, f, pr)]
            for i, params in enumerate(layered.params)
        ]
        self.blank = ("batch",) * len(net.layers)
        self.kept = optimizer_words(layered)
        trained = (bool(jax.tree.leaves(p)) for p in layered.params)
        self.first = next((i for i, has in enumerate(trained) if has), 0)  # layer with parameters

    def fastest(self, layers: range, limit: float) -> tuple[str, ...]:
        """The forms of a run of layers."""
        counts = limit < float("inf")
        least = self._least_bytes(layers) if counts else None
        labels: dict[str, list[Label]] = {
            f: [(self._entry(layers[0], f), (f, ()))] for f in self.have[layers[0]]
        }
        for i in layers[:-1]:
            labels = {
                g: _undominated(
                    self._extended(labels, i, g, counts), limit - (least[i + 1][g] if least else 0)
                )
                for g in self.have[i + 1]
            }
        last = layers[-1]
        ends = [
            (_added(costs, self._costs(last, f, None)), forms)
            for f, found in labels.items() for costs, forms in found
        ]  # fmt: skip
        ends = [end for end in ends if end[0][-1] <= limit]
        if not ends:
            raise ValueError(
                f"memory_limit: expected more bytes a device, as layers {layers[0]} to {last} hold; got "
                f"{limit:.0f}"
            )
        return _unwound(min(ends, key=lambda end: max(end[0][:-1]))[1])

    def _least_bytes(self, layers: range) -> dict[int, dict[str, int]]:
        """The fewest bytes that a layer in a form, and those behind it, can hold."""
        last = layers[-1]
        least = {last: {f: self._costs(last, f, None)[-1] for f in self.have[last]}}
        for i in reversed(layers[:-1]):
            least[i] = {
                f: min(self._costs(i, f, g)[-1] + rest for g, rest in least[i + 1].items())
                for f in self.have[i]
            }
        return least

    def held(self, layers: range, forms: Sequence[str]) -> float:
        """Bytes that a run of layers in given forms holds."""
        return sum(
            self._costs(i, f, g)[-1]
            for i, f, g in zip(layers, forms, [*forms[1:], None], strict=True)
        )

    def _extended(self, labels: dict, i: int, g: str, counts: bool) -> Iterator[Label]:
        for f, found in labels.items():
            step = self._costs(i, f, g)
            step = step if counts else (*step[:-1], 0)
            for costs, path in found:
                yield _added(costs, step), (g, path)

    def _entry(self, i: int, form: str) -> Costs:
        """Of the hops into the first layer."""
        grid = self._grid(i, form)
        return self._priced(self.layered.entry(grid, i), 0.0)

    def _costs(self, i: int, form: str, following: str | None) -> Costs:
        """Of layer i and the next entry: seconds less what products hide, less gradients, and bytes."""
        layered = self.layered
        net, starts = layered.grid.network, layered.parts.starts
        after = i + 1 if following is not None else None
        key = (
            id(net.layers[i]), net.shapes[i], form, following, after and id(net.layers[after]),
            after in starts, i in starts, layered.runs[layered.piece(i)], i > self.first,
        )  # fmt: skip
        if key not in self.met:
            self.met[key] = self._found(i, form, following)
        return self.met[key]

    def _found(self, i: int, form: str, following: str | None) -> Costs:
        grid = self._grid(i, form, following)
        demand = self.layered.own(grid, i)
        if following is not None:
            demand += self.layered.entry(grid, i + 1)
        words = stored_words(grid, self.layered.params[i], i)
        weights = WORD * words * (1 + GRADIENTS + self.kept[self.layered.piece(i)])
        return self._priced(demand, weights + activation_bytes(demand))

    def _priced(self, demand: Demand, held: float) -> Costs:
        seconds = demand_seconds(self.machine, demand, self.sizes)
        if not self.overlap:
            return _ticks(seconds.total), 0, round(held)
        sums = Demand(messages=tuple(m for m in demand.messages if is_gradient(m)))
        rest = seconds.total - demand_seconds(self.machine, sums, self.sizes).total
        return _ticks(seconds.total - self.overlap * seconds.products), _ticks(rest), round(held)

    def _grid(self, i: int, form: str, following: str | None = None) -> Any:
        forms = list(self.blank)
        forms[i] = form
        if following is not None:
            forms[i + 1] = following
        return self.layered.grid._replace(forms=tuple(forms))


def _unwound(path: Path) -> tuple[str, ...]:
    """The forms of a path, first to last."""
    forms = []
    while path:
        form, path = path
        forms.append(form)
    return tuple(reversed(forms))


def _ticks(seconds: float) -> int:
    """Seconds as an integer, whose sums do not depend on their order: equal paths are then equal."""
    return round(seconds * 1e15)


def _added(one: Costs, other: Costs) -> Costs:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _undominated(labels: Iterator[Label], limit: float) -> list[Label]:
    """Those within the limit that no other betters or equals in everything."""
    kept: list[Label] = []
    front: list[tuple[int, int]] = []  # of the labels so far, all of which are as fast in the first
    for costs, path in sorted(labels, key=itemgetter(0)):
        rest = costs[1:]
        if costs[2] <= limit and not any(a <= rest[0] and b <= rest[1] for a, b in front):
            kept.append((costs, path))
            front = [(a, b) for a, b in front if a < rest[0] or b < rest[1]] + [rest]
    return kept
