"""What a step costs on a machine, modelled: seconds as plain Python numbers.

A layer's product over b samples takes as long as the slower of its multiply-adds and its memory
traffic, plus the start of a kernel:

    max(2 b cost / flops,  word (b d_in + b d_out + |W|) / memory) + kernel

and its backward pass two of those (dX, dW). The optimizer is memory traffic alone, `ADAM_WORDS`
words a parameter. A message takes latency + bytes / link; an all-reduce over p devices is a ring, of
2 (p - 1) latencies and 2 (p - 1) / p of its bytes. Nothing overlaps: products, optimizer and
messages add up, and a step waits for its slowest device. Activation functions, the loss, the host and
the packing of a piece's weights into rows (what our own code does on a mesh) are left out. What crosses
a mesh is read from `method.moves`, which tests hold equal to the compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jtssm import checks
from jtssm.network import Network, balanced_starts
from jtssm.protocol import Method
from jtssm.sharding.choosing import choose_forms
from jtssm.sharding.grid import whole_grid
from jtssm.sharding.machines import MACHINES as MACHINES
from jtssm.sharding.machines import Machine
from jtssm.sharding.routes import Route
from jtssm.sharding.traffic import Pass, Sent, by_route

ADAM_WORDS = 7  # reads of gradient, weight and two moments, writes of weight and moments


class Seconds(NamedTuple):
    """A step's time by cause."""

    products: float
    optimizer: float
    boundary: float  # messages between neighbours
    reduction: float  # all-reduce of gradients

    @property
    def total(self) -> float:
        """All of it: nothing overlaps."""
        return sum(self)


class _Layer(NamedTuple):
    """A layer's sizes in words, a sample or once."""

    multiply_adds: int  # a sample
    activations: int  # in and out, a sample
    parameters: int


def _layers(net: Network) -> list[_Layer]:
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    sizes = [sum(a.size for a in jax.tree.leaves(layer)) for layer in shapes]
    ends = [prod(a) + prod(b) for a, b in pairwise(net.shapes)]
    return [_Layer(*each) for each in zip(net.costs(), ends, sizes, strict=True)]


def _product(machine: Machine, layer: _Layer, samples: float, word: int) -> float:
    moved = word * (samples * layer.activations + layer.parameters)
    work = 2 * samples * layer.multiply_adds
    return max(work / machine.flops, moved / machine.memory) + machine.kernel


def _passes(
    machine: Machine, layers: Sequence[_Layer], samples: float, word: int,
    times: tuple[int, int], first: bool,
) -> float:  # fmt: skip
    """(forward, backward) passes of a run of layers; the network's first has no dX."""
    forward, backward = times
    one = [_product(machine, layer, samples, word) for layer in layers]
    return (forward + 2 * backward) * sum(one) - (backward * one[0] if first else 0)


def _optimizer(machine: Machine, layers: Sequence[_Layer], word: int) -> float:
    if not layers:
        return 0.0
    size = sum(layer.parameters for layer in layers)
    return ADAM_WORDS * word * size / machine.memory + machine.kernel


def step_flops(method: Method) -> int:
    """Floating-point operations of the products of one step, all devices together.

    Raises:
      ValueError: a resident method, or one of workers.
    """
    costs, times, total = method.parts.network.costs(), _times(method), 0
    for l, (a, b) in enumerate(pairwise(method.parts.starts)):
        forward, backward = times(l)
        total += (forward + 2 * backward) * sum(costs[a:b])
    total -= times(0)[1] * costs[0]  # the data has no gradient
    return 2 * _batch_size(method) * total


def _batch_size(method: Method) -> int:
    assert method.parts.batch_size is not None  # a method with passes takes minibatches
    return method.parts.batch_size


def _times(method: Method) -> Callable:
    if getattr(method.parts, "passes", None) is None:
        why = "takes rounds of local steps" if method.batch_shape else "keeps all samples"
        raise ValueError(
            f"method: expected one that takes minibatches; got {method.name}, which {why}"
        )
    return method.parts.passes


def message_seconds(machine: Machine, num_bytes: float) -> float:
    """Seconds of one message of that many bytes to a neighbour."""
    return machine.latency + num_bytes / machine.link


def all_reduce_seconds(machine: Machine, num_bytes: float, devices: int) -> float:
    """Seconds of a ring all-reduce of an array of that many bytes; nothing on one device."""
    rounds = 2 * (devices - 1)
    return rounds * machine.latency + rounds / devices * num_bytes / machine.link


def exchanged_bytes(method: Method, subnet: int, word: int = 4) -> dict[str, int]:
    """Bytes that one device hands to each kind of collective along "subnet" in a round.

    A method of workers (ist, local_sgd, ensemble) on `subnet` devices: "all_to_all" is 2 S a worker,
    S the parameters of its subnet with their empty places, an N-th of which stays on it; "all_reduce"
    what all workers share, once a device. Nothing moves on one device.

    Args:
      subnet: divides the workers.  word: bytes a number.

    Raises:
      ValueError: a method without workers, or a size that does not divide.
    """
    num = getattr(method.parts, "num", None)
    if num is None:
        raise ValueError(
            f"method: expected one of workers (ist, local_sgd, ensemble); got {method.name}"
        )
    checks.divides("subnet", subnet, num, "workers")
    found = {"all_to_all": 0, "all_reduce": 0}
    for move in (m for m in method.moves(0) if m.axis == "subnet" and subnet > 1):
        times = num // subnet if move.collective == "all_to_all" else 1
        found[move.collective] += times * prod(move.shape) * (move.itemsize or word)
    return found


def sent_bytes(method: Method, subnet: int, word: int = 4) -> float:
    """Bytes that one of `subnet` devices sends to others in one step of the method.

    Of an all-to-all, all but the part that stays; of an all-reduce a ring's 2 (p - 1) / p. For a method
    without workers: its data parallelism, the all-reduce of the gradient over as many devices.
    """
    others = (subnet - 1) / subnet
    if hasattr(method.parts, "num"):
        moved = exchanged_bytes(method, subnet, word)
    else:
        reduced = [m for m in method.moves(_batch_size(method)) if m.axis == "pc"]
        moved = {
            "all_to_all": 0,
            "all_reduce": sum(prod(m.shape) * m.times * word for m in reduced),
        }
    return others * moved["all_to_all"] + 2 * others * moved["all_reduce"]


def step_bytes(
    method: Method, mesh: Mesh, *, forms: Any = "auto", word: int = 4
) -> dict[Route, int]:
    """Bytes that a device hands to collectives in a step of `solvers.sgd` on pr x pc, by route.

    Equal to `jtssm.sharding.count_bytes` of the placed step, to the byte, for networks without
    normalisation (whose statistics are not among the formulas) and elementwise optimizers. The loss and
    the number of right answers are two numbers, summed over the axes that split the last layer's samples.
    A TPU in its default precision sends what only products read as bfloat16: there it is an upper bound.

    Args:
      method: unplaced.  mesh: with axes named pr and pc; an `AbstractMesh` will do.
      forms: as in `jtssm.sharding.place`.  word: bytes a number.

    Raises:
      ValueError: a method that does not train the network as one piece, forms that do not fit.
    """
    parts = method.parts
    if getattr(parts, "gradient", None) is None:
        raise ValueError(f"method: expected one that trains one piece, as sgd; got {method.name}")
    pr, pc = (dict(mesh.shape).get(axis, 1) for axis in ("pr", "pc"))
    checks.divides("pc", pc, parts.batch_size, "samples of a batch")
    net, here = parts.network, parts.batch_size // pc
    chosen = choose_forms(net, parts.starts, here, pr, pc, forms, apart=False, open_ends=True)
    grid = whole_grid(net, chosen, pr, pc)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    sent = Pass(grid, shapes, here, pc).sent()
    over = [*(["pr"] if grid.split_outputs(here) else []), *(["pc"] if pc > 1 else [])]
    if over:
        sent.append(Sent("sums", len(chosen) - 1, "all_reduce", tuple(over), 2))
    return {route: word * numbers for route, numbers in by_route(sent, pr).items()}


def step_seconds(
    method: Method, machine: Machine, *, subnet: int = 1, pc: int = 1, word: int = 4
) -> Seconds:
    """A step of a method that takes minibatches, in its steady state, on subnet x pc devices.

    Args:
      method: unplaced or placed.  subnet: divides its subnetworks.  pc: divides its batch.
      word: bytes a number.

    Raises:
      ValueError: a resident method or one of workers, or sizes that do not divide.
    """
    parts, times = method.parts, _times(method)
    num, batch = len(parts.starts) - 1, _batch_size(method)
    checks.divides("subnet", subnet, num, "subnetworks")
    checks.divides("pc", pc, batch, "samples of a batch")
    layers, samples, local = _layers(parts.network), batch / pc, num // subnet
    pieces = [layers[a:b] for a, b in pairwise(parts.starts)]
    work = [
        _passes(machine, piece, samples, word, times(l), l == 0) for l, piece in enumerate(pieces)
    ]
    updates = [times(l)[1] * _optimizer(machine, piece, word) for l, piece in enumerate(pieces)]
    device = lambda of: max(sum(of[d * local : (d + 1) * local]) for d in range(subnet))
    both = device([a + b for a, b in zip(work, updates, strict=True)])
    products = device(work)
    boundary, reduced = _messages(method, machine, local, pc, word)
    return Seconds(products, both - products, boundary, device(reduced))


def _messages(
    method: Method, machine: Machine, local: int, pc: int, word: int
) -> tuple[float, list[float]]:
    """Seconds of a step's messages between neighbours, and of each piece's reductions."""
    moves = method.moves(_batch_size(method))
    crossing = [m for m in moves if m.axis == "subnet" and m.source // local != m.target // local]
    boundary = 0.0
    for what in {m.what for m in crossing}:  # every boundary at once, one kind after the other
        size = max(prod(m.shape) * m.times for m in crossing if m.what == what)
        boundary += message_seconds(machine, size * word / pc)
    reduced = [0.0] * (len(method.parts.starts) - 1)
    for m in moves:
        if m.axis == "pc":
            reduced[m.source] += m.times * all_reduce_seconds(machine, prod(m.shape) * word, pc)
    return boundary, reduced


def pipeline_seconds(
    net: Network, batch: int, machine: Machine, *, stages: int, microbatches: int,
    recompute: bool, pc: int = 1, word: int = 4,
) -> Seconds:  # fmt: skip
    """A step of a synchronous pipeline: m + stages - 1 slots of one microbatch forward and back.

    Sources: GPipe (Huang et al., arXiv 1811.06965); 1F1B with a flush (Narayanan et al., arXiv
    2104.04473). In seconds; our own count, with this module's assumptions.

    Args:
      net: cut into `stages` runs of layers with the smallest largest cost.  batch: all samples.
      microbatches: m.  pc: how many such pipelines share the batch and sum their gradients.
      recompute: True is GPipe, which keeps a stage's inputs and runs forward again before it runs
        backward; False is 1F1B, which holds at most `stages` microbatches' activations and keeps them.
        Both wait for the last microbatch before the weights move: their numbers are plain training's.

    Raises:
      ValueError: `pc` and `microbatches` do not divide the batch, more stages than layers.
    """
    checks.divides("pc", pc, batch, "samples of a batch")
    checks.divides("microbatches", microbatches, batch // pc, "samples of a pipeline's batch")
    checks.count(stages=stages)
    if stages > len(net.layers):
        raise ValueError(f"stages: expected at most {len(net.layers)}, one a layer; got {stages}")
    starts = balanced_starts(net.costs(), stages)
    layers, samples = _layers(net), batch / pc / microbatches
    runs = [layers[a:b] for a, b in pairwise(starts)]
    slots = microbatches + stages - 1
    slot = max(
        _passes(machine, run, samples, word, (1 + recompute, 1), s == 0)
        for s, run in enumerate(runs)
    )
    widths = [prod(net.shapes[start]) for start in starts[1:-1]]
    hop = 2 * message_seconds(machine, samples * max(widths) * word) if widths else 0.0
    update = max(_optimizer(machine, run, word) for run in runs)
    largest = max(sum(layer.parameters for layer in run) for run in runs)
    return Seconds(
        slots * slot, update, slots * hop, all_reduce_seconds(machine, largest * word, pc)
    )
