"""The program of a method that trains the network as one piece: a gradient, then a descent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp

from jtssm.arrays import AnyArray, Array, Shaped, Tree
from jtssm.nn.inputs import as_input
from jtssm.protocol import sample_checks
from jtssm.protocol.exchange import Exchange, by_index
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method
from jtssm.protocol.program import Program
from jtssm.protocol.stages import starting, whole_params


@dataclass(frozen=True, eq=False, kw_only=True)
class WholeProgram(Program):
    """A step is descend(state, gradient, info): the gradient and Info on shares of the samples, the
    descent on whole arrays, which jax shards."""

    init: Callable[..., Tree]  # (exchange, key, x, y, params or None) -> State
    # (exchange, state, x, y) -> (a tree like params for the one piece there is, Info)
    gradient: Callable[..., tuple[tuple[Tree], Info]]
    # (state, those trees, Info of the whole minibatch) -> State
    descend: Callable[[Tree, tuple[Tree], Info], Tree]
    forward: Callable[..., Array]  # (exchange, 0, weights, x) -> outputs
    estimate: Callable[[Exchange, Tree, Tree], Tree]  # (exchange, state, x) -> State

    @property
    def weight_fields(self) -> tuple[str, ...]:
        return ("weights",)

    @property
    def open_ends(self) -> bool:
        return True

    @property
    def copies_state(self) -> bool:
        return False

    def check(self, x: Tree, y: Shaped, stage: str, weights: Tree = ()) -> None:
        sample_checks.of_step(self, x, y, stage, weights)

    def on_one_device(self) -> Method:
        exchange = by_index(1)

        def step(state: Tree, x: Tree, y: AnyArray) -> tuple[Tree, Info]:
            self.check(x, y, "step", state.weights)
            x = as_input(self.network, x)
            gradient, info = self.gradient(exchange, state, x, jnp.asarray(y))
            return self.descend(state, gradient, info), info

        def predict(state: Tree, x: Tree) -> Array:
            return self.forward(exchange, 0, state.weights[0], as_input(self.network, x))

        def estimate(state: Tree, x: Tree) -> Tree:
            if not self.network.estimated:
                return state
            return self.estimate(exchange, state, as_input(self.network, x))

        return Method(
            init=starting(self, partial(self.init, exchange)),
            step=step,
            predict=predict,
            params=whole_params,
            drain=lambda state: state,
            estimate=estimate,
            program=self,
        )
