"""Methods of equal workers: how one is written, and how its workers meet.

Where `jtssm.protocol.stages` has pieces of a network that pass samples on, these methods give
every one of N workers a network of the same shape, which trains alone on minibatches of its own for a
round of R local steps; then the workers exchange weights. One step of such a method is one round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import AnyArray, Array, Shaped, Tree
from jtssm.nn.boundary import float_dtype
from jtssm.nn.inputs import as_input, laid_out
from jtssm.nn.network import Network
from jtssm.nn.ops import PLAIN, Products
from jtssm.protocol import device_memory, sample_checks
from jtssm.protocol.info import Info, measured
from jtssm.protocol.method import Method, given_trees
from jtssm.protocol.program import Program


class Meeting(NamedTuple):
    """How the workers on this device meet the others: by index, or by collectives on a mesh.

    n workers and their n homes live here; a home stores a share of the whole model. With a single home
    (one device only) it stores all of it.
    """

    num: int  # of all workers: N
    here: Array  # [n] numbers of the workers that live here
    # [homes here, N, ...] -> [n, homes, ...]: slice w of every home to worker w
    to_workers: Callable[[Array], Array]
    to_homes: Callable[[Array], Array]  # [n, homes, ...] -> [homes here, N, ...]: back again
    own_homes: Callable[[Array], Array]  # [homes, ...] -> [homes here, ...]
    apart: Callable[[Tree], Tree]  # a tree, marked as differing from worker to worker
    copies: Callable[[Tree], Tree]  # a tree -> the tree [n, ...], one a worker
    mean: Callable[[Tree], Tree]  # a tree [n, ...] -> its mean over all workers
    # a tree of scalars a worker, [n] -> their sum over all workers and samples
    total: Callable[[Tree], Tree]
    # inside a worker's steps: a sum over the samples here of its minibatch -> over all of them
    sum_samples: Callable[[Array], Array]
    # [b, width here] -> [b, whole width]: what all homes hold of a layer's neurons
    gather: Callable[[Array], Array]
    sum_homes: Callable[[Array], Array]  # an array -> its sum over the devices that share the homes
    # an array [all samples of a minibatch, ...] -> the rows that live here
    own_samples: Callable[[Array], Array]
    products: Products  # of samples that are split over devices


class Model(NamedTuple):
    """How the whole model lies in a state."""

    # (key, dtype) -> random parameters, one tree a layer
    draw: Callable[[Array, DTypeLike], list[Tree]]
    # (xp, parameters) -> fields of State; xp: np or jnp
    lay_out: Callable[[ModuleType, list[Tree]], dict[str, Tree]]
    start: Callable[..., Tree]  # (key, **those fields) -> State
    params: Callable[[Tree], list[Tree]]  # state of one device -> one tree a layer
    homes: int  # in how many parts it is stored; 1: not on a mesh


@dataclass(frozen=True, eq=False, kw_only=True)
class WorkerProgram(Program):
    """Functions whose first argument is the meeting of workers; a step is a round.

    `batch.shape` is (R, N, b); the stages are one piece, the network that each worker trains.
    """

    model: Model
    step: Callable[..., tuple[Tree, Info]]  # (meeting, state, x, y) -> (State, Info)
    # (meeting, state, x) -> outputs of the network
    forward: Callable[[Meeting, Tree, Tree], Array]
    estimate: Callable[[Meeting, Tree, Tree], Tree]  # (meeting, state, x) -> State
    # the fields of State that hold parameters, and what an optimizer keeps between rounds
    weight_fields: tuple[str, ...] = ("params", "opt_state")
    deals: bool = (
        False  # whether workers train parts that are dealt anew, and their optimizers start anew
    )
    trained: Network | None = None  # what each of them trains; None: the network

    @property
    def num(self) -> int:
        """Workers: N."""
        return self.round_shape[1]

    @property
    def local_steps(self) -> int:
        """Steps of a worker in a round: R."""
        return self.round_shape[0]

    @property
    def round_shape(self) -> tuple[int, int, int]:
        """(R, N, b): what a step consumes."""
        assert self.batch.shape is not None
        steps, num, size = self.batch.shape
        return steps, num, size

    @property
    def takes_forms(self) -> bool:
        return False

    @property
    def copies_state(self) -> bool:
        return self.deals

    @property
    def renews_optimizer(self) -> bool:
        return self.deals

    def check(self, x: Tree, y: Shaped, stage: str, weights: Tree = ()) -> None:
        if stage == "step":
            x, y = sample_checks.of_round(self.round_shape, x, y)
        sample_checks.samples(self.network, self.loss, x, y, values=stage != "step")
        if stage != "values":
            sample_checks.same_dtype(weights, x)

    def samples(self, x: Tree) -> Tree:
        """A round's samples [R, N, b, ...] in the shape the first layer takes."""
        return laid_out(self.network, x, self.round_shape)

    def first_state(self, key: Array, dtype: DTypeLike, params: list[Tree] | None = None) -> Tree:
        """The state before the first round, from random parameters or given ones."""
        params = self.model.draw(key, dtype) if params is None else params
        return self.model.start(key, **self.model.lay_out(jnp, params))

    def on_one_device(self) -> Method:
        def meeting() -> Meeting:  # only where a function runs: it holds an array
            return by_index(self.num)

        def step(state: Tree, x: Tree, y: AnyArray) -> tuple[Tree, Info]:
            self.check(x, y, "step", state)
            return self.step(meeting(), state, self.samples(x), jnp.asarray(y))

        def predict(state: Tree, x: Tree) -> Array:
            return self.forward(meeting(), state, as_input(self.network, x))

        def estimate(state: Tree, x: Tree) -> Tree:
            if not self.network.estimated:
                return state
            return self.estimate(meeting(), state, as_input(self.network, x))

        return Method(
            init=_starting(self),
            step=step,
            predict=predict,
            params=self.model.params,
            drain=lambda state: state,
            estimate=estimate,
            program=self,
        )


def _starting(program: WorkerProgram) -> Callable[..., Tree]:
    """`Method.init` on one device."""
    start = jax.jit(program.first_state, static_argnums=1)

    def init(key: Array, x: Tree, y: AnyArray, params: Sequence[Tree] | None = None) -> Tree:
        key = checks.key(key)
        program.check(x, y, "init")
        dtype = float_dtype(x)
        if params is not None:
            params = jax.tree.map(jnp.asarray, given_trees(program.model.draw, params, dtype))
        if not isinstance(x, jax.core.Tracer):  # of shapes alone nothing is held here
            device_memory.fits(start.eval_shape(key, dtype, params))
        return start(key, dtype, params)

    return init


def by_index(num: int) -> Meeting:
    """The meeting of `num` workers that share one device."""
    turned = lambda a: a.swapaxes(0, 1)

    def same(a: Tree) -> Tree:
        return a

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
        sum_samples=same,
        gather=same,
        sum_homes=same,
        own_samples=same,
        products=PLAIN,
    )


def round_info(meeting: Meeting, sums: tuple[Array, ...], samples: int) -> Info:
    """What a round showed: mean loss and accuracy of all its minibatches.

    sums: (loss, right answers, and of a loss with weights their sum) of each worker here, [n] each.
    samples: of this round, on all devices.
    """
    loss, right, *weight = meeting.total(sums)
    count = weight[0] if weight else jnp.full_like(loss, samples)
    over = weight[0] if weight else samples
    return measured(Info(loss / over, right / over, count, {}))
