"""Independent subnet training: the neurons of a network dealt out to subnets, and dealt again.

The whole model is (W_1, ..., W_L) with hidden layers of M_1, ..., M_{L-1} neurons. Repeat:

    1. deal        every hidden layer's neurons are shuffled and cut into N shares, one a subnet w:
                   I_w^1, ..., I_w^{L-1}; inputs and outputs are never cut
    2. pull        subnet w takes W_l[I_w^{l-1}, I_w^l], with the normalisation and bias of I_w^l
    3. train       R steps of an optimizer on minibatches of its own, nothing is sent
    4. push        the whole model gets every owned weight back in its place; what nobody owned keeps its
                   value; what all subnets share (the output layer's bias) becomes the subnets' mean

Source: Yuan, Wolfe, Dun, Tang, Kyrillidis, Jermaine, "Distributed Learning of Deep Neural Networks
using Independent Subnet Training", arXiv 1910.02120, PVLDB 15(8) 2022.

Departs from the paper:
  - A deal is stratified by default (`jtssm.solvers.workers.deal`): every neuron is as likely in any
    subnet, but a subnet takes the same number from each N-th of a layer: shapes are static on a mesh.
  - Widths that N does not divide are dealt as evenly as they go, with empty places.
  - Layers with biases: a bias goes with its neuron, the output layer's is averaged (as GIST does).
  - Without normalisation, a subnet's inputs to a layer are scaled by M / |I_w| (N where it divides), so
    that their sum has the whole layer's mean over deals; the paper normalises instead, and so can a user.
  - Each subnet sees its own minibatches (the released code gives all the same), and all R steps reach
    the whole model (the released code loses the last one, or the tail of an epoch).
  - Any optax optimizer; its state starts anew at each deal (as GIST does), its schedules run on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from jtssm import checks, losses
from jtssm.arrays import AnyArray, Array, Shaped, Tree
from jtssm.nn.network import Network, estimate_layers
from jtssm.nn.norm import Statistics
from jtssm.nn.ops import Products, entering, narrowed, widened
from jtssm.protocol.arguments import documented
from jtssm.protocol.declared import Declared, MatrixProduct, Move
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method
from jtssm.protocol.settings import recorded
from jtssm.protocol.workers import Meeting, Model, WorkerProgram, round_info
from jtssm.solvers.pieces import precisely
from jtssm.solvers.workers.deal import Cut, Stored, cuts_of, stored
from jtssm.solvers.workers.local_steps import Local, composed, local
from jtssm.solvers.workers.neurons import scaled

DEALS = ("stratified", "uniform")
DEAL = (("pull", "all_to_all"), ("push", "all_to_all"))


Plan = list[dict[str, Stored | None]]  # how each parameter of each layer is stored; None: shared


class State(NamedTuple):
    """What the next round needs."""

    homes: list[Tree]  # of each layer the dealt parameters, [H, places, ...] each
    shared: list[Tree]  # and those that no neuron of a hidden layer owns
    round: Array  # deals so far
    key: Array  # the same for all subnets
    pace: Array  # [] what the optimizer's updates are multiplied by: 1, less after a divergence


class Own(NamedTuple):
    """What tells a subnet's slots; None where none is empty."""

    # for the neurons before each layer and after the last: [slots] 1 or 0
    taken: list[Array | None]
    scale: list[Array | None]  # M / neurons of this subnet


@recorded()
@documented()
def ist(
    net: Network,
    *,
    subnets: int,
    optimizer: optax.GradientTransformation,
    local_steps: int,
    batch_size: int,
    loss: str | losses.Loss = "cross_entropy",
    deal: str = "stratified",
    scale: float | None = None,
    precision: str | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Method:
    """Independent subnet training: neurons dealt to subnets that train alone, and dealt again.

    A step is a round: it takes x [R, N, b, ...] and y [R, N, b], minibatch [r, w] for local step r of
    subnet w. On a mesh subnets lie along "subnet", which must divide N, a subnet's minibatch along "pc".

    Args:
      net: layers that can be dealt (dense, normalised or not, dropout), with one hidden layer at least.
      subnets: N, how many there are, at most the width of every hidden layer. Where N^2 does not divide
        a width M, a subnet computes, holds and sends N ceil(ceil(M / N) / N) places instead of M / N
        neurons.
      optimizer: an optax optimizer. Its state starts anew at each deal; schedules count all local steps.
        It sees matrices with a hidden layer's own neurons first, W as [outputs, inputs]: only what
        depends on that order (the scale of muon) is not as in `sgd`.
      local_steps: R, steps of a subnet between two deals; all of them reach the whole model.
      batch_size: samples that one gradient of one subnet sees; a round takes R N batch_size.
      deal: "stratified", or "uniform" (any share of a layer is as likely; on one device only).
      scale: of what a layer without normalisation takes from a dealt one; None: M over the number of the
        subnet's neurons, 1.0: nothing.

    Raises:
      ValueError: bad arguments, a layer that cannot be dealt or is narrower than N; from `init`, bad
        samples; from `step`, wrong shapes or dtypes.

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import solvers
      >>> from jtssm.data import synthetic
      >>> net = jtssm.mlp([4, 8, 8, 3])
      >>> ways = {"optimizer": optax.adam(1e-2), "local_steps": 2, "batch_size": 10}
      >>> method = solvers.ist(net, subnets=2, **ways)
      >>> x, y = synthetic.separable(0, 40, 4, 3)
      >>> state = method.init(jax.random.key(0), x, y)
      >>> state, info = jax.jit(method.step)(state, x.reshape(2, 2, 10, 4), y.reshape(2, 2, 10))
      >>> method.predict(state, x).shape
      (40, 3)
    """
    checks.instance("net", net, Network, "jtssm.mlp([196, 512, 10])")
    (subnets,) = checks.count(subnets=subnets)
    checks.one_of("deal", deal, DEALS)
    if scale is not None:
        (scale,) = checks.positive(scale=scale)
    homes = subnets if deal == "stratified" else 1
    cuts = cuts_of(net, subnets, homes)
    plan = stored(net, cuts)
    forward = partial(_forward, net, plan)
    trainer = local(
        net, optimizer, loss, local_steps, batch_size, precision, compute_dtype, forward
    )
    model = _Model(net, cuts, plan, trainer, scale)
    return WorkerProgram(
        name="ist",
        stages=trainer.stages,
        batch=trainer.batch(subnets),
        declared=Declared(
            moves=model.moves,
            work=lambda l, samples: model.work(),
            sums=2,
            statistics=model.statistics,
        ),
        kinds={"homes": ("subnet",), "shared": (), "round": (), "key": (), "pace": ()},
        model=Model(net.init, model.lay_out, _start, model.params, homes),
        step=precisely(precision, model.step),
        forward=precisely(precision, model.forward),
        estimate=precisely(precision, model.estimate),
        weight_fields=("homes", "shared"),
        deals=True,
    ).on_one_device()


def _start(key: Array, homes: list[Tree], shared: list[Tree]) -> State:
    dtype = jax.tree.leaves((homes, shared))[0].dtype
    return State(homes, shared, jnp.zeros((), jnp.int32), key, jnp.ones((), dtype))


def _forward(
    net: Network,
    plan: Plan,
    params: list[Tree],
    x: Array,
    own: Own,
    products: Callable[[int], Products],
    dtype: DTypeLike | None,
) -> Array:
    """Outputs of one subnet for x [b, ...], computed in `dtype`; empty places give zeros."""
    inputs, x = x, entering(x, dtype)
    for i, (layer, how, p) in enumerate(zip(net.layers, plan, params, strict=True)):
        scale = own.scale[i]
        if scaled(layer) and scale is not None:
            x = (x * scale).astype(x.dtype)  # a scale is not rounded
        p = {name: kept.turned(p[name]) if kept else p[name] for name, kept in how.items()}
        given, taken = products(i), own.taken[i + 1]
        given = given if taken is None else _among(given, taken)
        x = layer.apply(narrowed(p, layer.uncast, dtype, given), x, given)
        x = x if taken is None else x * taken[None, :].astype(x.dtype)
    return widened(x, dtype, params, inputs)


def _among(products: Products, taken: Array) -> Products:
    """The products of a layer of which only some places are taken."""
    mean = lambda a: (a * taken[None, :]).sum(axis=1, keepdims=True) / taken.sum()
    return products._replace(over_neurons=mean)


class _Model(NamedTuple):
    """The whole model, and a round of training it."""

    net: Network
    cuts: list[Cut | None]
    plan: Plan
    trainer: Local
    scale: float | None

    def lay_out(self, xp: ModuleType, params: list[Tree]) -> dict[str, list[Tree]]:
        """Parameters, one tree a layer, as they are stored; xp: numpy or jax.numpy."""
        homes = [
            {name: kept.store(xp, p[name]) for name, kept in how.items() if kept is not None}
            for how, p in zip(self.plan, params, strict=True)
        ]
        return {"homes": homes, "shared": self._shared(params)}

    def _shared(self, params: list[Tree]) -> list[Tree]:
        return [
            {name: p[name] for name, kept in how.items() if kept is None}
            for how, p in zip(self.plan, params, strict=True)
        ]

    def params(self, state: State) -> list[Tree]:
        """The whole network's parameters, one tree a layer."""
        return self._joined(state, Stored.whole)

    def _joined(self, state: State, whole: Callable[[Stored, AnyArray], AnyArray]) -> list[Tree]:
        """One tree a layer; whole: (how it is stored, a parameter by homes) -> the parameter."""
        return [
            {n: whole(kept, homes[n]) if kept else shared[n] for n, kept in how.items()}
            for how, homes, shared in zip(self.plan, state.homes, state.shared, strict=True)
        ]

    def step(self, meeting: Meeting, state: State, x: Array, y: Array) -> tuple[State, Info]:
        """Deal, pull, train, push."""
        key = jax.random.fold_in(state.key, state.round)
        deals = self.deal(jax.random.fold_in(key, 0))
        params = self.pull(meeting, state, deals)
        opt_state = self.trainer.fresh(params, state.round)
        own = self.own(meeting, x.dtype)
        train_key = jax.random.fold_in(key, 1)
        params, _, sums = self.trainer.steps(
            meeting, params, opt_state, own, train_key, x, y, state.pace
        )
        state = self.push(meeting, state, params, deals)
        return state, round_info(meeting, sums, self.trainer.samples(meeting))

    def deal(self, key: Array) -> dict[Cut, Array]:
        """Of every hidden layer: who gets which neuron; the same on every device."""
        dealt = dict.fromkeys(cut for cut in self.cuts if cut is not None)
        return {cut: cut.draw(jax.random.fold_in(key, cut.after)) for cut in dealt}

    def pull(self, meeting: Meeting, state: State, deals: dict[Cut, Array]) -> list[Tree]:
        """The subnets here: parameters [n, ...]."""
        shared = meeting.copies(state.shared)
        return [
            {n: kept.pull(meeting, homes[n], deals) if kept else rest[n] for n, kept in how.items()}
            for how, homes, rest in zip(self.plan, state.homes, shared, strict=True)
        ]

    def push(
        self, meeting: Meeting, state: State, params: list[Tree], deals: dict[Cut, Array]
    ) -> State:
        """The whole model after a round."""
        homes = [
            {n: kept.push(meeting, old[n], p[n], deals) for n, kept in how.items() if kept}
            for how, old, p in zip(self.plan, state.homes, params, strict=True)
        ]
        shared = meeting.mean(self._shared(params))
        return state._replace(homes=homes, shared=shared, round=state.round + 1)

    def own(self, meeting: Meeting, dtype: DTypeLike) -> Own:
        """What tells the slots of the subnets here, [n, ...] each."""
        pick = lambda a: jnp.asarray(a, dtype)[meeting.here]
        taken = [None if c is None or c.even else pick(c.taken) for c in self.cuts]
        return Own(taken, [self._scale(c, pick) for c in self.cuts])

    def _scale(self, cut: Cut | None, pick: Callable[[np.ndarray], Array]) -> Array | None:
        if cut is None:
            return None
        neurons = cut.taken.sum(axis=1)
        return pick(
            cut.width / neurons if self.scale is None else np.full(len(neurons), self.scale)
        )

    def forward(self, meeting: Meeting, state: State, x: Array) -> Array:
        """Outputs [b, ...] of the whole network; no device holds more of it than its homes."""
        params = self._joined(state, Stored.joined)
        own = lambda i: self._split(meeting, meeting.products, i)
        return composed(self.net)(params, x, None, own, self.trainer.compute_dtype)

    def _split(self, meeting: Meeting, products: Products, i: int) -> Products:
        """The products of a layer of the whole network, whose neurons are split over homes."""
        before, after = self.cuts[i], self.cuts[i + 1]
        plain = products.dense

        def dense(x: Array, W: Array, b: Array | None) -> Array:
            if after is None:  # split by inputs
                whole = meeting.sum_homes(plain(x, W, None))
                return whole if b is None else whole + b[None, :]
            return plain(x if before is None else meeting.gather(x), W, b)

        if after is None:
            return products._replace(dense=dense)

        def over_neurons(a: Array) -> Array:
            inside = meeting.own_homes(jnp.asarray(after.inside, a.dtype)).reshape(1, -1)
            return meeting.sum_homes((a * inside).sum(axis=1, keepdims=True)) / after.width

        return products._replace(dense=dense, over_neurons=over_neurons)

    def estimate(self, meeting: Meeting, state: State, x: Array) -> State:
        """The state with the whole network's statistics of x."""
        products = meeting.products.to_train()
        params = self._joined(state, Stored.joined)
        split = lambda i: self._split(meeting, products, i)
        found = estimate_layers(self.net.layers, params, x, split, self.trainer.compute_dtype)
        return state._replace(
            homes=self._estimated(found, state.homes), shared=self._estimated(found, state.shared)
        )

    def _estimated(self, found: list[Tree], old: list[Tree]) -> list[Tree]:
        """The old arrays, those that are estimated as found."""
        return [
            {n: p[n].reshape(a.shape) if n in layer.estimated else a for n, a in olds.items()}
            for layer, p, olds in zip(self.net.layers, found, old, strict=True)
        ]

    def _places(self) -> list[dict[str, tuple[int, ...]]]:
        """The shape of each parameter in a subnet, with its empty places; one dict a layer."""
        params = self.net.parameter_shapes()

        def shape(a: Shaped, kept: Stored | None) -> tuple[int, ...]:
            cuts = (None,) * a.ndim if kept is None else kept.cuts
            return tuple(
                n if cut is None else cut.slots for n, cut in zip(a.shape, cuts, strict=True)
            )

        return [
            {name: shape(p[name], kept) for name, kept in how.items()}
            for how, p in zip(self.plan, params, strict=True)
        ]

    def work(self) -> tuple[MatrixProduct, ...]:
        """Of one worker in a round: products forward, for dW and, but in the first layer, for dX."""
        found, steps = [], self.trainer.local_steps
        for i, shapes in enumerate(self._places()):
            if "W" in shapes:
                times = steps * (3 if i else 2)
                inner, columns = shapes["W"]
                found.append(MatrixProduct(self.trainer.batch_size, inner, columns, times))
        return tuple(found)

    def statistics(self) -> tuple[Statistics, ...]:
        """Means and variances of one subnet in a local step, over its places."""
        return tuple(
            each if cut is None else each._replace(width=cut.slots)
            for layer, cut in zip(self.net.layers, self.cuts[1:], strict=True)
            for each in layer.statistics
        )

    def moves(self, samples: int) -> tuple[Move, ...]:
        """Of one worker in a round: a pull and a push of its subnet, the mean of what all share, and the
        sum of its gradients over devices that share its minibatches."""
        worker = partial(Move, source=None, target=None)
        found, size = [], 0
        for i, (how, shapes) in enumerate(zip(self.plan, self._places(), strict=True)):
            for name, kept in how.items():
                shape = shapes[name]
                ways = (("mean", "all_reduce"),) if kept is None else DEAL
                size += prod(shape) * (name not in self.net.layers[i].estimated)
                for way, collective in ways:
                    what = f"{way} of layer {i}'s {name}"
                    found.append(worker(what, shape, "subnet", times=1, collective=collective))
        steps = self.trainer.local_steps
        gradient = worker("gradient of W", (size,), "pc", times=steps, collective="all_reduce")
        return (*found, gradient)
