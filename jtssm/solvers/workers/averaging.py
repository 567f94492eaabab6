"""Workers with whole networks: local SGD, which averages them, and an ensemble, which never does.

Both face the same rounds as independent subnet training and are what it must be compared with.

    local SGD   every worker takes the weights W, trains R steps on its own minibatches; W <- mean of all
                (Stich, "Local SGD converges fast and communicates little", arXiv 1805.09767)
    ensemble    every member trains R steps of its own; predictions are averaged (a control: in ResIST's
                tables, arXiv 2107.00961, members that never talk match it at 2 and 4 workers)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtssm import checks, losses
from jtssm.arrays import Array, Tree
from jtssm.nn.network import Network, estimate_layers
from jtssm.protocol.declared import Move, Run
from jtssm.protocol.method import Method
from jtssm.protocol.workers import Meeting, WorkerParts, as_method, round_info
from jtssm.solvers.pieces import precisely
from jtssm.solvers.workers.local_steps import Local, composed, local


class State(NamedTuple):
    """What the next round needs."""

    params: list[Tree]  # one tree a layer; of an ensemble [N, ...] each
    opt_state: Tree  # [N, ...]: every worker's own
    round: Array  # rounds so far
    key: Array  # of dropout
    pace: Array  # [] what the optimizer's updates are multiplied by: 1, less after a divergence


def local_sgd(
    net: Network,
    *,
    workers: int,
    optimizer: Any,
    local_steps: int,
    batch_size: int,
    loss: str | losses.Loss = "cross_entropy",
    precision: Any = None,
    compute_dtype: Any = None,
) -> Method:
    """Local SGD: N workers train the whole network alone for R steps, then take the mean of all.

    A step is a round: it takes x [R, N, b, ...] and y [R, N, b]. On a mesh workers lie along "subnet",
    a worker's minibatch along "pc"; the mean is one all-reduce of all parameters. With R = 1 and plain
    SGD it is data parallelism with minibatches of N b samples.

    Args:
      net: the network.
      workers: N, the number of whole networks.
      optimizer: an optax optimizer; its state stays with its worker and is not averaged.
      local_steps: R, steps of a worker between two means.
      batch_size: samples that one gradient of one worker sees.
      loss: "cross_entropy" (integer labels), "squared_error", or a `losses.Loss`.
      precision: of the products, a name `jax.default_matmul_precision` takes; None: jax's default.
      compute_dtype: "bfloat16": layers compute and send in it, while parameters, state, sums and losses
        keep the dtype of the samples (normalisation's statistics: float32); None: that dtype throughout.

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
    return _method("local_sgd", _Averaged(trainer, workers), precision)


def ensemble(
    net: Network,
    *,
    members: int,
    optimizer: Any,
    local_steps: int,
    batch_size: int,
    loss: str | losses.Loss = "cross_entropy",
    precision: Any = None,
    compute_dtype: Any = None,
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
      loss: "cross_entropy" (integer labels), "squared_error", or a `losses.Loss`.
      precision: of the products, a name `jax.default_matmul_precision` takes; None: jax's default.
      compute_dtype: "bfloat16": layers compute and send in it, while parameters, state, sums and losses
        keep the dtype of the samples (normalisation's statistics: float32); None: that dtype throughout.

    Raises:
      ValueError: bad arguments; from `init`, bad samples; from `step`, wrong shapes or dtypes.
    """
    (members,) = checks.count(members=members)
    trainer = local(
        net, optimizer, loss, local_steps, batch_size, precision, compute_dtype, composed(net)
    )
    return _method("ensemble", _Apart(trainer, members), precision)


def _method(name: str, crew: Any, precision: Any) -> Method:
    trainer = crew.trainer
    return as_method(
        WorkerParts(
            name=name, network=trainer.network, num=crew.num, homes=crew.num,
            fields={
                "params": crew.axes, "opt_state": ("subnet",), "round": (), "key": (), "pace": (),
            },
            draw=crew.draw, lay_out=lambda xp, params: {"params": params}, start=crew.start,
            step=precisely(precision, crew.step), forward=precisely(precision, crew.forward),
            estimate=precisely(precision, crew.estimate), params=lambda state: list(state.params),
            local_steps=trainer.local_steps, batch_size=trainer.batch_size, loss=trainer.loss,
            optimizer=trainer.optimizer, moves=crew.moves, work=lambda: (_rounds(trainer),),
            statistics=lambda: trainer.network.statistics,
        )
    )  # fmt: skip


class _Averaged(NamedTuple):
    """Rounds of local SGD."""

    trainer: Local
    num: int
    axes: tuple[str, ...] = ()  # along which the parameters are split

    def draw(self, key: Array, dtype: Any) -> list[Tree]:
        """Random parameters."""
        return self.trainer.network.init(key, dtype)

    def start(self, key: Array, params: list[Tree]) -> State:
        """The first state."""
        copies = jax.tree.map(lambda a: jnp.broadcast_to(a, (self.num, *a.shape)), params)
        return _first(params, self.trainer.fresh(copies, 0), key)

    def step(self, meeting: Meeting, state: State, x: Array, y: Array) -> tuple:
        """Copy, train, average."""
        copies = meeting.copies(state.params)
        params, opt_state, info = _trained(self.trainer, meeting, state, copies, x, y)
        return _next(state, meeting.mean(params), opt_state), info

    def forward(self, meeting: Meeting, state: State, x: Array) -> Array:
        """Outputs [b, ...] of the averaged network."""
        return self.trainer.forward(state.params, x, None, lambda i: meeting.products)

    def estimate(self, meeting: Meeting, state: State, x: Array) -> State:
        """The state with the network's statistics of x."""
        return state._replace(params=_estimated(self.trainer, meeting, state.params, x))

    def moves(self, samples: int) -> tuple[Move, ...]:
        """Of one worker in a round: the mean of all parameters, and the sum of its gradients."""
        params = jax.eval_shape(self.trainer.network.init, jax.random.key(0))
        size = sum(a.size for a in jax.tree.leaves(params))
        mean = Move("mean of W", (size,), "subnet", None, None, 1, collective="all_reduce")
        return mean, _gradient(self.trainer)


class _Apart(NamedTuple):
    """Rounds of an ensemble, whose members never meet."""

    trainer: Local
    num: int
    axes: tuple[str, ...] = ("subnet",)

    def draw(self, key: Array, dtype: Any) -> list[Tree]:
        """Random parameters [N, ...], of every member its own."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(self.num))
        return jax.vmap(lambda k: self.trainer.network.init(k, dtype))(keys)

    def start(self, key: Array, params: list[Tree]) -> State:
        """The first state."""
        return _first(params, self.trainer.fresh(params, 0), key)

    def step(self, meeting: Meeting, state: State, x: Array, y: Array) -> tuple:
        """Train."""
        params, opt_state, info = _trained(self.trainer, meeting, state, state.params, x, y)
        return _next(state, params, opt_state), info

    def forward(self, meeting: Meeting, state: State, x: Array) -> Array:
        """The members' mean: of probabilities, as their logarithm, or of outputs."""
        run = lambda params: self.trainer.forward(params, x, None, lambda i: meeting.products)
        outputs = jax.vmap(run)(state.params)
        if not self.trainer.loss.labels:
            return meeting.mean(outputs)
        tiny = jnp.finfo(outputs.dtype).tiny
        return jnp.log(jnp.maximum(meeting.mean(jax.nn.softmax(outputs)), tiny))

    def estimate(self, meeting: Meeting, state: State, x: Array) -> State:
        """The state with every member's statistics of x."""
        found = jax.vmap(lambda p: _estimated(self.trainer, meeting, p, x))(state.params)
        return state._replace(params=found)

    def moves(self, samples: int) -> tuple[Move, ...]:
        """Of one member in a round: the sum of its gradients; nothing goes to another."""
        return (_gradient(self.trainer),)


def _first(params: list[Tree], opt_state: Tree, key: Array) -> State:
    dtype = jax.tree.leaves(params)[0].dtype
    return State(params, opt_state, jnp.zeros((), jnp.int32), key, jnp.ones((), dtype))


def _next(state: State, params: list[Tree], opt_state: Tree) -> State:
    return state._replace(params=params, opt_state=opt_state, round=state.round + 1)


def _gradient(trainer: Local) -> Move:
    """The sum of a worker's gradients over devices that share its minibatches, R a round."""
    params = jax.eval_shape(trainer.network.init, jax.random.key(0))
    trained = [
        a.size
        for layer, p in zip(trainer.network.layers, params, strict=True)
        for name, a in p.items()
        if name not in layer.estimated
    ]
    size, times = sum(trained), trainer.local_steps
    return Move("gradient of W", (size,), "pc", None, None, times, collective="all_reduce")


def _rounds(trainer: Local) -> Run:
    """R local steps of a worker."""
    steps = trainer.local_steps
    return Run(trainer.batch_size, steps, steps, steps, first=False)


def _trained(trainer, meeting, state, params, x, y) -> tuple:
    """(params, opt_state, Info) of the workers here after a round."""
    key = jax.random.fold_in(state.key, state.round)
    params, opt_state, sums = trainer.steps(
        meeting, params, state.opt_state, None, key, x, y, state.pace
    )
    return params, opt_state, round_info(meeting, sums, trainer.samples(meeting))


def _estimated(trainer: Local, meeting: Meeting, params: list[Tree], x: Array) -> list[Tree]:
    products = meeting.products.to_train()
    layers, dtype = trainer.network.layers, trainer.compute_dtype
    return estimate_layers(layers, params, x, lambda i: products, dtype)
