"""Methods of equal workers: how one is written, and how its workers meet.

Where `jtssm.protocol.method.Parts` cuts a network into pieces that pass samples on, these methods give
every one of N workers a network of the same shape, which trains alone on minibatches of its own for a
round of R local steps; then the workers exchange weights. One step of such a method is one round.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtssm import checks
from jtssm.arrays import Array
from jtssm.nn.network import as_input, float_dtype
from jtssm.nn.ops import PLAIN, Products
from jtssm.protocol import device_memory, sample_checks
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method, given_trees


class Meeting(NamedTuple):
    """How the workers on this device meet the others: by index, or by collectives on a mesh.

    n workers and their n homes live here; a home stores a share of the whole model. With a single home
    (one device only) it stores all of it.
    """

    num: int  # of all workers: N
    here: Array  # [n] numbers of the workers that live here
    to_workers: (
        Callable  # [homes here, N, ...] -> [n, homes, ...]: slice w of every home to worker w
    )
    to_homes: Callable  # [n, homes, ...] -> [homes here, N, ...]: back again
    own_homes: Callable  # [homes, ...] -> [homes here, ...]
    apart: Callable  # a tree, marked as differing from worker to worker
    copies: Callable  # a tree -> the tree [n, ...], one a worker
    mean: Callable  # a tree [n, ...] -> its mean over all workers
    total: Callable  # a tree of scalars a worker, [n] -> their sum over all workers and samples
    gather: (
        Callable  # [b, width here] -> [b, whole width]: what all homes hold of a layer's neurons
    )
    sum_homes: Callable  # an array -> its sum over the devices that share the homes
    own_samples: Callable  # an array [all samples of a minibatch, ...] -> the rows that live here
    products: Products  # of samples that are split over devices


class WorkerParts(NamedTuple):
    """A method of equal workers: all that `jtssm.sharding.place` needs of it."""

    name: str
    network: Any  # jtssm.nn.perceptrons.Network
    num: int  # workers: N
    homes: int  # in how many parts the whole model is stored; 1: not on a mesh
    # field of State -> mesh axes of its leaves' first dimensions
    fields: dict[str, tuple[str, ...]]
    draw: Callable  # (key, dtype) -> random parameters, one tree a layer
    lay_out: Callable  # (xp, parameters) -> fields of State that hold them; xp: numpy or jax.numpy
    start: Callable  # (key, **those fields) -> State
    step: Callable  # (meeting, state, x, y) -> (State, Info)
    forward: Callable  # (meeting, state, x) -> outputs of the whole network
    estimate: Callable  # (meeting, state, x) -> State
    params: Callable  # state of one device -> one tree a layer
    local_steps: int  # R
    batch_size: int  # samples a gradient sees: a worker's
    loss: Any  # jtssm.losses.Loss
    optimizer: Any  # every worker's
    moves: Callable  # number of samples in a local step -> tuple[jtssm.protocol.method.Move, ...]
    work: Callable  # () -> tuple[jtssm.protocol.method.Run | MatrixProduct, ...] of one worker in a round
    # () -> tuple[jtssm.nn.norm.Statistics, ...] of one worker in a local step
    statistics: Callable
    resident: bool = False
    shows: tuple[str, ...] = ()  # names in `Info.shown` of a round

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """(R, N, b): what one step consumes."""
        return self.local_steps, self.num, self.batch_size

    def check(self, x: Any, y: Any, stage: str, weights: Any = ()) -> None:
        """The front door of `init`, `step` and `fit`; see `jtssm.protocol.method.Parts.check`."""
        if stage == "step":
            sample_checks.leading("x", self.batch_shape, x)
            sample_checks.leading("y", self.batch_shape, y)
            x, y = (jax.ShapeDtypeStruct(self.flat(a), jnp.result_type(a)) for a in (x, y))
        sample_checks.samples(self.network, self.loss, x, y, values=stage != "step")
        if stage != "values":
            sample_checks.same_dtype(weights, x)

    def flat(self, a: Any) -> tuple[int, ...]:
        """The shape of a round's samples in one row."""
        return (prod(self.batch_shape), *jnp.shape(a)[3:])

    def samples(self, x: Any) -> Array:
        """A round's samples [R, N, b, ...] in the shape the first layer takes."""
        shape = self.network.shapes[0]
        return jnp.asarray(x).reshape(*self.batch_shape, *shape).astype(float_dtype(x))


def as_method(parts: WorkerParts) -> Method:
    """The protocol of a method of workers on one device."""
    meeting = lambda: by_index(parts.num)  # only where a function runs: it holds an array
    start = jax.jit(partial(first_state, parts), static_argnums=1)

    def init(key, x, y, params=None):
        key = checks.key(key)
        parts.check(x, y, "init")
        dtype = float_dtype(x)
        if params is not None:
            params = jax.tree.map(jnp.asarray, given_trees(parts.draw, params, dtype))
        device_memory.fits(start.eval_shape(key, dtype, params))
        return start(key, dtype, params)

    def step(state, x, y):
        parts.check(x, y, "step", state)
        return parts.step(meeting(), state, parts.samples(x), jnp.asarray(y))

    def predict(state, x):
        return parts.forward(meeting(), state, as_input(parts.network, x))

    def estimate(state, x):
        if not parts.network.estimated:
            return state
        return parts.estimate(meeting(), state, as_input(parts.network, x))

    return Method(
        parts.name, init, step, predict, parts.params, parts.batch_shape, (None, "subnet", "pc"),
        False, lambda state: state, parts.moves, parts, lambda state: state, estimate,
    )  # fmt: skip


def first_state(parts: WorkerParts, key: Array, dtype: Any, params: Any = None) -> Any:
    """The state before the first round, from random parameters or given ones."""
    params = parts.draw(key, dtype) if params is None else params
    return parts.start(key, **parts.lay_out(jnp, params))


def by_index(num: int) -> Meeting:
    """The meeting of `num` workers that share one device."""
    turned = lambda a: a.swapaxes(0, 1)
    same = lambda a: a
    return Meeting(
        num=num,
        here=jnp.arange(num),
        to_workers=turned,
        to_homes=turned,
        own_homes=same,
        apart=same,
        copies=lambda tree: jax.tree.map(lambda a: jnp.broadcast_to(a, (num, *a.shape)), tree),
        mean=lambda tree: jax.tree.map(lambda a: a.mean(axis=0), tree),
        total=lambda tree: jax.tree.map(lambda a: a.sum(axis=0), tree),
        gather=same,
        sum_homes=same,
        own_samples=same,
        products=PLAIN,
    )


def round_info(meeting: Meeting, sums: tuple, samples: int) -> Info:
    """What a round showed: mean loss and accuracy of all its minibatches.

    sums: (loss, right answers) of each worker here, [n] each.  samples: of this round, on all devices.
    """
    loss, right = (total / samples for total in meeting.total(sums))
    return Info(loss, right, jnp.full_like(loss, samples), {})
