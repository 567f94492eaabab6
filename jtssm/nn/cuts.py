"""Where a network is cut into subnetworks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jtssm import checks
from jtssm.nn.adapted import Adapted
from jtssm.nn.layer import Layer
from jtssm.nn.network import Network


def cut(net: Network, subnets: int | None, cuts: Sequence[int] | None) -> tuple[int, ...]:
    """Where the subnetworks start: piece l holds the layers starts[l] .. starts[l + 1] - 1.

    Args:
      subnets: number of subnetworks n, 1 <= n <= L; cut so that the largest cost is smallest.
      cuts: instead, the first layer of every subnetwork but the first, e.g. [3, 7] for three.

    Raises:
      ValueError: n out of range, cuts that do not rise within 1 .. L - 1, or the two disagree.

    Examples:
      >>> from jtssm import nn
      >>> net = nn.mlp([64, 32, 32, 32, 10])
      >>> nn.cut(net, 2, None)
      (0, 1, 4)
      >>> nn.cut(net, None, [3])
      (0, 3, 4)
    """
    checks.instance("net", net, Network, "jtssm.mlp([196, 512, 10])")
    num_layers = len(net.layers)
    if cuts is not None:
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
    return balanced_starts(net.costs(), int(n))


def _tied(layer: Layer) -> bool:
    return isinstance(layer, Adapted) and layer.tied


# of the layers so far: largest sum of a run and sum of squares, and where runs start
Runs = tuple[tuple[int, int], tuple[int, ...]]


def balanced_starts(costs: Sequence[int], n: int) -> tuple[int, ...]:
    """Split costs into n non-empty runs with the smallest possible largest sum.

    Dynamic program over (layers taken, runs): best[j] holds, for the first j layers, the pair
    (largest sum, sum of squares) and the starts; squares break ties towards even runs.

    Examples:
      >>> from jtssm import nn
      >>> nn.balanced_starts([4, 1, 1, 1, 1], 2)
      (0, 1, 5)
    """
    best: dict[int, Runs]
    best = {j: ((sum(costs[:j]), sum(costs[:j]) ** 2), (0,)) for j in range(1, len(costs) + 1)}
    for runs in range(2, n + 1):
        best = {
            j: min(_extended(best, costs, i, j) for i in range(runs - 1, j))
            for j in range(runs, len(costs) + 1)
        }
    return (*best[len(costs)][1], len(costs))


def _extended(best: dict[int, Runs], costs: Sequence[int], i: int, j: int) -> Runs:
    (largest, squares), starts = best[i]
    run = sum(costs[i:j])
    return (max(largest, run), squares + run**2), (*starts, i)
