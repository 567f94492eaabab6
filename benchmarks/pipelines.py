"""What synchronous pipelines cost on a machine, with the assumptions of `jtssm.sharding.cost.seconds`."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import jax

from jtssm import checks, nn, sharding
from jtssm.sharding import cost


def pipeline_seconds(
    net: nn.Network,
    batch: int,
    machine: sharding.Machine,
    *,
    stages: int,
    microbatches: int,
    recompute: bool,
    pc: int = 1,
    word: int = cost.WORD,
) -> cost.Seconds:
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
    starts = nn.balanced_starts(net.costs(), stages)
    samples = batch // pc // microbatches
    tasks = cost.network_tasks(net, cost.Run(samples, 1 + recompute, 1, 1, first=False), 1)
    products = [cost.task_seconds(machine, task, word) for task in tasks]
    words = [sum(a.size for a in jax.tree.leaves(p)) for p in net.parameter_shapes()]
    slots = microbatches + stages - 1
    slot, largest = (max(sum(of[a:b]) for a, b in pairwise(starts)) for of in (products, words))
    widths = [prod(net.shapes[start]) for start in starts[1:-1]]
    hop = 2 * cost.message_seconds(machine, samples * max(widths) * word) if widths else 0.0
    update = cost.update_seconds(machine, cost.Demand(updates=((largest, 1),)), word)
    reduced = cost.all_reduce_seconds(machine, largest * word, pc)
    return cost.Seconds(slots * slot, update, permute=slots * hop, all_reduce=reduced)
