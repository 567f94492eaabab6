"""Pieces need nothing of each other but what the exchange carries: each may be a program of its own.

And a gradient is taken apart from the step that it makes: several may be meant into one.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import solvers
from jtssm.data import synthetic
from jtssm.protocol.exchange import ByIndex, by_index

NET = jtssm.mlp([4, 16, 12, 3])
X, Y = synthetic.separable(0, 48, 4, 3, np.float64)
SHARED = {"optimizer": optax.adam(1e-2), "batch_size": 24}
METHODS = {
    "gsadmm, 2 sweeps": solvers.gsadmm(
        NET, subnets=3, schedule=solvers.Streaming(sweeps=2), **SHARED
    ),
    "gsam, stored": solvers.gsam(NET, subnets=3, schedule="stored", **SHARED),
    "pdadmm": solvers.pdadmm(NET),
}


class Apart(ByIndex):
    """Compiles the work of each piece alone; its arrays come in and go out by the exchange."""

    def each(self, fn, *carried, kinds, batched=False):
        pieces = [jax.jit(partial(fn, l)) for l in range(self.num)]
        results = [run(*(trees[l] for trees in carried)) for l, run in enumerate(pieces)]
        return tuple(tuple(result[k] for result in results) for k in range(len(kinds)))


@pytest.mark.parametrize("name", METHODS)
def test_each_piece_compiled_alone_gives_the_numbers_of_the_whole_step(name):
    method = METHODS[name]
    program, num = method.program, method.program.stages.num
    rows = slice(None) if method.resident else slice(0, 24)
    state = other = method.init(jax.random.key(0), X, Y)
    step = jax.jit(method.step)
    for _ in range(3):
        state, info = step(state, X[rows], Y[rows])
        other, seen = program.step(Apart(num), other, jnp.asarray(X[rows]), jnp.asarray(Y[rows]))
    np.testing.assert_allclose(seen.loss, info.loss, rtol=1e-12)
    for a, b in zip(
        *map(jax.tree.leaves, (method.params(state), method.params(other))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_the_mean_of_two_microbatches_gradients_makes_the_step_of_both():
    method = solvers.sgd(NET, **SHARED)
    program, state = method.program, method.init(jax.random.key(0), X, Y)
    exchange = by_index(1)
    x, y = X[:24].reshape(2, 12, 4), Y[:24].reshape(2, 12)
    (one, seen), (two, _) = (program.gradient(exchange, state, x[i], y[i]) for i in range(2))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, one, two)
    whole, _ = method.step(state, X[:24], Y[:24])
    found = program.descend(state, mean, seen)  # of which adam takes no notice
    for a, b in zip(*map(jax.tree.leaves, (whole.weights, found.weights)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
