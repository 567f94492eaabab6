"""How the pieces of a network meet their neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from jtssm.nn.ops import PLAIN


class Exchange(NamedTuple):
    """How the pieces on this device meet the others: by index, or by collectives on a mesh.

    `Carried` stands for one tree a piece. Each result of a piece has a kind: "weights" (parameters
    and what goes with them), "samples" (leaves [samples, ...]), "line" (leaves [ticks, samples, ...])
    or "sums" (scalars summed over the samples at hand).
    """

    # (fn(l, *trees) -> tuple, *carried, kinds, batched=False) -> tuple of carried, one a kind;
    # batched: fn does the same for all pieces that `Declared.alike` calls alike
    each: Callable
    to_next: Callable  # carried: what piece l sent is what piece l + 1 receives; piece 0 gets ()
    to_previous: Callable  # carried: what piece l sent is what piece l - 1 receives
    # (fn(l, *trees, p) -> f, *carried, x, keep=False) -> (f of the last piece,); with keep also what
    # every piece took and what it gave, both carried
    chain: Callable
    recall: Callable  # (line, tick) -> what was stored `length of the line` ticks ago
    store: Callable  # (line, entry, tick) -> line with the entry in the place of the recalled one
    sum_samples: Callable  # within `each`: an array summed over the devices that split the samples
    total: Callable  # sums of each piece -> one tree of sums over all pieces and samples
    own: Callable  # (l, parameters of piece l) -> the part of them this device stores
    own_samples: Callable  # an array [all samples, ...] -> the rows that live here
    num_splits: int  # over how many devices the samples of a batch are split
    # (index of a layer, samples here at the entry of its piece) -> its Products
    products: Callable


def by_index(num: int) -> Exchange:
    """The exchange of `num` pieces that share one device: neighbours are reached by their index."""

    def each(fn, *carried, kinds, batched=False):
        del batched  # on one device the pieces stand unrolled: a batch would copy their weights
        results = [fn(l, *(trees[l] for trees in carried)) for l in range(num)]
        return tuple(tuple(result[k] for result in results) for k in range(len(kinds)))

    def chain(fn, *carried, x, keep=False):
        passed = [x]
        for l in range(num):
            passed.append(fn(l, *(trees[l] for trees in carried), passed[-1]))
        return (passed[-1], tuple(passed[:-1]), tuple(passed[1:])) if keep else (passed[-1],)

    def recall(line, tick):
        return jax.tree.map(lambda a: a[tick % a.shape[0]], line)

    def store(line, entry, tick):
        return jax.tree.map(lambda a, e: a.at[tick % a.shape[0]].set(e), line, entry)

    return Exchange(
        each=each,
        to_next=lambda sent: ((), *sent[:-1]),
        to_previous=lambda sent: (*sent[1:], ()),
        chain=chain,
        recall=recall,
        store=store,
        sum_samples=lambda a: a,
        total=lambda sums: jax.tree.map(lambda *a: sum(a), *sums),
        own=lambda l, params: params,
        own_samples=lambda a: a,
        num_splits=1,
        products=lambda layer, samples: PLAIN,
    )
