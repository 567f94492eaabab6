"""What a step costs on a machine, modelled: bytes, and seconds as plain Python numbers.

A product of m x k x n on a device takes as long as the slower of its multiply-adds and its memory
traffic, plus the start of a kernel; its backward pass two of those (dX, dW):

    max(2 m k n / (flops share(min(m, k, n))),  word (inputs + outputs + |W|) / memory) + kernel

and for each two numbers that lie between a layer's own products one `activation`. The optimizer is memory
traffic alone, `ADAM_WORDS` words a parameter, and what sums of gradients and copies of weights read and
write. Where pieces step in turn (streaming with microbatches) all devices wait for each that steps. Of n
bytes that each of p devices hands in, over links of so many bytes a second, with L = p - 1 (ring) or
ceil(log2 p) latencies (the paper):

    all-gather      L latency + (p - 1) n / link
    reduce-scatter  L latency + (p - 1) / p n / link, and so an all-to-all
    all-reduce      both: 2 L latency + 2 (p - 1) / p n / link
    permute         latency + n / link

A step waits for its slowest device, and its messages add up, one for each layer and kind, but for the
gradients of a device: they go in one all-reduce, or in one for every `combined` bytes, each with its own
latencies, and may hide behind products (`overlap`). Left out are activation functions elsewhere, the
loss, the scalars that a step shows (nothing waits for them), the host and the packing of weights into
rows (what our own code does on a mesh). What is multiplied and sent is what methods declare, and the
formulas of `jtssm.sharding.layers.traffic`, which tests hold equal to the traced and compiled program.

Sources: Gholami et al., arXiv 1712.04432 (alpha and beta); rings: Thakur, Rabenseifner, Gropp 2005.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, prod
from typing import NamedTuple

from jtssm.protocol.declared import WORD
from jtssm.protocol.method import Method
from jtssm.sharding.cost.demand import method_forms, step_demand
from jtssm.sharding.cost.machines import Machine
from jtssm.sharding.cost.messages import SHOWN, Demand, Message, Sizes, Step, message_bytes
from jtssm.sharding.cost.products import Task
from jtssm.sharding.count.routes import ring_share

ADAM_WORDS = 7  # reads of gradient, weight and two moments, writes of weight and moments


class Seconds(NamedTuple):
    """A step's time by cause."""

    products: float = 0.0
    optimizer: float = 0.0
    permute: float = 0.0  # messages between neighbours
    all_gather: float = 0.0
    reduce_scatter: float = 0.0
    all_reduce: float = 0.0
    all_to_all: float = 0.0
    hidden: float = 0.0  # of the all-reduce of gradients, behind products

    @property
    def compute(self) -> float:
        """Products and optimizer."""
        return self.products + self.optimizer

    @property
    def messages(self) -> float:
        """All collectives, hidden or not."""
        return sum(self[2:7])

    @property
    def total(self) -> float:
        """All of it but what is hidden."""
        return self.compute + self.messages - self.hidden


def task_seconds(machine: Machine, task: Task, word: int = WORD) -> float:
    """Seconds of a product on one device, all its repetitions."""
    work = 2 * task.multiply_adds / (machine.flops * machine.share(task.smallest))
    between = machine.activation * task.between / 2
    return task.times * (max(work, word * task.words / machine.memory) + machine.kernel + between)


def update_seconds(machine: Machine, demand: Demand, word: int = WORD) -> float:
    """Seconds of the optimizer on one device: its parameters once a step, one kernel for all of them."""
    steps = max((times for _, times in demand.updates), default=0)
    words = sum(ADAM_WORDS * size * times for size, times in demand.updates)
    return word * words / machine.memory + steps * machine.kernel


def collective_seconds(
    machine: Machine, collective: str, num_bytes: float, axes: Mapping[str, int]
) -> float:
    """Seconds of one collective over the axes (name -> size) of what each device hands in."""
    devices, speed = prod(axes.values()), machine.speed(tuple(axes))
    sent = ring_share(collective, devices) * num_bytes
    if collective == "permute":
        return machine.latency + sent / speed
    latencies = machine.latencies(devices) * (2 if collective == "all_reduce" else 1)
    return latencies * machine.latency + sent / speed


def message_seconds(machine: Machine, num_bytes: float) -> float:
    """Seconds of one message of that many bytes to a neighbour."""
    return collective_seconds(machine, "permute", num_bytes, {})


def all_reduce_seconds(machine: Machine, num_bytes: float, devices: int) -> float:
    """Seconds of an all-reduce of an array of that many bytes; nothing on one device."""
    return collective_seconds(machine, "all_reduce", num_bytes, {"": devices})


def demand_seconds(machine: Machine, demand: Demand, sizes: Sizes, word: int = WORD) -> Seconds:
    """Seconds of what is asked of one device, nothing hidden."""
    # virtual devices wait for one another: what one of them does, the host does for each
    crowd = prod(sizes) if machine.shared else 1
    products = crowd * sum(task_seconds(machine, task, word) for task in demand.tasks)
    sent = _sent_seconds(machine, _combined(demand.messages), sizes, word)
    beside = word * demand.beside / machine.memory
    return Seconds(products, crowd * (update_seconds(machine, demand, word) + beside), **sent)


def _sent_seconds(
    machine: Machine, messages: Iterable[Message], sizes: Sizes, word: int
) -> dict[str, float]:
    """Seconds by collective, one message after another."""
    found: dict[str, float] = {}
    for m in messages:
        each = one_message_seconds(machine, m, sizes, word)
        found[m.collective] = found.get(m.collective, 0.0) + each
    return found


def one_message_seconds(machine: Machine, m: Message, sizes: Sizes, word: int = WORD) -> float:
    """Seconds of a message, all its repetitions."""
    by_name = dict(zip(("subnet", "pr", "pc"), sizes, strict=True))
    num_bytes = message_bytes(m, word) / m.times
    axes = {name: by_name[name] for name in m.axes}
    each = collective_seconds(machine, m.collective, num_bytes, axes)
    if m.collective == "all_reduce" and num_bytes > machine.combined:
        more = ceil(num_bytes / machine.combined) - 1  # messages, each with latencies of its own
        each += more * collective_seconds(machine, m.collective, 0.0, axes)
    return m.times * each


def seconds_of(
    machine: Machine, step: Step, sizes: Sizes, *, overlap: float = 0.0, word: int = WORD
) -> Seconds:
    """Seconds of a step on a mesh of those sizes: of its slowest device.

    overlap: share of the products' time behind which the all-reduce of gradients may hide.
    """
    inside = [(demand_seconds(machine, d, sizes, word), d) for d in step.devices]
    slowest, demand = max(inside, key=lambda pair: pair[0].total)
    gradient = [m for m in _combined(demand.messages) if is_gradient(m)]
    reduced = sum(_sent_seconds(machine, gradient, sizes, word).values())
    waited_for = [m for m in step.between if m.what != SHOWN]
    between = _sent_seconds(
        machine, _longest(waited_for, step.swaps and sizes[0] == 2), sizes, word
    )
    causes = {name: getattr(slowest, name) + seconds for name, seconds in between.items()}
    # virtual devices do not wait: their host works for another meanwhile
    turns = 0 if machine.shared else step.turns - 1
    causes["optimizer"] = slowest.optimizer + turns * update_seconds(machine, demand, word)
    return slowest._replace(**causes, hidden=min(overlap * slowest.products, reduced))


def is_gradient(m: Message) -> bool:
    """Whether a message is of the sum of gradients over samples."""
    return m.what.startswith("gradient")


def _combined(messages: Iterable[Message]) -> Iterable[Message]:
    """All gradients that go the same way in one all-reduce, as XLA combines them."""
    sums: dict[tuple[tuple[str, ...], float], Message] = {}
    for m in messages:
        if not is_gradient(m):
            yield m
            continue
        key = m.axes, m.times
        sums[key] = m if key not in sums else m._replace(words=sums[key].words + m.words)
    yield from sums.values()


def _longest(messages: Sequence[Message], at_once: bool) -> Iterable[Message]:
    """Of messages that cross all boundaries at once the largest of each kind; the others as they are.

    at_once: two devices tell each other all they have: what the one sends that has more to tell.
    """
    crossing = [m for m in messages if m.source is not None]
    yield from (m for m in messages if m.source is None)
    if at_once:
        of = [[m for m in crossing if m.source == device] for device in range(2)]
        yield from max(of, key=lambda sent: sum(message_bytes(m, WORD) for m in sent))
        return
    kinds: dict[str, Message] = {}
    for m in crossing:
        if m.what not in kinds or kinds[m.what].words < m.words:
            kinds[m.what] = m
    yield from kinds.values()


def step_seconds(
    method: Method,
    machine: Machine,
    *,
    subnet: int = 1,
    pr: int = 1,
    pc: int = 1,
    forms: str | Sequence[str] = "auto",
    samples: int | None = None,
    overlap: float = 0.0,
    word: int = WORD,
) -> Seconds:
    """A step of a method, in its steady state, on subnet x pr x pc devices. Of workers: a round.

    Args:
      method: unplaced or placed.
      subnet: at most its subnetworks; divides its workers.
      pr: of its layers' grid; workers split their samples over it.
      pc: divides its batch.
      forms: as in `jtssm.sharding.place`.
      samples: that a resident method keeps.
      overlap: share of the products' time, 0 to 1, behind which the all-reduce of gradients may hide.
      word: bytes a number; with a `compute_dtype` messages alone count those of that dtype.

    Raises:
      ValueError: sizes that do not divide, forms that do not fit; a resident method without `samples`, or
        with pr > 1.
    """
    sizes = (subnet, pr, pc)
    chosen = method_forms(method, sizes, forms, samples)
    step = step_demand(method, sizes, chosen, samples)
    return seconds_of(machine, step, sizes, overlap=overlap, word=word)


def step_flops(method: Method, samples: int | None = None) -> int:
    """Floating-point operations of the products of one step, all devices together.

    samples: that a resident method keeps.
    """
    forms = ("batch",) * len(method.network.layers)  # of no use to workers
    (device,) = step_demand(method, (1, 1, 1), forms, samples).devices
    return round(2 * sum(task.multiply_adds * task.times for task in device.tasks))
