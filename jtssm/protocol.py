"""What a method is, and how it meets its neighbours.

A method is a record of pure functions (`Method`). It is written once, as `Parts`: functions whose
first argument is an `Exchange`, the record through which pieces of a network talk to each other. On
one device the exchange works by index (`by_index`); `jtssm.sharding.place` hands the same functions
an exchange made of collectives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtssm import checks, device_memory, sample_checks
from jtssm.arrays import Array, Tree
from jtssm.nn.network import as_input
from jtssm.nn.ops import PLAIN


class Info(NamedTuple):
    """What a person wants to see of one step; scalars. `samples` = 0: nothing was measured yet."""

    loss: Array  # mean loss of the samples that reached the last piece
    accuracy: Array  # share of them it classified rightly; 0 for a loss without labels
    samples: Array  # how many they were
    primal_residual: Array  # sqrt of the mean over samples of sum_l |p_{l+1} - q_l|^2
    dual_residual: Array  # the same of rho (q_l - q_l before the step)
    coupling: Array  # the same of q_l - f_l: what Theorem 1 of TSSM bounds the error by
    objective: Array  # pdADMM: the augmented Lagrangian, mean over samples; elsewhere 0
    # pdADMM: by how much theory says it fell at least, likewise, if rho > 4 nu and nothing is rounded
    # (otherwise the same weighted squares of the steps, without a promise); elsewhere 0
    decrease: Array


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
    weights: int  # how often the gradient of its weights is taken, and its optimizer steps
    inputs: (
        int  # how often gradients go back through it: to the inputs of every layer but its first
    )
    first: bool  # to those of its first layer too
    unused: int = 0  # of the passes forward: those of whose outputs nothing is made


class MatrixProduct(NamedTuple):
    """[rows, inner] x [inner, columns], or a solve of that many multiply-adds, `times` in a step."""

    rows: int
    inner: int
    columns: int
    times: int = 1
    split: bool = True  # whether one of the dimensions is of samples, which devices share
    solve: bool = False


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
    compute_dtype: Any = None  # what its layers compute and send in; None: the dtype of the samples


class Method(NamedTuple):
    """A training method as pure functions; jit them yourself.

    Every State has a scalar `pace`, 1 at the start, which the steps are multiplied by; it is traced, so
    that halving it (`fit(on_divergence="halve")`) costs no compilation. It multiplies an optimizer's
    updates (gsadmm, gsam, ist, local_sgd, ensemble, sgd), the step length eta of p (gsadmm and gsam, but
    not in the streaming schedule with one sweep, where eta is no step), and the steps of p and W
    (pdadmm).
    """

    name: str
    init: Callable  # (key, x, y, params=None) -> State; params: one tree a layer, a warm start
    step: Callable  # (state, x, y) -> (State, Info)
    predict: Callable  # (state, x) -> outputs of the composed network
    params: Callable  # state -> list: the whole network's parameters, one tree a layer
    batch_shape: tuple[int, ...] | None  # leading shape of what a step consumes; None: all samples
    batch_axes: tuple | None  # how those dimensions lie on the mesh
    resident: bool  # stores variables for every sample: samples stay in place
    drain: Callable  # state -> State in which no minibatch is in flight any more
    moves: Callable  # number of samples in a step -> tuple[Move, ...]
    parts: Any  # Parts, or jtssm.workers.WorkerParts
    spread: Callable  # state of the unplaced method -> state of this one: laid out on its mesh
    # (state, x) -> State in which statistics that layers keep are those of x under the whole network;
    # the same state where no layer keeps any
    estimate: Callable
    mesh: Any = None  # set by place
    axes: Any = None  # set by place: jtssm.sharding.mesh.AxisNames
    forms: tuple[str, ...] | None = None  # set by place: of each layer, where layers may be split


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


def given_trees(draw: Callable, params: Any, dtype: Any) -> list[Tree]:
    """A warm start, one tree a layer, in the dtype of the samples; draw: (key, dtype) -> such trees.

    Raises:
      ValueError: not one tree a layer, or trees of another network, or numbers that are not finite.
    """
    shapes = jax.eval_shape(lambda: draw(jax.random.key(0), dtype))
    if not isinstance(params, (list, tuple)) or len(params) != len(shapes):
        got = len(params) if isinstance(params, (list, tuple)) else checks.shown(params)
        raise ValueError(f"params: expected {len(shapes)} trees, one a layer; got {got}")
    expected, got = (jax.tree.map(_shape, list(tree)) for tree in (shapes, params))
    if expected != got:
        raise ValueError(f"params: expected arrays of shapes {expected}; got {checks.shown(got)}")
    for leaf in jax.tree.leaves(list(params)):
        sample_checks.weights(leaf)
    # left where they are: numpy arrays stay in host memory
    return jax.tree.map(lambda a, like: a.astype(like.dtype), list(params), shapes)


def _shape(leaf: Any) -> Any:
    """Of an array; of something else what it is."""
    shape = getattr(leaf, "shape", None)
    return shape if isinstance(shape, tuple) else type(leaf).__name__


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
