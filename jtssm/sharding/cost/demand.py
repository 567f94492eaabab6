"""What one step of a method asks of the devices of a mesh, as data: products, updates, messages.

Nothing here knows of a machine: `jtssm.sharding.cost.seconds` prices a demand. It is made of what a
method declares (`jtssm.protocol.declared`) and of the formulas of `jtssm.sharding.layers.traffic`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import singledispatch
from math import prod
from typing import Any, NamedTuple

import jax

from jtssm import checks
from jtssm.arrays import Tree
from jtssm.protocol.axes import AXES
from jtssm.protocol.declared import WORD, MatrixProduct, Move, Run
from jtssm.protocol.method import Method
from jtssm.protocol.program import Program
from jtssm.protocol.stages import StageProgram
from jtssm.protocol.whole import WholeProgram
from jtssm.protocol.workers import WorkerProgram
from jtssm.sharding.cost.products import (
    Task,
    batched,
    matrix_task,
    network_tasks,
    passes,
    stored_words,
    task,
)
from jtssm.sharding.count.routes import Route
from jtssm.sharding.layers.forms import Grid
from jtssm.sharding.layers.questions import bare
from jtssm.sharding.layers.traffic import Pass, Sent, in_compute_dtype


class Message(NamedTuple):
    """What one device hands to a collective."""

    what: str
    collective: str
    axes: tuple[str, ...]
    words: float
    times: float  # in a step
    itemsize: int | None = None  # bytes of a number; None: a word
    step: int = 0  # of a permute between slabs: 1 to the device after, -1 to the one before
    source: int | None = None  # along "subnet", of a permute between pieces


class Demand(NamedTuple):
    """What a step asks of one device."""

    tasks: tuple[Task, ...] = ()
    updates: tuple[tuple[float, float], ...] = ()  # (parameters that an optimizer renews, times)
    messages: tuple[Message, ...] = ()

    def __add__(self, other: Demand) -> Demand:  # type: ignore[override]
        return Demand(
            self.tasks + other.tasks, self.updates + other.updates, self.messages + other.messages
        )


class Step(NamedTuple):
    """What a step asks of a mesh."""

    devices: tuple[Demand, ...]  # of each position along "subnet"
    between: tuple[Message, ...]  # boundaries, sums, deals


SHOWN = "sums"  # the scalars that a step shows
Sizes = tuple[int, int, int]  # of subnet, pr, pc


def step_demand(method: Method, sizes: Sizes, forms: Sequence[str], samples: int | None) -> Step:
    """What a step of a method asks of a mesh.

    Args:
      method: unplaced or placed.
      sizes: of subnet, pr and pc.
      forms: of its layers; of no use to workers.
      samples: that a resident method keeps; others take their minibatch.

    Raises:
      ValueError: sizes that do not divide; a resident method without `samples`; pr > 1 for a method that
        splits no layers.
    """
    return _demand(method.program, sizes, forms, samples)


@singledispatch
def _demand(program: Program, sizes: Sizes, forms: Sequence[str], samples: int | None) -> Step:
    """What a step of a program asks; each kind has an answer."""
    raise NotImplementedError(type(program).__name__)


@_demand.register
def _(program: StageProgram, sizes: Sizes, forms: Sequence[str], samples: int | None) -> Step:
    samples = step_samples(program, samples)
    layered, grid = _on_grid(program, sizes, forms, samples)
    local = program.stages.num // sizes[0]
    moves = program.declared.moves(samples)
    pieces = [_of_piece(layered, grid, l, moves) for l in range(program.stages.num)]
    devices = tuple(_total(pieces[d * local : (d + 1) * local]) for d in range(sizes[0]))
    # what the devices of pr hold of it is the same
    shown = _shown(program, (sizes[0], 1, sizes[2]))
    return Step(devices, (*_boundaries(moves, local, sizes[2]), *shown))


@_demand.register
def _(program: WholeProgram, sizes: Sizes, forms: Sequence[str], samples: int | None) -> Step:
    layered, grid = _on_grid(program, sizes, forms, step_samples(program, samples))
    device = _of_piece(layered, grid, 0, ())  # what it sends are its layers' sums
    split = grid.split_outputs(step_rows(layered))
    shown = _shown(program, sizes if split else (sizes[0], 1, sizes[2]))
    return Step((device,), tuple(shown))


def _on_grid(
    program: Program, sizes: Sizes, forms: Sequence[str], samples: int
) -> tuple[Layered, Grid]:
    """The pieces, and the grid with the forms of their layers."""
    checks.divides("subnet", sizes[0], program.stages.num, "subnetworks")
    checks.divides("pc", sizes[2], samples, "samples of a step")
    layered = layered_of(program, sizes, samples)
    return layered, layered.grid._replace(forms=tuple(forms))


def step_samples(program: Program, samples: int | None) -> int:
    """Samples that a step of a program without workers takes, all devices together.

    Raises:
      ValueError: a resident method, and no number of samples.
    """
    if not program.batch.resident and program.batch.size is not None:
        return program.batch.size
    if samples is None:
        raise ValueError(
            f"samples: expected how many {program.name} keeps, e.g. 55000: it keeps them all; got None"
        )
    checks.count(samples=samples)
    return samples


class Layered(NamedTuple):
    """A method's pieces on a grid, but for the forms."""

    program: Program
    params: Sequence[Tree]  # shapes, one tree a layer
    grid: Grid
    pc: int
    runs: tuple[tuple[Run, ...], ...]  # of each piece
    products: tuple[tuple[MatrixProduct, ...], ...]  # of each piece

    def piece(self, i: int) -> int:
        """The piece that holds layer i."""
        return next(l for l, b in enumerate(self.program.stages.starts[1:]) if i < b)

    def layer(self, grid: Grid, i: int) -> Demand:
        """What layer i asks, its inputs' entry included; grid: with the forms."""
        return self.entry(grid, i) + self.own(grid, i)

    def entry(self, grid: Grid, i: int) -> Demand:
        """What the hops into layer i ask."""
        return Demand(messages=tuple(self._messages(grid, i, Pass.entry)))

    def own(self, grid: Grid, i: int) -> Demand:
        """What layer i asks but for its entry."""
        runs = self.runs[self.piece(i)]
        first = i in self.program.stages.starts
        tasks = tuple(task(self._pass(grid, run), i, passes(run, first)) for run in runs)
        words = stored_words(grid, self.params[i], i)
        updates = ((words, sum(run.weights for run in runs)),) if words else ()
        return Demand(tasks, updates, tuple(self._messages(grid, i, Pass.own)))

    def _pass(self, grid: Grid, run: Run) -> Pass:
        back = run.first and run.inputs > 0
        return Pass(grid, self.params, run.samples // self.pc, self.pc, back, run.weights > 0)

    def _messages(self, grid: Grid, i: int, of: Any) -> Iterable[Message]:
        ends = self._ends(i) if of is Pass.own else set()
        for run in self.runs[self.piece(i)]:
            for sent in of(self._pass(grid, run), i):
                if times := _sends(sent, run, sent.what in ends):
                    yield Message(
                        sent.what,
                        sent.collective,
                        sent.axes,
                        sent.numbers,
                        times,
                        self.narrow if in_compute_dtype(sent) else None,
                        sent.step,
                    )

    @property
    def narrow(self) -> int | None:
        """Bytes of a number that layers send; None: a word."""
        dtype = self.program.stages.compute_dtype
        return None if dtype is None else dtype.itemsize

    def _ends(self, i: int) -> set[str]:
        """What layer i sends forward only to make its piece's outputs: no gradient needs it."""
        if i + 1 not in self.program.stages.starts:
            return set()
        ends = {"hop", "paired"}
        return ends | {"row"} if bare(self.grid.network.layers[i]) else ends


def layered_of(program: Program, sizes: Sizes, samples: int) -> Layered:
    """A program's pieces on a grid of those sizes.

    Raises:
      ValueError: pr > 1 for a method that splits no layers.
    """
    (subnet, pr, pc), stages, declared = sizes, program.stages, program.declared
    if pr > 1 and not declared.splits_layers:
        raise ValueError(f"pr: expected 1, {program.name} does not split layers; got {pr}")
    axis, samples_of = "pr" if pr > 1 else None, ("pc",) if pc > 1 else ()
    grid = Grid(
        stages.network,
        (),
        stages.starts[:-1],
        axis,
        pr,
        samples_of,
        apart=subnet > 1,
        open=program.open_ends,
    )
    work = [declared.work(l, samples) for l in range(stages.num)]
    runs = tuple(tuple(w for w in of if isinstance(w, Run)) for of in work)
    products = tuple(tuple(w for w in of if isinstance(w, MatrixProduct)) for of in work)
    return Layered(program, stages.network.parameter_shapes(), grid, pc, runs, products)


def _sends(sent: Sent, run: Run, ends: bool) -> int:
    """How often it is sent in a run; ends: only to make the outputs of a piece."""
    if sent.what == "gradient":
        return run.weights
    if sent.backward:
        return max(run.weights, run.inputs)
    return run.forward - (run.unused if ends else 0)


def _of_piece(layered: Layered, grid: Grid, l: int, moves: Sequence[Move]) -> Demand:
    starts = layered.program.stages.starts
    layers = range(starts[l], starts[l + 1])
    if not layered.products[l]:
        return _total([layered.layer(grid, i) for i in layers])
    words = sum(a.size for i in layers for a in jax.tree.leaves(layered.params[i]))
    tasks = tuple(matrix_task(p, layered.pc) for p in layered.products[l])
    sums = [m for m in moves if m.source == l and m.axis == "pc" and layered.pc > 1]
    messages = [
        Message(m.what, m.collective, ("pc",), prod(m.shape), m.times, m.itemsize) for m in sums
    ]
    return Demand(tasks, ((words, 1),), tuple(messages))


def _total(demands: Iterable[Demand]) -> Demand:
    return sum(demands, Demand())


def _boundaries(moves: Sequence[Move], local: int, pc: int) -> Iterable[Message]:
    """What crosses between devices along "subnet", each of which has `local` pieces."""
    crossing: Any = [m for m in moves if m.collective == "permute"]
    for m in (m for m in crossing if m.source // local != m.target // local):
        words, source = prod(m.shape) / pc, m.source // local
        yield Message(m.what, "permute", ("subnet",), words, m.times, m.itemsize, source=source)


def _shown(program: Program, sizes: Sizes) -> Iterable[Message]:
    """The scalars that a step shows, summed over the axes of more than one device."""
    over = [name for name, size in zip(AXES, sizes, strict=True) if size > 1]
    if over:
        yield Message(SHOWN, "all_reduce", tuple(over), program.declared.sums, 1)


def step_rows(layered: Layered) -> int:
    """Samples of a minibatch on each device of pc."""
    return layered.runs[0][0].samples // layered.pc


@_demand.register
def _(program: WorkerProgram, sizes: Sizes, forms: Sequence[str], samples: int | None) -> Step:
    """A round; pr and pc both split a worker's samples."""
    subnet, pr, pc = sizes
    checks.divides("subnet", subnet, program.num, "workers")
    checks.divides("pr * pc", pr * pc, program.round_shape[2], "samples of a worker's batch")
    local = program.num // subnet
    moves = program.declared.moves(0)
    gradient = [m for m in moves if m.axis == "pc"]
    updates = tuple((local * prod(m.shape), m.times) for m in gradient)
    axes = tuple(name for name, size in (("pr", pr), ("pc", pc)) if size > 1)
    messages = [
        Message(m.what, m.collective, axes, local * prod(m.shape), m.times, m.itemsize)
        for m in gradient
        if axes
    ]
    messages += _statistics(program, local, axes)
    device = Demand(tuple(_local_tasks(program, local, pr * pc)), updates, tuple(messages))
    return Step((device,) * subnet, tuple(_meetings(program, moves, sizes, axes)))


def _local_tasks(program: WorkerProgram, local: int, splits: int) -> Iterable[Task]:
    """The products of `local` workers, over so many shares of their samples."""
    for work in program.declared.work(0, 0):
        if isinstance(work, MatrixProduct):
            yield batched(matrix_task(work, splits), local)
        else:
            for each in network_tasks(program.network, work, splits):
                yield batched(each, local)


def _statistics(program: WorkerProgram, local: int, axes: tuple[str, ...]) -> Iterable[Message]:
    """Sums over the samples of `local` workers, of means and variances and of what comes back."""
    taken = program.declared.statistics()
    for each in (each for each in taken if each.over == "samples" and axes):
        for numbers in (2, 2 if each.affine else 3):  # forward, backward: as on the grid
            words = numbers * local * each.width
            yield Message("statistics", "all_reduce", axes, words, program.local_steps)


def _meetings(
    program: WorkerProgram, moves: Sequence[Move], sizes: Sizes, axes: tuple[str, ...]
) -> Iterable[Message]:
    """Deals and means over the workers, and the scalars that a round shows."""
    subnet = sizes[0]
    for m in (m for m in moves if m.axis == "subnet" and subnet > 1):
        times = program.num // subnet if m.collective == "all_to_all" else 1
        yield Message(m.what, m.collective, ("subnet",), times * prod(m.shape), m.times, m.itemsize)
    over = (*(["subnet"] if subnet > 1 else []), *axes)
    if over:
        yield Message(SHOWN, "all_reduce", over, program.declared.sums, 1)


def predicted_bytes(step: Step, sizes: Sizes, word: int = WORD) -> dict[Route, int]:
    """Bytes that a device hands to collectives, by route: of the device along subnet that moves most."""
    pr = sizes[1]
    inside = max((_by_route(d.messages, pr, word) for d in step.devices), key=_size)
    shared = _by_route((m for m in step.between if m.source is None), pr, word)
    sent: dict[Route, dict] = {}
    for m in (m for m in step.between if m.source is not None):
        by_device = sent.setdefault(Route(m.collective, m.axes), {})
        by_device[m.source] = by_device.get(m.source, 0) + message_bytes(m, word)
    crossing = {route: max(by_device.values()) for route, by_device in sent.items()}
    found = (inside, shared, crossing)
    return {r: sum(f.get(r, 0) for f in found) for r in dict.fromkeys(r for f in found for r in f)}


def message_bytes(m: Message, word: int) -> int:
    """Bytes of all its repetitions."""
    return round(m.words * m.times * (m.itemsize or word))


def _by_route(messages: Iterable[Message], pr: int, word: int) -> dict[Route, int]:
    ways: dict[Route, dict[int, int]] = {}
    for m in messages:
        way = ways.setdefault(Route(m.collective, m.axes), {})
        way[m.step] = way.get(m.step, 0) + message_bytes(m, word)
    most = max if pr == 2 else sum  # of two devices each has a single neighbour
    return {route: most(way.values()) for route, way in ways.items() if any(way.values())}


def _size(found: dict[Route, int]) -> tuple:
    return sum(found.values()), sorted(found.items())
