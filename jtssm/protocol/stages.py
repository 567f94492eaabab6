"""The program of a method that is written piece by piece: pieces of a network that pass samples on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jtssm import checks
from jtssm.arrays import AnyArray, Array, Shaped, Tree
from jtssm.nn.boundary import first, float_dtype
from jtssm.nn.inputs import as_input, laid_out
from jtssm.protocol import device_memory, sample_checks
from jtssm.protocol.exchange import Exchange, by_index
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method
from jtssm.protocol.program import Program

if TYPE_CHECKING:
    from jtssm.protocol.whole import WholeProgram


@dataclass(frozen=True, eq=False, kw_only=True)
class StageProgram(Program):
    """Functions whose first argument is the exchange through which pieces meet."""

    init: Callable[..., Tree]  # (exchange, key, x, y, params or None) -> State
    step: Callable[..., tuple[Tree, Info]]  # (exchange, state, x, y) -> (State, Info)
    drain: Callable[[Exchange, Tree], Tree]  # (exchange, state) -> State
    forward: Callable[..., Tree]  # (exchange, l, weights, p) -> output of piece l
    start: Callable[[int, list[Tree]], Tree]  # (l, parameters of piece l) -> weights of piece l
    # (exchange, state, x) -> State with the network's statistics estimated on x; None: it has none
    estimate: Callable[[Exchange, Tree, Tree], Tree] | None = None
    # the fields of State that hold parameters, and what optimizers keep
    weight_fields: tuple[str, ...] = ("weights",)

    def check(self, x: Tree, y: Shaped, stage: str, weights: Tree = ()) -> None:
        if stage == "step" and self.batch.workers is not None and self.batch.shape is not None:
            x, y = sample_checks.of_round(self.batch.shape, x, y)
        sample_checks.of_step(self, x, y, stage, weights)

    def samples(self, x: Tree) -> Tree:
        """A step's samples [samples, ...], or a round's [R, N, b, ...], as the first layer takes them."""
        if self.batch.workers is None or self.batch.shape is None:
            return as_input(self.network, x)
        return laid_out(self.network, x, self.batch.shape)

    def on_one_device(self) -> Method:
        exchange = by_index(self.stages.num)

        def step(state: Tree, x: Tree, y: AnyArray) -> tuple[Tree, Info]:
            self.check(x, y, "step", state.weights)
            return self.step(exchange, state, self.samples(x), jnp.asarray(y))

        def predict(state: Tree, x: Tree) -> Array:
            forward = lambda l, weights, p: self.forward(exchange, l, weights, p)
            return exchange.chain(forward, state.weights, x=as_input(self.network, x))[0]

        def estimate(state: Tree, x: Tree) -> Tree:
            if self.estimate is None or not self.network.estimated:
                return state
            return self.estimate(exchange, state, as_input(self.network, x))

        return Method(
            init=starting(self, partial(self.init, exchange)),
            step=step,
            predict=predict,
            params=whole_params,
            drain=lambda state: self.drain(exchange, state),
            estimate=estimate,
            program=self,
        )


def starting(
    program: StageProgram | WholeProgram, start: Callable[..., Tree]
) -> Callable[..., Tree]:
    """`Method.init` of a program of pieces on one device; start: (key, x, y, params) -> State."""
    start = jax.jit(start)  # eager, its many small draws compile one by one

    def init(key: Array, x: Tree, y: AnyArray, params: Sequence[Tree] | None = None) -> Tree:
        key = checks.key(key)
        program.check(x, y, "init")
        for name, given in (("x", x), ("y", y)):
            a = jax.tree.leaves(given)[0]
            if isinstance(a, jax.ShapeDtypeStruct):
                raise ValueError(
                    f"{name}: expected an array; got {a}: of shapes alone, "
                    f"jax.eval_shape(method.init, key, x, y) tells the state's"
                )
        if not program.batch.resident:  # only shapes are needed
            x, y = first(x), first(y)
        x = as_input(program.network, x)
        if params is not None:
            params = jax.tree.map(jnp.asarray, program.stages.given(params, float_dtype(x)))
        y = jnp.asarray(y)
        if not isinstance(x, jax.core.Tracer):  # of shapes alone nothing is held here
            device_memory.fits(jax.eval_shape(start, key, x, y, params))
        return start(key, x, y, params)

    return init


def whole_params(state: Tree) -> list[Tree]:
    """The parameters of all pieces of an unplaced state, one tree a layer."""
    return [layer for weights in state.weights for layer in weights.params]
