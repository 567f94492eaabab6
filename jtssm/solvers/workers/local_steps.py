"""Rounds of local steps: what every method of equal workers shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import DTypeLike

from jtssm import checks, losses
from jtssm.arrays import Array, Tree
from jtssm.losses import Loss
from jtssm.nn.boundary import float_dtype
from jtssm.nn.network import Network, estimate_layers, keep_estimated, run_layers
from jtssm.nn.ops import Products
from jtssm.protocol.declared import LOSS, Declared, Move, Run
from jtssm.protocol.info import Info
from jtssm.protocol.piece_optimizers import PieceOptimizer, check_state, of_pieces, wants_loss
from jtssm.protocol.program import Batch, Stages
from jtssm.protocol.workers import Meeting, Model, WorkerProgram, round_info
from jtssm.solvers.pieces import paced, precisely, training
from jtssm.solvers.weighing import kept, weigh
from jtssm.solvers.workers.outer import frozen, sent

# states of optax that count steps for a schedule: they run on where the rest starts anew
SCHEDULES = (
    "ScaleByScheduleState",
    "WrappedScheduleState",
    "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
)

Trained = tuple[Tree, Tree]  # params, opt_state
Made = TypeVar("Made", bound=tuple)
Sums = tuple[Array, ...]  # over samples: loss, right answers, of a loss with weights theirs


class Local(NamedTuple):
    """What a worker trains: a network by its forward pass, an optimizer and a loss."""

    network: Network
    optimizer: PieceOptimizer
    loss: Loss
    local_steps: int  # R
    batch_size: int  # b
    # (params, x, own, products of a layer's index) -> outputs; own: what is this worker's alone
    forward: Callable[[Tree, Tree, Tree, Callable[[int], Products]], Array]
    compute_dtype: np.dtype | None  # what its layers compute in; None: the dtype of the samples

    def steps(
        self,
        meeting: Meeting,
        params: Tree,
        opt_state: Tree,
        own: Tree,
        key: Array,
        x: Tree,
        y: Array,
        pace: Array,
    ) -> tuple[Tree, Tree, Sums]:
        """R steps of every worker here, updates times `pace`, with nothing sent to another.

        params, opt_state and own have leaves [n, ...]; x [R, n, b, ...], y [R, n, b, ...].
        Returns the new params and opt_state and the workers' sums of (loss, right answers), [n] each.
        """
        ids = meeting.own_samples(jnp.arange(self.batch_size))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, meeting.here)

        def products(draw: Array | None, i: int) -> Products:
            return training(meeting.products, draw, i, ids)

        def of_worker(
            params: Tree, opt_state: Tree, own: Tree, key: Array, x: Tree, y: Array
        ) -> tuple[Trained, Sums]:
            draws = jax.random.split(key, self.local_steps) if self.network.random else None

            def step(
                carry: Trained, batch: tuple[Tree, Array, Array | None]
            ) -> tuple[Trained, Sums]:
                (params, opt_state), (xb, yb, draw) = carry, batch
                at = lambda i: products(draw, i)
                return self._step(meeting, params, opt_state, own, xb, yb, at, pace)

            return lax.scan(step, (params, opt_state), (x, y, draws))

        opt_state = meeting.apart(opt_state)
        run = _of_workers(of_worker, len(keys))
        (params, opt_state), sums = run(params, opt_state, own, keys, x, y)
        return params, opt_state, jax.tree.map(lambda a: a.sum(axis=1), sums)

    @property
    def stages(self) -> Stages:
        """The network of a worker, as one piece."""
        whole = (0, len(self.network.layers))
        return Stages(self.network, whole, (self.optimizer,), self.loss, self.compute_dtype)

    def batch(self, num: int) -> Batch:
        """What a round of so many workers takes."""
        shape = self.local_steps, num, self.batch_size
        return Batch(self.batch_size, shape, (None, "subnet", "pc"))

    def program(
        self,
        name: str,
        num: int,
        kinds: Mapping[str, tuple[str, ...]],
        model: Model,
        moves: Callable[[int], tuple[Move, ...]],
        precision: str | None = None,
        *,
        step: Callable[..., tuple[Tree, Info]],
        forward: Callable[[Meeting, Tree, Tree], Array],
        estimate: Callable[[Meeting, Tree, Tree], Tree],
        weight_fields: tuple[str, ...] = WorkerProgram.weight_fields,
    ) -> WorkerProgram:
        """A method in which each of `num` workers trains the whole network.

        Args:
          kinds: mesh axes of the first dimensions of the fields of State beside round, key and pace.
          moves: what one worker sends in a round, in numbers.
          step, forward, estimate, weight_fields: as in `WorkerProgram`.
        """
        steps, scalars = self.local_steps, dict.fromkeys(("round", "key", "pace"), ())
        run = Run(self.batch_size, steps, steps, steps, first=False)
        statistics = lambda: self.network.statistics
        sums, weighings = 2 if self.loss.weight is None else 3, lambda samples: steps
        declared = Declared(
            moves, lambda l, samples: (run,), sums=sums, weighings=weighings, statistics=statistics
        )
        return WorkerProgram(
            name=name,
            stages=self.stages,
            batch=self.batch(num),
            declared=declared,
            kinds={**kinds, **scalars},
            model=model,
            step=precisely(precision, step),
            forward=precisely(precision, forward),
            estimate=precisely(precision, estimate),
            weight_fields=weight_fields,
        )

    def round(
        self, meeting: Meeting, state: Tree, params: Tree, x: Tree, y: Array
    ) -> tuple[Tree, Tree, Info]:
        """(params, opt_state, Info) of the workers here after a round from params [n, ...].

        state: with the fields opt_state, round, key and pace.
        """
        key = jax.random.fold_in(state.key, state.round)
        params, opt_state, sums = self.steps(
            meeting, params, state.opt_state, None, key, x, y, state.pace
        )
        return params, opt_state, round_info(meeting, sums, self.samples(meeting))

    def predict(self, meeting: Meeting, params: list[Tree], x: Tree) -> Array:
        """Outputs [b, ...] of the whole network for x [b, ...]."""
        return self.forward(params, x, None, lambda i: meeting.products)

    def estimated(self, meeting: Meeting, params: list[Tree], x: Tree) -> list[Tree]:
        """The parameters of the whole network with its statistics of x."""
        products = meeting.products.to_train()
        return estimate_layers(
            self.network.layers, params, x, lambda i: products, self.compute_dtype
        )

    @property
    def frozen(self) -> list[Tree]:
        """One tree a layer: of each parameter, whether the optimizer never moves it."""
        return frozen(self.optimizer, self.network.parameter_shapes())

    def mean_move(self) -> Move:
        """The mean of all workers' parameters, once a round; of those that are not frozen."""
        size = sent(self.optimizer, self.network.parameter_shapes())
        return Move("mean of W", (size,), "subnet", None, None, 1, collective="all_reduce")

    def gradient_move(self) -> Move:
        """The sum of a worker's gradients over devices that share its minibatches, R a round."""
        pairs = zip(self.network.layers, self.network.parameter_shapes(), strict=True)
        trained = [tree for layer, p in pairs for n, tree in p.items() if n not in layer.estimated]
        return Move(
            "gradient of W",
            (sum(a.size for a in jax.tree.leaves(trained)),),
            "pc",
            None,
            None,
            self.local_steps,
            collective="all_reduce",
        )

    def loss_moves(self) -> tuple[Move, ...]:
        """The sum of a worker's loss over those devices, where its optimizer must be told."""
        times = self.local_steps if wants_loss(self.optimizer) else 0
        move = Move(LOSS, (1,), "pc", None, None, times, collective="all_reduce")
        return (move,) if times else ()

    def samples(self, meeting: Meeting) -> int:
        """That a round of all workers takes."""
        return self.local_steps * meeting.num * self.batch_size

    def _step(
        self,
        meeting: Meeting,
        params: Tree,
        opt_state: Tree,
        own: Tree,
        x: Tree,
        y: Array,
        products: Callable[[int], Products],
        pace: Array,
    ) -> tuple[Trained, Sums]:
        """One minibatch of one worker."""
        weighing = weigh(self.loss, y, self.batch_size, meeting.sum_samples, float_dtype(x))

        def mean_loss(params: Tree) -> tuple[Array, Sums]:
            outputs = self.forward(params, x, own, products)
            scaled, sums = weighing.scaled(outputs)
            return scaled / self.batch_size, kept(self.loss, sums)

        (loss, sums), gradient = jax.value_and_grad(mean_loss, has_aux=True)(params)
        told = {"value": meeting.sum_samples(loss)} if wants_loss(self.optimizer) else {}
        updates, after = self.optimizer.update(gradient, opt_state, params, **told)
        moved = optax.apply_updates(params, paced(updates, pace))
        new = keep_estimated(self.network.layers, moved, params), after
        if weighing.counts is True:
            return new, sums
        # under vmap over workers a `cond` would be a select, too
        pick = lambda a, old: jnp.where(weighing.counts, a, old)
        return jax.tree.map(pick, new, (params, opt_state)), sums

    def fresh(self, params: Tree, rounds: int | Array, *, every_count: bool = False) -> Tree:
        """Optimizer states [n, ...] for params [n, ...], with schedules after so many rounds.

        every_count: whether all that counts steps, for whatever, has counted those.
        """
        one = lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype)
        check_state(self.optimizer, jax.tree.map(one, params))
        opt_state = jax.vmap(self.optimizer.init)(params)
        return _resumed(opt_state, rounds * self.local_steps, every_count)


def _of_workers(of_worker: Callable[..., Made], num: int) -> Callable[..., Made]:
    """The round of all workers here: leaves [n, ...], of minibatches [R, n, ...].

    One alone is not batched: XLA for CPUs turns the gradients of batched products about in memory, which
    took a third more of a step (perceptron 1 024 wide).
    """
    axes = (0, 0, 0, 0, 1, 1)
    if num > 1:
        return jax.vmap(of_worker, in_axes=axes)

    def of_one(*given: Tree) -> Made:
        alone = lambda tree, d: jax.tree.map(lambda a: a[(slice(None),) * d + (0,)], tree)
        found = of_worker(*map(alone, given, axes))
        return jax.tree.map(lambda a: a[None], found)

    return of_one


def _resumed(tree: Tree, count: int | Array, every: bool) -> Tree:
    """An optimizer state whose schedules, or whatever else counts, have counted so many steps."""
    has = lambda node: every and "count" in getattr(node, "_fields", ())
    counts = lambda node: type(node).__name__ in SCHEDULES or has(node)
    inside = lambda node: node is not tree and counts(node)
    tree = jax.tree.map(
        lambda n: _resumed(n, count, every) if inside(n) else n, tree, is_leaf=inside
    )
    return tree._replace(count=jnp.full_like(tree.count, count)) if counts(tree) else tree


def local(
    net: Network,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    loss: str | losses.Loss,
    local_steps: int,
    batch_size: int,
    precision: str | None = None,
    compute_dtype: DTypeLike | None = None,
    forward: Callable[..., Array] | None = None,
) -> Local:
    """The arguments that all methods of workers share, checked.

    forward: (params, x, own, products, compute_dtype) -> outputs; None: of the whole network.

    Raises:
      ValueError: bad arguments.
    """
    checks.instance("net", net, Network, "jtssm.mlp([196, 512, 10])")
    local_steps, batch_size = checks.count(local_steps=local_steps, batch_size=batch_size)
    checks.precision(precision)
    (optimizer,) = of_pieces(optimizer, net, (0, len(net.layers)))
    dtype, passed = checks.compute_dtype(compute_dtype), forward or composed(net)
    run = lambda params, x, own, products: passed(params, x, own, products, dtype)
    return Local(net, optimizer, losses.find(loss), local_steps, batch_size, run, dtype)


def composed(net: Network) -> Callable[..., Array]:
    """The forward pass of a network that is nobody's part."""

    def forward(
        params: Tree,
        x: Tree,
        _: Tree,
        products: Callable[[int], Products],
        compute_dtype: DTypeLike | None,
    ) -> Array:
        return run_layers(net.layers, params, x, products, compute_dtype)

    return forward
