"""Ten layers grown from two by pdADMM; `benchmarks.pdadmm_training` says how and why."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

import jtssm
from benchmarks.pdadmm_ways import NU, RHO, WIDTH
from jtssm import data, solvers
from jtssm.arrays import Array, Tree
from jtssm.protocol import Method
from jtssm.sharding import cost
from jtssm.solvers import layerwise

LAYERS, DAMPING, DEEP_RHO = 10, 0.1, 30.0


class Grown(NamedTuple):
    """How a network of two layers is trained and grown."""

    added: int  # layers of a growth
    last: int  # layers that are solved again after it
    iterations: int  # after each
    shallow: int = 100  # iterations before the first
    layers: int = LAYERS
    renews: bool = True  # variables after a growth are those of a forward pass


def growths(line: Grown) -> list[tuple[int, int]]:
    """(layers that stay as they are, layers) of each growth."""
    counts = range(2 + line.added, line.layers + 1, line.added)
    return [(max(0, layers - line.last), layers) for layers in counts]


def widths(inputs: int, stay: int, layers: int) -> tuple[int, ...]:
    """Of the layers after the first `stay`."""
    return (WIDTH if stay else inputs, *[WIDTH] * (layers - stay - 1), 10)


def stages(line: Grown, nu: float, split: data.Split, seed: int) -> Iterator[list[Tree]]:
    """All weights, one tree a layer, before the first growth and after the iterations of each."""
    x, y, inputs = split.x, split.y, split.x.shape[1]
    method, run = compiled(widths(inputs, 0, 2))
    state = numbered(method.init(jax.random.key(seed), x, y), RHO, NU, DAMPING)
    state = run(state, x, y, line.shallow)
    params = list(method.params(state))
    yield params
    passed = 0
    for stay, layers in growths(line):
        for layer in params[passed:stay]:
            x = jax.nn.relu(x @ layer["W"] + layer["b"][None, :])
        passed = stay
        tail, _ = compiled(widths(inputs, stay, layers - line.added))
        if line.renews:
            state = tail.init(jax.random.key(0), x, y, params[stay:])
        method, run = compiled(widths(inputs, stay, layers))
        _, state = layerwise.grow(tail, state, method.network)
        state = run(numbered(state, DEEP_RHO, nu, DAMPING), x, y, line.iterations)
        params = [*params[:stay], *method.params(state)]
        yield params


def numbered(state: layerwise.State, rho: float, nu: float, damping: float) -> layerwise.State:
    """The state with these numbers."""
    given = {"rho": rho, "nu": nu, "damping": damping}
    like = {name: jnp.asarray(a, state.numbers.rho.dtype) for name, a in given.items()}
    return state._replace(numbers=state.numbers._replace(**like))


@functools.cache
def compiled(sizes: tuple[int, ...]) -> tuple[Method, Callable]:
    """pdADMM of these widths, and (state, samples, iterations) -> the state after them."""
    method = solvers.pdadmm(jtssm.mlp(list(sizes)))

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state: layerwise.State, x: Array, y: Array, iterations: int) -> layerwise.State:
        step = lambda _, state: method.step(state, x, y)[0]
        return jax.lax.fori_loop(0, iterations, step, state)

    return method, run


def products(line: Grown, inputs: int, samples: int) -> float:
    """Multiply-adds of a run: its iterations, and the forward passes before each growth."""
    step = lambda sizes: cost.step_flops(compiled(sizes)[0], samples=samples) / 2
    total, passed = line.shallow * step(widths(inputs, 0, 2)), 0
    for stay, layers in growths(line):
        total += line.iterations * step(widths(inputs, stay, layers))
        sizes = widths(inputs, passed, layers - line.added)
        total += samples * sum(i * o for i, o in itertools.pairwise(sizes))
        passed = stay
    return total
