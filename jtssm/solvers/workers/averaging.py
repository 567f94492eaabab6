"""Workers with whole networks: local SGD, which averages them, and an ensemble, which never does.

Both face the same rounds as independent subnet training and are what it must be compared with.

    local SGD   every worker takes the weights W, trains R steps on its own minibatches; W <- mean of all
                (Stich, "Local SGD converges fast and communicates little", arXiv 1805.09767);
                with an outer optimizer DiLoCo: `jtssm.solvers.workers.outer`
    ensemble    every member trains R steps of its own; predictions are averaged (a control: in ResIST's
                tables, arXiv 2107.00961, members that never talk match it at 2 and 4 workers)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jtssm import checks, losses
from jtssm.arrays import Array, Tree
from jtssm.nn.network import Network
from jtssm.protocol.arguments import documented
from jtssm.protocol.declared import Move
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method
from jtssm.protocol.piece_optimizers import of_pieces
from jtssm.protocol.settings import recorded
from jtssm.protocol.workers import Meeting, Model
from jtssm.solvers.workers.local_steps import Local, composed, local
from jtssm.solvers.workers.outer import ARGUMENT, OUTER, Outer, averaged


class State(NamedTuple):
    """What the next round needs."""

    params: list[Tree]  # one tree a layer; of an ensemble [N, ...] each
    opt_state: Tree  # [N, ...]: every worker's own
    outer_opt_state: Tree  # the outer optimizer's, once for all; () without
    round: Array  # rounds so far
    key: Array  # of dropout
    pace: Array  # [] what the optimizer's updates are multiplied by: 1, less after a divergence


@recorded()
@documented({ARGUMENT: OUTER})
def local_sgd(
    net: Network,
    *,
    workers: int,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    local_steps: int,
    batch_size: int,
    outer_optimizer: optax.GradientTransformation | optax.MultiSteps | None = None,
    loss: str | losses.Loss = "cross_entropy",
    precision: str | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Method:
    """Local SGD: N workers train the whole network alone for R steps, then take the mean of all.

    A step is a round: it takes x [R, N, b, ...] and y [R, N, b]. On a mesh workers lie along "subnet",
    a worker's minibatch along "pc"; the mean is one all-reduce of all parameters. With R = 1 and plain
    SGD it is data parallelism with minibatches of N b samples.

    With an `outer_optimizer` it is DiLoCo; one that wants a `value` is told the mean loss of the round.
    After a divergence (`fit`) the workers' steps are made smaller, and with them its gradient.

    Args:
      net: the network.
      workers: N, the number of whole networks.
      optimizer: an optax optimizer; its state stays with its worker and is not averaged. One that wants
        a `value` is told the loss of its worker's minibatch.
      local_steps: R, steps of a worker between two means.
      batch_size: samples that one gradient of one worker sees.

    Raises:
      ValueError: bad arguments; from `init`, bad samples; from `step`, wrong shapes or dtypes.

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import solvers
      >>> from jtssm.data import synthetic
      >>> net = jtssm.mlp([4, 8, 8, 3])
      >>> ways = {"optimizer": optax.sgd(0.1), "local_steps": 2, "batch_size": 10}
      >>> method = solvers.local_sgd(net, workers=2, **ways)
      >>> x, y = synthetic.separable(0, 40, 4, 3)
      >>> state = method.init(jax.random.key(0), x, y)
      >>> state, info = jax.jit(method.step)(state, x.reshape(2, 2, 10, 4), y.reshape(2, 2, 10))
      >>> method.predict(state, x).shape
      (40, 3)
    """
    (workers,) = checks.count(workers=workers)
    trainer = local(
        net, optimizer, loss, local_steps, batch_size, precision, compute_dtype, composed(net)
    )
    return _method(
        "local_sgd", _Averaged(trainer, workers, _outer(trainer, outer_optimizer)), precision
    )


@recorded()
@documented()
def ensemble(
    net: Network,
    *,
    members: int,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    local_steps: int,
    batch_size: int,
    loss: str | losses.Loss = "cross_entropy",
    precision: str | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Method:
    """N networks that train on minibatches of their own and never talk; predictions are averaged.

    Its outputs are the logarithm of the members' mean probabilities (of labels), or the mean of their
    outputs. Parameters have leaves [N, ...]; so have those given to `init`. A step takes x [R, N, b, ...]
    and y [R, N, b].

    Args:
      net: the network of each member.
      members: N, the number of networks.
      optimizer: an optax optimizer; each member has a state of its own.
      local_steps: R, which only says how many steps of a member are one step of the protocol.
      batch_size: samples that one gradient of one member sees.

    Raises:
      ValueError: bad arguments; from `init`, bad samples; from `step`, wrong shapes or dtypes.
    """
    (members,) = checks.count(members=members)
    trainer = local(
        net, optimizer, loss, local_steps, batch_size, precision, compute_dtype, composed(net)
    )
    return _method("ensemble", _Apart(trainer, members), precision)


def _outer(
    trainer: Local, optimizer: optax.GradientTransformation | optax.MultiSteps | None
) -> Outer | None:
    """The outer optimizer of a whole network, checked."""
    if optimizer is None:
        return None
    net = trainer.network
    (found,) = of_pieces(optimizer, net, (0, len(net.layers)), ARGUMENT)
    return Outer(found, net.layers, trainer.frozen)


def _method(name: str, crew: _Averaged | _Apart, precision: str | None) -> Method:
    trainer = crew.trainer
    return trainer.program(
        name,
        crew.num,
        {"params": crew.axes, "opt_state": ("subnet",), "outer_opt_state": ()},
        Model(
            draw=crew.draw,
            lay_out=lambda xp, params: {"params": params},
            start=crew.start,
            params=lambda state: list(state.params),
            homes=crew.num,
        ),
        crew.moves,
        precision,
        step=crew.step,
        forward=crew.forward,
        estimate=crew.estimate,
        weight_fields=("params", "opt_state", "outer_opt_state"),
    ).on_one_device()


class _Averaged(NamedTuple):
    """Rounds of local SGD."""

    trainer: Local
    num: int
    outer: Outer | None  # None: the mean
    axes: tuple[str, ...] = ()  # along which the parameters are split

    def draw(self, key: Array, dtype: DTypeLike) -> list[Tree]:
        """Random parameters."""
        return self.trainer.network.init(key, dtype)

    def start(self, key: Array, params: list[Tree]) -> State:
        """The first state."""
        copies = jax.tree.map(lambda a: jnp.broadcast_to(a, (self.num, *a.shape)), params)
        state = _first(params, self.trainer.fresh(copies, 0), key)
        return (
            state
            if self.outer is None
            else state._replace(outer_opt_state=self.outer.start(params))
        )

    def step(self, meeting: Meeting, state: State, x: Tree, y: Array) -> tuple[State, Info]:
        """Copy, train, meet."""
        copies = meeting.copies(state.params)
        params, opt_state, info = self.trainer.round(meeting, state, copies, x, y)
        mean = averaged(meeting.mean, state.params, params, self.trainer.frozen)
        if self.outer is None:
            return _next(state, mean, opt_state), info
        counts = True if self.trainer.loss.weight is None else info.samples > 0
        met, outer = self.outer.step(state.params, mean, state.outer_opt_state, counts, info.loss)
        return _next(state._replace(outer_opt_state=outer), met, opt_state), info

    def forward(self, meeting: Meeting, state: State, x: Tree) -> Array:
        """Outputs [b, ...] of the averaged network."""
        return self.trainer.predict(meeting, state.params, x)

    def estimate(self, meeting: Meeting, state: State, x: Tree) -> State:
        """The state with the network's statistics of x."""
        return state._replace(params=self.trainer.estimated(meeting, state.params, x))

    def moves(self, samples: int) -> tuple[Move, ...]:
        """Of one worker in a round: the mean of all parameters, and the sum of its gradients."""
        trainer = self.trainer
        return trainer.mean_move(), trainer.gradient_move(), *trainer.loss_moves()


class _Apart(NamedTuple):
    """Rounds of an ensemble, whose members never meet."""

    trainer: Local
    num: int
    axes: tuple[str, ...] = ("subnet",)

    def draw(self, key: Array, dtype: DTypeLike) -> list[Tree]:
        """Random parameters [N, ...], of every member its own."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(self.num))
        return jax.vmap(lambda k: self.trainer.network.init(k, dtype))(keys)

    def start(self, key: Array, params: list[Tree]) -> State:
        """The first state."""
        return _first(params, self.trainer.fresh(params, 0), key)

    def step(self, meeting: Meeting, state: State, x: Tree, y: Array) -> tuple[State, Info]:
        """Train."""
        params, opt_state, info = self.trainer.round(meeting, state, state.params, x, y)
        return _next(state, params, opt_state), info

    def forward(self, meeting: Meeting, state: State, x: Tree) -> Array:
        """The members' mean: of probabilities, as their logarithm, or of outputs."""
        outputs = jax.vmap(lambda p: self.trainer.predict(meeting, p, x))(state.params)
        if not self.trainer.loss.labels:
            return meeting.mean(outputs)
        tiny = jnp.finfo(outputs.dtype).tiny
        return jnp.log(jnp.maximum(meeting.mean(jax.nn.softmax(outputs)), tiny))

    def estimate(self, meeting: Meeting, state: State, x: Tree) -> State:
        """The state with every member's statistics of x."""
        found = jax.vmap(lambda p: self.trainer.estimated(meeting, p, x))(state.params)
        return state._replace(params=found)

    def moves(self, samples: int) -> tuple[Move, ...]:
        """Of one member in a round: the sum of its gradients; nothing goes to another."""
        return self.trainer.gradient_move(), *self.trainer.loss_moves()


def _first(params: list[Tree], opt_state: Tree, key: Array) -> State:
    dtype = jax.tree.leaves(params)[0].dtype
    return State(params, opt_state, (), jnp.zeros((), jnp.int32), key, jnp.ones((), dtype))


def _next(state: State, params: list[Tree], opt_state: Tree) -> State:
    return state._replace(params=params, opt_state=opt_state, round=state.round + 1)
