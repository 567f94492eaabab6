"""Methods written piece by piece, and the exchange between neighbours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtssm import checks
from jtssm.nn.network import as_input
from jtssm.nn.ops import PLAIN
from jtssm.protocol import device_memory
from jtssm.protocol.method import Method, given_trees


class Exchange(NamedTuple):
    """How the pieces on this device meet the others: by index, or by collectives on a mesh.

    `Carried` stands for one tree a piece. Each result of a piece has a kind: "weights" (parameters
    and what goes with them), "samples" (leaves [samples, ...]), "line" (leaves [ticks, samples, ...])
    or "sums" (scalars summed over the samples at hand).
    """

    # (fn(l, *trees) -> tuple, *carried, kinds, batched=False) -> tuple of carried, one a kind;
    # batched: fn does the same for all pieces that `Parts.alike` calls alike
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


class Parts(NamedTuple):
    """A method written piece by piece: all that `jtssm.sharding.place` needs of it."""

    name: str
    network: Any  # jtssm.nn.perceptrons.Network
    starts: tuple[int, ...]  # piece l holds the layers starts[l] .. starts[l + 1] - 1
    kinds: dict[str, Any]  # field of State -> kind, or the mesh axes of its dimensions
    init: Callable  # (exchange, key, x, y, params or None) -> State
    step: Callable  # (exchange, state, x, y) -> (State, Info)
    drain: Callable  # (exchange, state) -> State
    forward: Callable  # (exchange, l, weights, p) -> output of piece l
    start: Callable  # (l, parameters of piece l) -> weights of piece l
    optimizers: tuple  # one a piece
    batch_size: int | None  # samples a gradient sees, all devices together; None: all there are
    batch_shape: tuple[int, ...] | None
    batch_axes: tuple | None
    resident: bool
    loss: Any  # jtssm.losses.Loss
    # (x, y, stage, weights=()) raises ValueError; stage: "init", "step" (nothing but shapes and dtypes,
    # against the weights too) or "values" (samples of any number)
    check: Callable
    moves: Callable  # number of samples in a step -> tuple[Move, ...]
    work: Callable  # (l, number of samples in a step) -> tuple[Run | MatrixProduct, ...]
    sums: int  # scalars that are summed over all devices in a step
    # for each piece the first one that does the same on the same shapes: those that lie together on a
    # device are batched; None: every piece is of its own kind
    alike: tuple[int, ...] | None = None
    splits_layers: bool = True  # whether layers can be split over "pr"
    rebuild: Callable | None = None  # network -> the same method on another network
    # (exchange, state, x) -> State with the network's statistics estimated on x; None: it has none
    estimate: Callable | None = None
    # a method that trains the network as one piece: its step is descend(state, gradient(...)[0])
    gradient: Callable | None = None  # (exchange, state, x, y) -> (tree like params a piece, Info)
    descend: Callable | None = None  # (state, those trees) -> State; on arrays that jax shards
    shows: tuple[str, ...] = ()  # names in `Info.shown` of a step
    compute_dtype: Any = None  # what its layers compute and send in; None: the dtype of the samples


def as_method(parts: Parts) -> Method:
    """The protocol of a method on one device."""
    exchange = by_index(len(parts.starts) - 1)
    start = jax.jit(partial(parts.init, exchange))  # eager, its many small draws compile one by one

    def init(key, x, y, params=None):
        key = checks.key(key)
        parts.check(x, y, "init")
        for name, a in (("x", x), ("y", y)):
            if isinstance(a, jax.ShapeDtypeStruct):
                raise ValueError(
                    f"{name}: expected an array; got {a}: of shapes alone, "
                    f"jax.eval_shape(method.init, key, x, y) tells the state's"
                )
        if not parts.resident:  # only shapes are needed
            x, y = x[:1], y[:1]
        x = as_input(parts.network, x)
        if params is not None:
            params = jax.tree.map(jnp.asarray, given_params(parts, params, x.dtype))
        y = jnp.asarray(y)
        device_memory.fits(jax.eval_shape(start, key, x, y, params))
        return start(key, x, y, params)

    def step(state, x, y):
        parts.check(x, y, "step", state.weights)
        return parts.step(exchange, state, as_input(parts.network, x), jnp.asarray(y))

    def predict(state, x):
        forward = lambda l, weights, p: parts.forward(exchange, l, weights, p)
        return exchange.chain(forward, state.weights, x=as_input(parts.network, x))[0]

    def estimate(state, x):
        if parts.estimate is None or not parts.network.estimated:
            return state
        return parts.estimate(exchange, state, as_input(parts.network, x))

    return Method(
        parts.name, init, step, predict, whole_params, parts.batch_shape, parts.batch_axes,
        parts.resident, lambda state: parts.drain(exchange, state), parts.moves, parts,
        lambda state: state, estimate,
    )  # fmt: skip


def given_params(parts: Parts, params: Any, dtype: Any) -> tuple:
    """A warm start by pieces; see `given_trees`."""
    return by_piece(given_trees(parts.network.init, params, dtype), parts.starts)


def by_piece(params: Any, starts: tuple[int, ...]) -> tuple:
    """Group a list of one tree a layer into a tuple of one list a piece."""
    return tuple(list(params[a:b]) for a, b in pairwise(starts))


def whole_params(state: Any) -> list:
    """The parameters of all pieces of an unplaced state, one tree a layer."""
    return [layer for weights in state.weights for layer in weights.params]


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
