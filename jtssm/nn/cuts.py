"""Where a network is cut into subnetworks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax

from jtssm import checks
from jtssm.nn.adapted import Adapted
from jtssm.nn.layer import Layer
from jtssm.nn.network import Network

BALANCES = ("forward", "work", "memory")


class Passes(NamedTuple):
    """How often a step of a cut network runs through a layer: of streaming gsADMM by default."""

    forward: int = (
        2  # of a subnetwork that is not the last: once more, on the minibatch that comes in
    )
    last: int = 1  # forward, of the last
    weights: int = 1  # for the gradient of its weights
    inputs: int = 1  # for that of its inputs, which the network's first layer does not take


def cut(
    net: Network,
    subnets: int | None,
    cuts: Sequence[int] | None = None,
    *,
    balance: str = "forward",
    passes: Passes | None = None,
) -> tuple[int, ...]:
    """Where the subnetworks start: piece l holds the layers starts[l] .. starts[l + 1] - 1.

    Args:
      subnets: number of subnetworks n, 1 <= n <= L; cut so that the largest cost is smallest.
      cuts: instead, the first layer of every subnetwork but the first, e.g. [3, 7] for three.
      balance: what a subnetwork costs. "forward": multiply-adds of a pass forward; "work": of a step,
        where a subnetwork that is not the last runs forward once more; "memory": its parameters (an
        embedding has no multiply-adds but many parameters).
      passes: what "work" counts; None: those of streaming gsADMM.

    Raises:
      ValueError: n out of range, cuts that do not rise within 1 .. L - 1, or the two disagree; an unknown
        balance, or one beside cuts.

    Examples:
      >>> from jtssm import nn
      >>> net = nn.mlp([64, 32, 32, 32, 10])
      >>> nn.cut(net, 2)
      (0, 1, 4)
      >>> nn.cut(net, None, [3])
      (0, 3, 4)
      >>> nn.cut(nn.mlp([16] * 9), 2), nn.cut(nn.mlp([16] * 9), 2, balance="work")
      ((0, 4, 8), (0, 3, 8))
    """
    checks.instance("net", net, Network, "jtssm.mlp([196, 512, 10])")
    checks.one_of("balance", balance, BALANCES)
    num_layers = len(net.layers)
    if cuts is not None:
        if balance != "forward":
            raise ValueError(
                f"balance: expected 'forward' with cuts, which leave nothing to balance; got {balance!r}"
            )
        cuts = checks.counts("cuts", cuts, "[3, 7]", least=0)
        starts = (0, *cuts, num_layers)
        if any(b <= a for a, b in pairwise(starts)):
            raise ValueError(
                f"cuts: expected rising layer numbers within 1..{num_layers - 1}; got {list(cuts)}"
            )
        if subnets is not None and checks.count(subnets=subnets) != (len(cuts) + 1,):
            raise ValueError(
                f"subnets: expected {len(cuts) + 1} with {len(cuts)} cuts; got {subnets}"
            )
        return starts
    n = 1 if subnets is None else subnets
    if not checks.is_integer(n) or not 1 <= n <= num_layers:
        tied = [f"layer {i}, {layer.name}" for i, layer in enumerate(net.layers) if _tied(layer)]
        why = f": {', '.join(tied)}, shares parameters and stays in one piece" if tied else ""
        raise ValueError(
            f"subnets: expected 1..{num_layers}, the network has {num_layers} layers; got "
            f"{checks.shown(n)}{why}"
        )
    costs, last = _costs(net, balance, passes or Passes())
    return balanced_starts(costs, int(n), last)


def _costs(net: Network, balance: str, passes: Passes) -> tuple[list[int], list[int]]:
    """What each layer costs in a subnetwork that is not the last, and in the last."""
    if balance == "memory":
        sizes = [sum(a.size for a in jax.tree.leaves(tree)) for tree in net.parameter_shapes()]
        return sizes, sizes
    forward = net.costs()
    if balance == "forward":
        return forward, forward
    often = lambda before, i: before + passes.weights + passes.inputs * (i > 0)
    return (
        [often(passes.forward, i) * cost for i, cost in enumerate(forward)],
        [often(passes.last, i) * cost for i, cost in enumerate(forward)],
    )


def _tied(layer: Layer) -> bool:
    return isinstance(layer, Adapted) and layer.tied


# of the layers so far: largest sum of a run and sum of squares, and where runs start
Runs = tuple[tuple[int, int], tuple[int, ...]]


def balanced_starts(
    costs: Sequence[int], n: int, last: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Split layers into n non-empty runs with the smallest possible largest sum.

    Dynamic program over (layers taken, runs): best[j] holds, for the first j layers, the pair
    (largest sum, sum of squares) and the starts; squares break ties towards even runs.

    Args:
      costs: of each layer.  n: how many runs.  last: what layers cost in the last run; None: the same.

    Examples:
      >>> from jtssm import nn
      >>> nn.balanced_starts([4, 1, 1, 1, 1], 2)
      (0, 1, 5)
      >>> nn.balanced_starts([4] * 7, 2, last=[3] * 7)
      (0, 3, 7)
    """
    num, last = len(costs), costs if last is None else last
    best: dict[int, Runs] = {0: ((0, 0), ())}
    for runs in range(1, n):
        best = {
            j: min(_extended(best, costs, i, j) for i in best if i < j)
            for j in range(runs, num + 1 - (n - runs))
        }
    return (*min(_extended(best, last, i, num) for i in best)[1], num)


def _extended(best: dict[int, Runs], costs: Sequence[int], i: int, j: int) -> Runs:
    (largest, squares), starts = best[i]
    run = sum(costs[i:j])
    return (max(largest, run), squares + run**2), (*starts, i)
