"""The form of each layer with the fewest predicted seconds: a shortest path over the chain of layers.

A node is a layer in a form, its length the seconds of the layer's products, updates and messages, an edge
the change of layout between two layers. The path is exact. Where gradients hide behind products a step
takes the longer of two sums, and under a memory limit bytes count beside seconds: then all paths are kept
that no other betters in everything (Pareto's front).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter

import jax

from jtssm.protocol.declared import WORD
from jtssm.protocol.method import Method
from jtssm.sharding.cost.demand_of_pieces import (
    Layered,
    check_pc,
    layered_of,
    slots,
    step_samples,
)
from jtssm.sharding.cost.machines import Machine
from jtssm.sharding.cost.memory import (
    COPIES,
    GRADIENTS,
    copies_weights,
    kept_bytes,
    optimizer_words,
)
from jtssm.sharding.cost.messages import Demand, Sizes
from jtssm.sharding.cost.products import stored_words
from jtssm.sharding.cost.refusals import NoRoomError
from jtssm.sharding.cost.seconds import collective_seconds, demand_seconds, is_gradient
from jtssm.sharding.layers.choose import fits
from jtssm.sharding.layers.forms import FORMS, Grid
from jtssm.sharding.mesh import AXES

# seconds less what products hide, seconds less gradients (0 where nothing hides), bytes
Costs = tuple[int, int, int]
Ways = frozenset[tuple[tuple[str, ...], float]]  # (axes, times) of all-reduces of gradients
Step = tuple[Costs, Ways]
# (form of the last layer, path of those before it), () before the first
Path = tuple[str, "Path"] | tuple[()]
Label = tuple[Costs, Ways, Path]


def fastest_forms(
    method: Method,
    sizes: Sizes,
    machine: Machine,
    *,
    overlap: float = 0.0,
    samples: int | None = None,
    limit: float = float("inf"),
) -> tuple[str, ...]:
    """One form a layer: those with the fewest predicted seconds whose bytes fit in `limit`.

    Raises:
      ValueError: sizes that do not go, or no forms that fit in the limit.
    """

    def found(chain: Chain, layers: range) -> tuple[str, ...]:
        # as long as all fits, bytes need not count beside seconds
        forms = chain.fastest(layers, float("inf"))
        if limit < float("inf") and chain.held(layers, forms) > limit:
            return chain.fastest(layers, limit)
        return forms

    return _of_chain(method, sizes, machine, overlap, samples, found)


def leanest_forms(
    method: Method, sizes: Sizes, machine: Machine, samples: int | None = None
) -> tuple[str, ...]:
    """One form a layer: those that hold the fewest bytes.

    Raises:
      ValueError: sizes that do not go.
    """
    return _of_chain(method, sizes, machine, 0.0, samples, Chain.leanest)


def _of_chain(
    method: Method,
    sizes: Sizes,
    machine: Machine,
    overlap: float,
    samples: int | None,
    find: Callable[[Chain, range], tuple[str, ...]],
) -> tuple[str, ...]:
    """The forms that are found for the layers of each device along subnet, one after the other."""
    program = method.program
    if not program.takes_forms:
        return ()
    subnet, pr, pc = sizes
    samples = step_samples(program, samples)
    check_pc(program, pc, samples)
    if pr == 1:
        return ("batch",) * len(program.network.layers)
    chain = Chain(layered_of(program, sizes, samples), sizes, machine, overlap)
    return tuple(form for layers in _of_devices(method, subnet) for form in find(chain, layers))


def held_bytes(
    method: Method, sizes: Sizes, machine: Machine, forms: Sequence[str], samples: int | None = None
) -> float:
    """Bytes by the count that `fastest_forms` holds against its limit, layer by layer: of the device
    along subnet that holds most."""
    samples = step_samples(method.program, samples)
    chain = Chain(layered_of(method.program, sizes, samples), sizes, machine, 0.0)
    return max(
        chain.held(layers, forms[layers.start : layers.stop])
        for layers in _of_devices(method, sizes[0])
    )


def _of_devices(method: Method, subnet: int) -> list[range]:
    """The layers of each device along subnet that has any."""
    starts, held = method.program.stages.starts, slots(method.program, subnet)
    pieces = map(held.pieces, held.used)
    return [range(starts[of.start], starts[of.stop]) for of in pieces]


class Chain:
    """The layers of a network as a chain of nodes (layer, form), with what each pair costs."""

    def __init__(self, layered: Layered, sizes: Sizes, machine: Machine, overlap: float):
        self.layered, self.sizes, self.machine, self.overlap = layered, sizes, machine, overlap
        self.quiet = replace(machine, latency=0.0)
        self.met: dict[tuple, Step] = {}
        self.asked: dict[tuple, Demand] = {}
        self.waits: dict[Ways, int] = {}  # of ways met before
        net, pr = layered.grid.network, sizes[1]
        self.have = [
            [f for f in FORMS if fits(net, i, params, f, pr)]
            for i, params in enumerate(layered.params)
        ]
        self.blank = ("batch",) * len(net.layers)
        self.kept = optimizer_words(layered)
        starts = layered.program.stages.starts
        begin = [starts[layered.piece(i)] for i in range(len(net.layers))]
        # whether layers before i in its piece have parameters: then its inputs have a gradient
        have = [bool(jax.tree.leaves(params)) for params in layered.params]
        self.trained = [any(have[a:i]) for i, a in enumerate(begin)]
        self.copies = COPIES * copies_weights(layered.program)

    def fastest(self, layers: range, limit: float) -> tuple[str, ...]:
        """The forms of a run of layers."""
        counts = limit < float("inf")
        least = self._least_bytes(layers) if counts else None
        first, last = layers[0], layers[-1]
        start: Label = ((0, 0, 0), frozenset(), ())
        labels = {f: [self._on(start, self._entry(first, f), f)] for f in self.have[first]}
        for i in layers[:-1]:
            room = lambda g, i=i: limit - (least[i + 1][g] if least else 0)
            labels = {
                g: self._undominated(self._extended(labels, i, g, counts), room(g))
                for g in self.have[i + 1]
            }
        ends = [
            self._on(label, self._costs(last, f, None), None)
            for f, found in labels.items()
            for label in found
        ]
        ends = [end for end in ends if end[0][-1] <= limit]
        if not ends:
            needed = round(self.held(layers, self.leanest(layers)))
            raise NoRoomError(needed, limit, f"layers {first} to {last} hold")
        return _unwound(min(ends, key=lambda end: max(end[0][:-1]))[2])

    def leanest(self, layers: range) -> tuple[str, ...]:
        """The forms of a run of layers that hold the fewest bytes."""
        least = self._least_bytes(layers)
        forms: list[str] = []
        for i in layers:
            held = least[i]
            if forms:
                held = {g: self._bytes(i - 1, forms[-1], g) + n for g, n in held.items()}
            forms.append(min(held.items(), key=itemgetter(1))[0])
        return tuple(forms)

    def _extended(
        self, labels: Mapping[str, list[Label]], i: int, g: str, counts: bool
    ) -> Iterator[Label]:
        for f, found in labels.items():
            costs, ways = self._costs(i, f, g)
            step = (costs if counts else (*costs[:-1], 0)), ways
            for label in found:
                yield self._on(label, step, g)

    def _on(self, label: Label, step: Step, form: str | None) -> Label:
        """A path with a step more; form: of the next layer, None behind the last."""
        (a, b, held), ways, path = label
        (more, less, bytes_more), new = step
        a += more + (self._latency(new - ways) if not new <= ways else 0)
        path = path if form is None else (form, path)
        return (a, b + less, held + bytes_more), ways | new, path

    def _latency(self, ways: Ways) -> int:
        """Of one all-reduce of gradients along each way."""
        if ways not in self.waits:
            self.waits[ways] = self._waited(ways)
        return self.waits[ways]

    def _waited(self, ways: Ways) -> int:
        sizes = dict(zip(AXES, self.sizes, strict=True))
        found = 0.0
        for axes, times in ways:
            over = {name: sizes[name] for name in axes}
            found += times * collective_seconds(self.machine, "all_reduce", 0.0, over)
        return _ticks(found)

    def _undominated(self, labels: Iterator[Label], limit: float) -> list[Label]:
        """Those within the limit that no other betters or equals in everything, whatever comes."""
        kept: list[Label] = []
        front: list[Label] = []  # of those so far, all of which are as fast in the first
        for label in sorted((a for a in labels if a[0][2] <= limit), key=itemgetter(0)):
            _, second, held = label[0]
            # the newest first: it is likest
            for old in reversed(front):
                if old[0][1] <= second and old[0][2] <= held and self._betters(old, label):
                    break
            else:
                kept.append(label)
                front = [old for old in front if not _covers(label, old)] + [label]
        return kept

    def _betters(self, one: Label, other: Label) -> bool:
        """Whether every way on from one of no more bytes is as fast; it may have latencies yet to pay."""
        return one[1] >= other[1] or one[0][0] + self._latency(other[1] - one[1]) <= other[0][0]

    def _least_bytes(self, layers: range) -> dict[int, dict[str, int]]:
        """The fewest bytes that a layer in a form, and those behind it, can hold."""
        last = layers[-1]
        least = {last: {f: self._bytes(last, f, None) for f in self.have[last]}}
        for i in reversed(layers[:-1]):
            least[i] = {
                f: min(self._bytes(i, f, g) + rest for g, rest in least[i + 1].items())
                for f in self.have[i]
            }
        return least

    def held(self, layers: range, forms: Sequence[str]) -> float:
        """Bytes that a run of layers in given forms holds."""
        return sum(
            self._bytes(i, f, g) for i, f, g in zip(layers, forms, [*forms[1:], None], strict=True)
        )

    def _bytes(self, i: int, form: str, following: str | None) -> int:
        return self._costs(i, form, following)[0][-1]

    def _entry(self, i: int, form: str) -> Step:
        """Of the hops into the first layer."""
        grid = self._grid(i, form)
        return self._priced(self.layered.entry(grid, i), 0.0)

    def _costs(self, i: int, form: str, following: str | None) -> Step:
        """Of layer i and the next entry."""
        net = self.layered.grid.network
        after = i + 1 if following is not None else None
        key = (*self._alike(i, form), following, after and id(net.layers[after]))
        if key not in self.met:
            self.met[key] = self._found(i, form, following)
        return self.met[key]

    def _alike(self, i: int, form: str) -> tuple:
        """Equal for layers that ask the same in that form, whatever follows."""
        layered = self.layered
        net, starts = layered.grid.network, layered.program.stages.starts
        return (
            id(net.layers[i]),
            net.shapes[i],
            form,
            i in starts,
            i + 1 in starts,
            layered.runs[layered.piece(i)],
            self.trained[i],
        )

    def _found(self, i: int, form: str, following: str | None) -> Step:
        grid = self._grid(i, form, following)
        demand = self._own(grid, i)
        if following is not None:
            demand += self.layered.entry(grid, i + 1)
        words = stored_words(grid, self.layered.params[i], i)
        kept = 1 + self.kept[self.layered.piece(i)]
        weights = WORD * words * (GRADIENTS + (1 + self.copies) * kept)
        return self._priced(demand, weights + kept_bytes(demand))

    def _own(self, grid: Grid, i: int) -> Demand:
        """Of layer i but for its entry: what follows tells in which layout it leaves."""
        left = tuple(grid.leaves(i, spread) for spread in (False, True))
        key = (*self._alike(i, grid.forms[i]), left, i + 1 == len(grid.forms))
        if key not in self.asked:
            self.asked[key] = self.layered.own(grid, i)
        return self.asked[key]

    def _priced(self, demand: Demand, held: float) -> Step:
        """The gradients without latency: those of all layers go together (`combined` is not asked)."""
        gradients = tuple(m for m in demand.messages if is_gradient(m))
        others = tuple(m for m in demand.messages if not is_gradient(m))
        rest = demand_seconds(self.machine, demand._replace(messages=others), self.sizes)
        reduced = demand_seconds(self.quiet, Demand(messages=gradients), self.sizes).total
        most = _ticks(rest.total + reduced - self.overlap * rest.products)
        ways = frozenset((m.axes, m.times) for m in gradients)
        return (most, _ticks(rest.total) if self.overlap else 0, round(held)), ways

    def _grid(self, i: int, form: str, following: str | None = None) -> Grid:
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


def _covers(one: Label, other: Label) -> bool:
    """Whether what the other betters the one betters too, of labels that are no faster than it."""
    return one[0][1] <= other[0][1] and one[0][2] <= other[0][2] and one[1] >= other[1]
