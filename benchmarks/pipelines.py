"""What synchronous pipelines cost on a machine, with the assumptions of `jtssm.sharding.cost.seconds`."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import jax

from jtssm import checks
from jtssm.nn.cuts import balanced_starts
from jtssm.nn.network import Network
from jtssm.protocol.declared import Run
from jtssm.sharding.cost.demand import Demand
from jtssm.sharding.cost.machines import Machine
from jtssm.sharding.cost.products import network_tasks
from jtssm.sharding.cost.seconds import (
    Seconds,
    all_reduce_seconds,
    message_seconds,
    task_seconds,
    update_seconds,
)


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
    samples = batch // pc // microbatches
    tasks = network_tasks(net, Run(samples, 1 + recompute, 1, 1, first=False), 1)
    products = [task_seconds(machine, task, word) for task in tasks]
    words = [sum(a.size for a in jax.tree.leaves(p)) for p in net.parameter_shapes()]
    slots = microbatches + stages - 1
    slot, largest = (max(sum(of[a:b]) for a, b in pairwise(starts)) for of in (products, words))
    widths = [prod(net.shapes[start]) for start in starts[1:-1]]
    hop = 2 * message_seconds(machine, samples * max(widths) * word) if widths else 0.0
    update = update_seconds(machine, Demand(updates=((largest, 1),)), word)
    reduced = all_reduce_seconds(machine, largest * word, pc)
    return Seconds(slots * slot, update, permute=slots * hop, all_reduce=reduced)
