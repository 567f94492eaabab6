"""What a step asks of methods whose network is cut into pieces, or trained as one: layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import NamedTuple

import jax

from jtssm import checks
from jtssm.arrays import Tree
from jtssm.protocol.axes import AXES
from jtssm.protocol.declared import LOSS, MatrixProduct, Move, Run
from jtssm.protocol.program import Program
from jtssm.protocol.stages import StageProgram
from jtssm.protocol.whole import WholeProgram
from jtssm.sharding.cost.messages import SHOWN, Demand, Message, Sizes, Step, weighing
from jtssm.sharding.cost.products import matrix_task, passes, stored_words, task
from jtssm.sharding.layers.forms import Grid
from jtssm.sharding.layers.questions import bare
from jtssm.sharding.layers.traffic import LATE, OUTPUTS, Pass, Sent, in_compute_dtype
from jtssm.sharding.slots import Slots


def of_stages(
    program: StageProgram, sizes: Sizes, forms: Sequence[str], samples: int | None
) -> Step:
    """Of pieces that pass samples on."""
    samples = step_samples(program, samples)
    layered, grid = _on_grid(program, sizes, forms, samples)
    held = slots(program, sizes[0])
    moves = program.declared.moves(samples)
    weighed = weighing(program, samples, layered.grid.samples)
    by_all, of_last = (weighed, ()) if program.declared.weighed_first else ((), weighed)
    pieces = [_of_piece(layered, grid, l, moves, of_last) for l in range(program.stages.num)]
    devices = tuple(_total(pieces[l] for l in held.pieces(d)) for d in range(sizes[0]))
    # what the devices of pr hold of it is the same
    shown = _shown(program, (sizes[0], 1, sizes[2]))
    between = (*_boundaries(moves, held, sizes[2]), *by_all, *shown)
    turns = min(sizes[0], program.batch.microbatches) if program.declared.in_turn else 1
    return Step(devices, between, program.declared.swaps, turns)


def of_whole(
    program: WholeProgram, sizes: Sizes, forms: Sequence[str], samples: int | None
) -> Step:
    """Of a network that is trained as one piece."""
    layered, grid = _on_grid(program, sizes, forms, step_samples(program, samples))
    split = grid.split_outputs(step_rows(layered))
    axes = (*([grid.axis] if split and grid.axis else []), *grid.samples)
    weighed = weighing(program, 0, axes)
    device = _of_piece(layered, grid, 0, (), weighed)  # what it sends are its layers' sums
    shown = _shown(program, sizes if split else (sizes[0], 1, sizes[2]))
    return Step((device,), tuple(shown))


def _on_grid(
    program: Program, sizes: Sizes, forms: Sequence[str], samples: int
) -> tuple[Layered, Grid]:
    """The pieces, and the grid with the forms of their layers."""
    check_pc(program, sizes[2], samples)
    layered = layered_of(program, sizes, samples)
    return layered, layered.grid._replace(forms=tuple(forms))


def check_pc(program: Program, pc: int, samples: int) -> None:
    """The devices of pc share workers, or the samples of a step or microbatch, evenly.

    Raises:
      ValueError: they do not.
    """
    workers, parts = program.batch.workers, program.batch.microbatches
    if workers is None:
        what = "step" if parts == 1 else "microbatch"
        checks.divides("pc", pc, samples // parts, f"samples of a {what}")
    else:
        checks.divides("pc", pc, workers, "workers")


def slots(program: Program, subnet: int) -> Slots:
    """Which device holds which pieces; the first devices along "subnet" may have fewer, or none.

    Raises:
      ValueError: more devices than pieces.
    """
    num = program.stages.num
    if subnet > num:
        raise ValueError(f"subnet: expected at most {num}, the subnetworks there are; got {subnet}")
    return Slots(num, subnet)


def step_samples(program: Program, samples: int | None) -> int:
    """Samples that gradients see at a time in a step, all devices and workers together.

    Raises:
      ValueError: a resident method, and no number of samples.
    """
    if not program.batch.resident and program.batch.minibatch is not None:
        return program.batch.minibatch
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
    runs: tuple[tuple[Run, ...], ...]  # of each piece, with those for which it waits
    written: tuple[tuple[Run, ...], ...]  # with those that the program has room for
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
        steps = self.workers * sum(run.updates for run in runs)
        updates = ((words, steps),) if words else ()
        beside = self.workers * words * sum(run.beside for run in runs)
        return Demand(tasks, updates, tuple(self._messages(grid, i, Pass.own)), beside)

    def _pass(self, grid: Grid, run: Run) -> Pass:
        declared, back = self.program.declared, run.first and run.inputs > 0
        pc, here = 1 if declared.apart else self.pc, run.samples // self.pc
        return Pass(grid, self.params, here, pc, back, run.weights > 0, declared.sums_once)

    def _messages(
        self, grid: Grid, i: int, of: Callable[[Pass, int], Iterable[Sent]]
    ) -> Iterable[Message]:
        ends = self._ends(i) if of is Pass.own else set()
        for run in self.written[self.piece(i)]:
            for sent in of(self._pass(grid, run), i):
                if times := _sends(sent, run, sent.what in ends):
                    yield Message(
                        sent.what,
                        sent.collective,
                        sent.axes,
                        sent.numbers,
                        times,
                        sent.itemsize or (self.narrow if in_compute_dtype(sent) else None),
                        sent.step,
                    )

    @property
    def workers(self) -> int:
        """How many train on a device, one after the other; 1 where all devices of pc train together."""
        return (self.program.batch.workers or self.pc) // self.pc

    @property
    def narrow(self) -> int | None:
        """Bytes of a number that layers send; None: a word."""
        dtype = self.program.stages.compute_dtype
        return None if dtype is None else dtype.itemsize

    def _ends(self, i: int) -> set[str]:
        """What layer i sends forward only to make its piece's outputs: no gradient needs it."""
        if i + 1 not in self.program.stages.starts:
            return set()
        ends = {"hop", "paired", OUTPUTS}
        return ends | {"row"} if bare(self.grid.network.layers[i]) else ends


def layered_of(program: Program, sizes: Sizes, samples: int) -> Layered:
    """A program's pieces on a grid of those sizes.

    Raises:
      ValueError: pr > 1 for a method that splits no layers.
    """
    (subnet, pr, pc), stages, declared = sizes, program.stages, program.declared
    if pr > 1 and not declared.splits_layers:
        raise ValueError(f"pr: expected 1, {program.called} does not split layers; got {pr}")
    axis, samples_of = "pr" if pr > 1 else None, ("pc",) if pc > 1 and not declared.apart else ()
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
    # of pieces that share a device none waits
    most = max(declared.idle, default=0) if subnet > 1 else 0
    waited, written = (_prolonged(runs, idle) for idle in ((most,) * len(runs), declared.idle))
    products = tuple(tuple(w for w in of if isinstance(w, MatrixProduct)) for of in work)
    shapes = stages.network.parameter_shapes()
    return Layered(program, shapes, grid, pc, waited, written, products)


def _prolonged(
    runs: tuple[tuple[Run, ...], ...], idle: Sequence[int]
) -> tuple[tuple[Run, ...], ...]:
    """The runs of each piece with so many passes more, forward and backward."""

    def longer(run: Run, more: int) -> Run:
        scaled = lambda passes: passes * (run.weights + more) // run.weights
        forward, weights, inputs, unused = map(
            scaled, (run.forward, run.weights, run.inputs, run.unused)
        )
        return run._replace(forward=forward, weights=weights, inputs=inputs, unused=unused)

    if not any(idle):
        return runs
    return tuple(
        tuple(longer(run, more) for run in of) for of, more in zip(runs, idle, strict=True)
    )


def _sends(sent: Sent, run: Run, ends: bool) -> int:
    """How often it is sent in a run; ends: only to make the outputs of a piece."""
    if sent.what == LATE:
        return 1
    if sent.what == "gradient":
        return run.weights
    if sent.backward:
        return max(run.weights, run.inputs)
    return run.forward - (run.unused if ends else 0)


def _of_piece(
    layered: Layered, grid: Grid, l: int, moves: Sequence[Move], weighed: tuple[Message, ...]
) -> Demand:
    """weighed: what the last piece sends for the weights of its samples."""
    starts = layered.program.stages.starts
    layers = range(starts[l], starts[l + 1])
    ends = Demand(messages=weighed if l == layered.program.stages.num - 1 else ())
    own = [m for m in moves if m.source == l and m.axis == "pc"]
    if not layered.products[l]:  # of its moves, gradients are their layers' sums
        apart = layered.program.declared.apart
        told = _sums(layered, [m for m in own if apart or m.what == LOSS])
        return _total([*(layered.layer(grid, i) for i in layers), Demand(messages=told), ends])
    words = sum(a.size for i in layers for a in jax.tree.leaves(layered.params[i]))
    tasks = tuple(matrix_task(p, layered.pc) for p in layered.products[l])
    return Demand(tasks, ((words, 1),), _sums(layered, own)) + ends


def _sums(layered: Layered, moves: Sequence[Move]) -> tuple[Message, ...]:
    """What the devices that split the samples sum, where there are several."""
    return tuple(
        Message(m.what, m.collective, ("pc",), prod(m.shape), m.times, m.itemsize)
        for m in moves
        if layered.pc > 1
    )


def _total(demands: Iterable[Demand]) -> Demand:
    return sum(demands, Demand())


def _boundaries(moves: Sequence[Move], held: Slots, pc: int) -> Iterable[Message]:
    """What crosses between devices along "subnet"."""
    for m in (m for m in moves if m.collective == "permute"):
        assert m.source is not None  # a permute is between two pieces
        assert m.target is not None
        source, target = held.device(m.source), held.device(m.target)
        if source != target:
            words = prod(m.shape) / pc
            yield Message(m.what, "permute", ("subnet",), words, m.times, m.itemsize, source=source)


def _shown(program: Program, sizes: Sizes) -> Iterable[Message]:
    """The scalars that a step shows, summed over the axes of more than one device."""
    over = [name for name, size in zip(AXES, sizes, strict=True) if size > 1]
    if over:
        yield Message(SHOWN, "all_reduce", tuple(over), program.declared.sums, 1)


def step_rows(layered: Layered) -> int:
    """Samples of a minibatch on each device of pc."""
    return layered.runs[0][0].samples // layered.pc
