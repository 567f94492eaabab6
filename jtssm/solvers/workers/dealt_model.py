"""The whole model of independent subnet training: dealt, pulled, trained, pushed (see `ist`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jtssm.arrays import AnyArray, Array, Shaped, Tree
from jtssm.nn.boundary import float_dtype
from jtssm.nn.network import Network, estimate_layers
from jtssm.nn.norm import Statistics
from jtssm.nn.ops import Products, entering, narrowed, widened
from jtssm.protocol.declared import MatrixProduct, Move
from jtssm.protocol.info import Info
from jtssm.protocol.workers import Meeting, round_info
from jtssm.solvers.workers.deal import Cut, Dealt
from jtssm.solvers.workers.local_steps import Local, composed
from jtssm.solvers.workers.neurons import scaled
from jtssm.solvers.workers.outer import averaged

DEAL = (("pull", "all_to_all"), ("push", "all_to_all"))


Plan = list[dict[str, Dealt | None]]  # how each parameter of each layer is stored; None: shared


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


def start(key: Array, homes: list[Tree], shared: list[Tree]) -> State:
    dtype = jax.tree.leaves((homes, shared))[0].dtype
    return State(homes, shared, jnp.zeros((), jnp.int32), key, jnp.ones((), dtype))


def forward_of_subnet(
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


class DealtModel(NamedTuple):
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
        return self._joined(state, Dealt.whole)

    def _joined(self, state: State, whole: Callable[[Dealt, AnyArray], AnyArray]) -> list[Tree]:
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
        own = self.own(meeting, float_dtype(x))
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
        frozen = self._shared(self.trainer.frozen)
        shared = averaged(meeting.mean, state.shared, self._shared(params), frozen)
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
        params = self._joined(state, Dealt.joined)
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
        params = self._joined(state, Dealt.joined)
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

        def shape(a: Shaped, kept: Dealt | None) -> tuple[int, ...]:
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
                if kept is None and self.trainer.frozen[i][name]:
                    continue  # nothing to average
                shape = shapes[name]
                ways = (("mean", "all_reduce"),) if kept is None else DEAL
                size += prod(shape) * (name not in self.net.layers[i].estimated)
                for way, collective in ways:
                    what = f"{way} of layer {i}'s {name}"
                    found.append(worker(what, shape, "subnet", times=1, collective=collective))
        steps = self.trainer.local_steps
        gradient = worker("gradient of W", (size,), "pc", times=steps, collective="all_reduce")
        return (*found, gradient, *self.trainer.loss_moves())
