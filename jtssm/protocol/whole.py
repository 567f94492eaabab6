"""The program of a method that trains the network as one piece: a gradient, then a descent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp

from jtssm.arrays import Array, Tree
from jtssm.nn.network import as_input
from jtssm.protocol import sample_checks
from jtssm.protocol.exchange import Exchange, by_index
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method, given_trees
from jtssm.protocol.program import Program
from jtssm.protocol.stages import starting, whole_params


@dataclass(frozen=True, eq=False, kw_only=True)
class WholeProgram(Program):
    """A step is descend(state, gradient): the first on shares of the samples, the second on whole arrays,
    which jax shards."""

    init: Callable[..., Any]  # (exchange, key, x, y, params or None) -> State
    # (exchange, state, x, y) -> (a tree like params for the one piece there is, Info)
    gradient: Callable[..., tuple[tuple[Tree], Info]]
    descend: Callable[[Any, tuple[Tree]], Any]  # (state, those trees) -> State
    forward: Callable[..., Array]  # (exchange, 0, weights, x) -> outputs
    estimate: Callable[[Exchange, Any, Array], Any]  # (exchange, state, x) -> State

    @property
    def weight_fields(self) -> tuple[str, ...]:
        return ("weights",)

    @property
    def open_ends(self) -> bool:
        return True

    @property
    def copies_state(self) -> bool:
        return False

    def check(self, x: Any, y: Any, stage: str, weights: Tree = ()) -> None:
        sample_checks.of_step(self, x, y, stage, weights)

    def given(self, params: Any, dtype: Any) -> tuple:
        """A warm start, as one piece; see `given_trees`."""
        return self.stages.by_piece(given_trees(self.network.init, params, dtype))

    def on_one_device(self) -> Method:
        exchange = by_index(1)

        def step(state: Any, x: Any, y: Any) -> tuple:
            self.check(x, y, "step", state.weights)
            x = as_input(self.network, x)
            gradient, info = self.gradient(exchange, state, x, jnp.asarray(y))
            return self.descend(state, gradient), info

        def predict(state: Any, x: Any) -> Array:
            return self.forward(exchange, 0, state.weights[0], as_input(self.network, x))

        def estimate(state: Any, x: Any) -> Any:
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
