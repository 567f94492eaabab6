"""What a step declares to the cost model: what it multiplies, what it sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jtssm.nn.norm import Statistics

WORD = 4  # bytes of a number of which nothing else is said: a float32
SUMMED = 3  # numbers read and written to add a gradient to a sum
LOSS = "loss"  # what optimizers are told that want value=: a sum over the devices that split the samples


class Move(NamedTuple):
    """What a method sends in one step, as data: the cost model and the byte tests read it."""

    what: str
    shape: tuple[int, ...]  # of the whole matrix; its samples are split over "pc"
    axis: str  # mesh axis it travels along
    source: int | None  # piece that sends it; None: every worker does
    target: int | None  # piece that receives it; equal to source for a reduction inside a piece
    times: int  # how often in one step
    itemsize: int | None = None  # bytes of one of its numbers; None: as the samples
    # "permute" between neighbours, "all_reduce", or "all_to_all": of one worker, an N-th of it to each
    collective: str = "permute"


class Run(NamedTuple):
    """Passes of one piece, or of a worker's network, over samples in a step: the cost model reads it."""

    samples: int  # in one pass, all devices together
    forward: int  # how often its layers run forward
    weights: int  # how often the gradient of its weights is taken
    inputs: (
        int  # how often gradients go back through it: to the inputs of every layer but its first
    )
    first: bool  # to those of its first layer too
    unused: int = 0  # of the passes forward: those of whose outputs nothing is made
    steps: int | None = None  # how often its optimizer steps; None: once a gradient
    # numbers read and written in a step for each of its weights, beside the products' and the
    # optimizer's: by sums of gradients, by copies of weights
    beside: int = 0

    @property
    def updates(self) -> int:
        """How often its weights change."""
        return self.weights if self.steps is None else self.steps


class MatrixProduct(NamedTuple):
    """[rows, inner] x [inner, columns], or a solve of that many multiply-adds, `times` in a step."""

    rows: int
    inner: int
    columns: int
    times: int = 1
    split: bool = True  # whether one of the dimensions is of samples, which devices share
    solve: bool = False


class Declared(NamedTuple):
    """All that a step declares; of workers: of one of them, in a round."""

    moves: Callable[[int], tuple[Move, ...]]  # number of samples in a step -> what it sends
    # (l, number of samples in a step) -> what piece l multiplies
    work: Callable[[int, int], tuple[Run | MatrixProduct, ...]]
    sums: int  # scalars that are summed over all devices in a step
    # for each piece the first one that does the same on the same shapes: those that lie together on a
    # device are batched; None: every piece is of its own kind
    alike: tuple[int, ...] | None = None
    splits_layers: bool = True  # whether layers can be split over "pr"
    how: str = ""  # what makes a method less able than others of its name: "with workers"
    # whether workers lie along "pc": nothing is summed over it but what `moves` say
    apart: bool = False
    swaps: bool = False  # whether neighbours tell each other at once what crosses a boundary
    shows: tuple[str, ...] = ()  # names in `Info.shown` of a step
    # samples in a step -> how often the weights of a minibatch are summed over the devices that split it,
    # of a loss that has any
    weighings: Callable[[int], int] = lambda samples: 1
    weighed_first: bool = (
        False  # by the devices of every piece, as a minibatch enters; else the last's
    )
    # of each piece, further passes forward and backward that the program has room for and leaves out;
    # where others work on other devices, a device waits for as many as there are at most
    idle: tuple[int, ...] = ()
    stored: tuple[
        int, ...
    ] = ()  # of each piece, how many inputs of microbatches a step keeps at a time
    # whether the gradients of all passes are first added up: one sum over the devices that split samples,
    # one step of the optimizer
    sums_once: bool = False
    # whether pieces step in turn, and those on other devices wait for each of them
    in_turn: bool = False
    # means and variances that a worker takes in a local step
    statistics: Callable[[], tuple[Statistics, ...]] = tuple
