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

from jtssm.arrays import AnyArray, Array, Tree
from jtssm.nn.boundary import float_dtype
from jtssm.nn.network import Network
from jtssm.protocol.declared import Move
from jtssm.protocol.info import Info
from jtssm.protocol.workers import Meeting, round_info
from jtssm.solvers.workers.deal import Cut, Dealt
from jtssm.solvers.workers.dealt_forward import Own, forward_of_whole
from jtssm.solvers.workers.local_steps import Local
from jtssm.solvers.workers.moments import moments, with_moments
from jtssm.solvers.workers.outer import averaged
from jtssm.solvers.workers.parts import Block, Plan, cuts_of

DEAL = (("pull", "all_to_all"), ("push", "all_to_all"))


class State(NamedTuple):
    """What the next round needs."""

    homes: list[Tree]  # of each layer the dealt parameters, [H, places, ...] each
    shared: list[Tree]  # and those that no neuron of a hidden layer owns
    round: Array  # deals so far
    key: Array  # the same for all subnets
    pace: Array  # [] what the optimizer's updates are multiplied by: 1, less after a divergence
    # of each moment that travels, what `homes` and `shared` are of the weights
    moment_homes: list[list[Tree]]
    moment_shared: list[list[Tree]]

    @property
    def laid(self) -> list[tuple[list[Tree], list[Tree]]]:
        """(homes, shared) of the weights, then of each moment."""
        moved = zip(self.moment_homes, self.moment_shared, strict=True)
        return [(self.homes, self.shared), *moved]


class DealtModel(NamedTuple):
    """The whole model, and a round of training it."""

    net: Network
    blocks: list[Block]
    plan: Plan
    trainer: Local
    scale: float | None
    carried: int = 0  # moments of each parameter that travel with it

    def start(self, key: Array, homes: list[Tree], shared: list[Tree]) -> State:
        """The state before the first round."""
        found: list[list[Tree]] = []
        if self.carried:
            params = self._joined(homes, shared, lambda kept, a: a)
            found = moments(self.trainer.optimizer.init(params), params)
        dealt = [self._dealt(tree, lambda kept, a: a) for tree in found]
        rest = [self._shared(tree) for tree in found]
        one = jnp.ones((), jax.tree.leaves((homes, shared))[0].dtype)
        return State(homes, shared, jnp.zeros((), jnp.int32), key, one, dealt, rest)

    def lay_out(self, xp: ModuleType, params: list[Tree]) -> dict[str, list[Tree]]:
        """Parameters, one tree a layer, as they are stored; xp: numpy or jax.numpy."""
        homes = self._dealt(params, lambda kept, a: kept.store(xp, a))
        return {"homes": homes, "shared": self._shared(params)}

    def _dealt(
        self, params: list[Tree], stored: Callable[[Dealt, AnyArray], AnyArray]
    ) -> list[Tree]:
        """What neurons own; stored: (how it is stored, a parameter) -> what stands for it."""
        return [
            {name: stored(kept, p[name]) for name, kept in how.items() if kept is not None}
            for how, p in zip(self.plan, params, strict=True)
        ]

    def _shared(self, params: list[Tree]) -> list[Tree]:
        return [
            {name: p[name] for name, kept in how.items() if kept is None}
            for how, p in zip(self.plan, params, strict=True)
        ]

    def params(self, state: State) -> list[Tree]:
        """The whole network's parameters, one tree a layer."""
        return self._joined(state.homes, state.shared, Dealt.whole)

    def _joined(
        self, homes: list[Tree], shared: list[Tree], whole: Callable[[Dealt, AnyArray], AnyArray]
    ) -> list[Tree]:
        """One tree a layer; whole: (how it is stored, a parameter by homes) -> the parameter."""
        return [
            {n: whole(kept, own[n]) if kept else rest[n] for n, kept in how.items()}
            for how, own, rest in zip(self.plan, homes, shared, strict=True)
        ]

    def step(self, meeting: Meeting, state: State, x: Array, y: Array) -> tuple[State, Info]:
        """Deal, pull, train, push."""
        key = jax.random.fold_in(state.key, state.round)
        deals = self.deal(jax.random.fold_in(key, 0))
        params, *carried = self.pull(meeting, state, deals)
        opt_state = self.trainer.fresh(params, state.round, every_count=bool(carried))
        if carried:
            opt_state = with_moments(opt_state, params, carried)
        own = self.own(meeting, float_dtype(x))
        train_key = jax.random.fold_in(key, 1)
        params, opt_state, sums = self.trainer.steps(
            meeting, params, opt_state, own, train_key, x, y, state.pace
        )
        if carried:
            carried = moments(opt_state, params)
        state = self.push(meeting, state, [params, *carried], deals)
        return state, round_info(meeting, sums, self.trainer.samples(meeting))

    def deal(self, key: Array) -> dict[Cut, Array]:
        """Of every hidden layer: who gets which neuron; the same on every device."""
        return {cut: cut.draw(jax.random.fold_in(key, cut.number)) for cut in cuts_of(self.blocks)}

    def pull(self, meeting: Meeting, state: State, deals: dict[Cut, Array]) -> list[list[Tree]]:
        """The parameters [n, ...] of the subnets here, and each of their moments that travel."""
        return [
            [
                {n: kept.pull(meeting, a[n], deals) if kept else rest[n] for n, kept in how.items()}
                for how, a, rest in zip(self.plan, homes, meeting.copies(shared), strict=True)
            ]
            for homes, shared in state.laid
        ]

    def push(
        self, meeting: Meeting, state: State, new: list[list[Tree]], deals: dict[Cut, Array]
    ) -> State:
        """The whole model after a round; new: what `pull` gave, after it."""
        frozen, done = self._shared(self.trainer.frozen), []
        for (homes, shared), trees in zip(state.laid, new, strict=True):
            pushed = [
                {n: kept.push(meeting, a[n], p[n], deals) for n, kept in how.items() if kept}
                for how, a, p in zip(self.plan, homes, trees, strict=True)
            ]
            done.append((pushed, averaged(meeting.mean, shared, self._shared(trees), frozen)))
        (homes, shared), *moved = done
        return state._replace(
            homes=homes,
            shared=shared,
            round=state.round + 1,
            moment_homes=[homes for homes, _ in moved],
            moment_shared=[shared for _, shared in moved],
        )

    def own(self, meeting: Meeting, dtype: DTypeLike) -> Own:
        """What tells the slots of the subnets here, [n, ...] each."""
        pick = lambda a: jnp.asarray(a, dtype)[meeting.here]
        cuts = cuts_of(self.blocks)
        taken = {cut.number: pick(cut.taken) for cut in cuts if not cut.even}
        return Own(taken, {cut.number: pick(self._scales(cut)) for cut in cuts})

    def _scales(self, cut: Cut) -> np.ndarray:
        neurons = cut.taken.sum(axis=1)
        return cut.width / neurons if self.scale is None else np.full(len(neurons), self.scale)

    def forward(self, meeting: Meeting, state: State, x: Array) -> Array:
        """Outputs [b, ...] of the whole network; no device holds more of it than its homes."""
        params, dtype = (
            self._joined(state.homes, state.shared, Dealt.joined),
            self.trainer.compute_dtype,
        )
        return forward_of_whole(meeting, meeting.products, self.blocks, params, x, dtype)[0]

    def estimate(self, meeting: Meeting, state: State, x: Array) -> State:
        """The state with the whole network's statistics of x."""
        products, dtype = meeting.products.to_train(), self.trainer.compute_dtype
        params = self._joined(state.homes, state.shared, Dealt.joined)
        _, found = forward_of_whole(meeting, products, self.blocks, params, x, dtype, True)
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
        pairs = zip(self.plan, self.net.parameter_shapes(), strict=True)
        return [
            {n: kept.in_subnet(p[n].shape) if kept else p[n].shape for n, kept in how.items()}
            for how, p in pairs
        ]

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
                    # each moment is a message of its own, as large as the weights'
                    times = 1 + self.carried
                    found.append(worker(what, shape, "subnet", times=times, collective=collective))
        steps = self.trainer.local_steps
        gradient = worker("gradient of W", (size,), "pc", times=steps, collective="all_reduce")
        return (*found, gradient, *self.trainer.loss_moves())
