"""Ways to train by pdADMM with one hidden layer; `benchmarks.pdadmm_training` says which and why."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import jtssm
from jtssm import data, losses, solvers
from jtssm.arrays import Array, Tree
from jtssm.protocol import Method
from jtssm.sharding import cost
from jtssm.solvers import layerwise
from jtssm.solvers.layerwise import activations
from jtssm.solvers.pieces import Weights

WIDTH, RHO, NU = 500, 300.0, 0.03
RESIDUALS_APART, LEAST_RHO = 10.0, 8.0  # Boyd et al., section 3.4.1; times nu: L falls above 4
RIDGE = 1e-6  # of Anderson's least squares, of its mean eigenvalue


class Line(NamedTuple):
    """How all samples are gone through."""

    visits: int = 1  # passes over all samples
    iterations: int = 5  # of a visit
    block: int | None = None  # samples of a visit; None: all
    growth: float = 1.0  # of the damping, after a pass
    nu_growth: float = 1.0  # of nu, after an iteration
    momentum: float = 0.0
    sweeps: tuple[int, int] = (1, 1)  # of W, b and z in an iteration; of z in each of those
    memory: int = 0  # of Anderson acceleration, in visits
    balances: bool = False  # rho by the residuals
    keeps: bool = False  # each sample's p, z, q and u, from visit to visit
    hidden: int = 1


def order(line: Line, num: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """(pass, samples of a visit) one after the other."""
    rng, block = np.random.default_rng(seed), line.block or num
    for i in range(line.visits):
        rows = rng.permutation(num)
        for start in range(0, num - block + 1, block):
            yield i, rows[start : start + block]


def network(inputs: int, hidden: int = 1) -> jtssm.nn.Network:
    """The perceptron."""
    return jtssm.mlp([inputs, *[WIDTH] * hidden, 10])


def layered(line: Line, damping: float, split: data.Split, seed: int) -> Tree:
    """pdADMM's weights."""
    net = network(split.x.shape[1])
    method = solvers.pdadmm(net, rho=RHO, nu=NU, damping=damping)
    size = len(split.x) if line.keeps else line.block or len(split.x)
    state = method.init(jax.random.key(seed), split.x[:size], split.y[:size])
    params, kept = method.params(state), held(state) if line.keeps else None
    visit, further = visited(method, line), went_on(net, line)
    for i, rows in order(line, len(split.x), seed):
        x, y = split.x[rows], split.y[rows]
        mine = jax.tree.map(lambda a, rows=rows: a[rows], kept)
        now = jnp.asarray(damping * line.growth**i, jnp.float32)
        after, mine = visit(params, now, x, y, mine)
        kept = jax.tree.map(lambda a, b, rows=rows: a.at[rows].set(b), kept, mine)
        params = further(params, after, x, y) if further else after
    return params


def visited(method: Method, line: Line) -> Callable:
    """(weights, damping, samples, what they keep) -> (weights, what they keep) after a visit."""

    @jax.jit
    def visit(params: Tree, damping: Array, x: Array, y: Array, kept: Tree) -> tuple[Tree, Tree]:
        state = method.init(jax.random.key(0), x, y, params)
        state = state._replace(numbers=state.numbers._replace(damping=damping))
        if line.keeps:
            state = taken_up(state, kept, x)

        def iterate(_: int, state: layerwise.State) -> layerwise.State:
            if line.sweeps == (1, 1):
                state, info = method.step(state, x, y)
            else:
                state = swept(method, line.sweeps, state, x, y)
            numbers = state.numbers._replace(nu=state.numbers.nu * line.nu_growth)
            if line.balances:
                numbers = balanced(numbers, info.shown)
            u = jax.tree.map(lambda a: a * line.nu_growth, state.u)  # u = nu (q - f(z))
            return state._replace(numbers=numbers, u=u)

        state = jax.lax.fori_loop(0, line.iterations, iterate, state)
        return method.params(state), held(state) if line.keeps else None

    return visit


def held(state: layerwise.State) -> tuple[Tree, ...]:
    """What samples keep from visit to visit; leaves [samples, ...]."""
    return state.p, state.z, state.q, state.u


def taken_up(state: layerwise.State, kept: tuple[Tree, ...], x: Array) -> layerwise.State:
    """The state with what its samples kept; r is that of the weights of now."""
    p, z, q, u = kept
    layers = [weights.params[0] for weights in state.weights]
    r = tuple(
        before @ layer["W"] + layer["b"][None, :] - after
        for before, layer, after in zip((x, *p[1:]), layers, z, strict=True)
    )
    return state._replace(p=p, z=z, r=r, q=q, u=u)


def swept(
    method: Method, sweeps: tuple[int, int], state: layerwise.State, x: Array, y: Array
) -> layerwise.State:
    """An iteration in which W, b and z of each layer are renewed so often, z alone so often in each."""
    rho, nu, decay, damping, _ = state.numbers
    p, z, r = [x, *state.p[1:]], list(state.z), list(state.r)
    q, u, layers = list(state.q), list(state.u), [dict(w.params[0]) for w in state.weights]
    for l, layer in enumerate(layers):
        if l:
            p[l], r[l], _ = layerwise.update_p(
                p[l], r[l], layer["W"], q[l - 1], u[l - 1], rho=rho, nu=nu
            )
    renew = renewed_z(method, y, nu)
    for l, layer in enumerate(layers):
        for _ in range(sweeps[0]):
            layer["W"], r[l], _ = layerwise.minimise_W(
                layer["W"], r[l], p[l], nu=nu, damping=damping, weight_decay=decay
            )
            layer["b"], r[l] = layerwise.update_b(layer["b"], r[l])
            m = z[l] + r[l]
            for _ in range(sweeps[1]):
                z[l] = renew(l, z[l], m, q[l])
            r[l] = m - z[l]
    for l in range(len(layers) - 1):
        q[l] = layerwise.update_q(p[l + 1], u[l], z[l], rho=rho, nu=nu)
        u[l] = layerwise.update_u(u[l], p[l + 1], q[l], rho=rho)
    weights = tuple(
        Weights([new], w.opt_state) for new, w in zip(layers, state.weights, strict=True)
    )
    return state._replace(
        weights=weights, p=((), *p[1:]), z=tuple(z), r=tuple(r), q=tuple(q), u=tuple(u)
    )


def renewed_z(method: Method, y: Array, nu: Array) -> Callable:
    """(l, z, m, q) -> z of layer l after its step."""
    last = len(method.network.layers) - 1

    def renew(l: int, z: Array, m: Array, q: Array) -> Array:
        if l == last:
            return layerwise.update_z_last(z, m, y, nu=nu, loss=method.loss)
        activation = activations.find(l, method.network.layers[l])
        return layerwise.update_z(z, m, q, nu=nu, activation=activation)

    return renew


def balanced(numbers: layerwise.Numbers, shown: dict[str, Array]) -> layerwise.Numbers:
    """rho doubled or halved where one residual is ten times the other.

    u is the multiplier itself: Boyd's u is u / rho, and as that is rescaled with rho, u stays.
    """
    primal, dual = shown["primal_residual"], shown["dual_residual"]
    rho, least = numbers.rho, LEAST_RHO * numbers.nu
    less = jnp.where(dual > RESIDUALS_APART * primal, jnp.maximum(rho / 2, least), rho)
    return numbers._replace(rho=jnp.where(primal > RESIDUALS_APART * dual, 2 * rho, less))


def went_on(net: jtssm.nn.Network, line: Line) -> Callable | None:
    """(weights before, after, samples) -> further, where the loss is no larger; None: never."""
    loss = lambda params, x, y: losses.cross_entropy().value(net.apply(params, x), y).mean()

    @jax.jit
    def safe(there: Tree, after: Tree, x: Array, y: Array) -> Tree:
        better = loss(there, x, y) <= loss(after, x, y)
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), there, after)

    way = Anderson(line.memory) if line.memory else momentum(line.momentum)
    if not line.memory and not line.momentum:
        return None
    return lambda before, after, x, y: safe(way(before, after), after, x, y)


def momentum(share: float) -> Callable[[Tree, Tree], Tree]:
    """(weights before, after) -> further along the same way."""
    return lambda before, after: jax.tree.map(lambda a, b: b + share * (b - a), before, after)


class Anderson:
    """Anderson acceleration of a visit g: w -> g(w), which starts from its weights alone.

    memory: differences of visits that it looks back on.
    """

    def __init__(self, memory: int):
        self.memory, self.seen = memory, []

    def __call__(self, before: Tree, after: Tree) -> Tree:
        start, _ = ravel_pytree(before)
        end, unravel = ravel_pytree(after)
        self.seen = [*self.seen[-self.memory :], (end - start, end)]
        if len(self.seen) == 1:
            return after
        return unravel(mixed(*map(jnp.stack, zip(*self.seen, strict=True))))


@jax.jit
def mixed(moves: Array, ends: Array) -> Array:
    """The ends of visits [k, n], mixed so that their moves g(w) - w, mixed alike, are least."""
    of_moves, of_ends = jnp.diff(moves, axis=0), jnp.diff(ends, axis=0)
    gram = of_moves @ of_moves.T
    ridge = RIDGE * jnp.trace(gram) / len(gram) * jnp.eye(len(gram), dtype=gram.dtype)
    shares = jnp.linalg.solve(gram + ridge, of_moves @ moves[-1])
    return ends[-1] - shares @ of_ends


def products(line: Line, inputs: int, samples: int) -> float:
    """Multiply-adds of a run of pdADMM.

    A sweep more of W multiplies by p twice (p^T p and its Cholesky factor stay) and solves once. A visit
    starts with a forward pass, or with r; a safeguard needs two.
    """
    net, size = network(inputs, line.hidden), line.block or samples
    sides = [(i[0], o[0]) for i, o in itertools.pairwise(net.shapes)]
    forward = sum(size * i * o for i, o in sides)
    once = sum(2 * size * i * o + i * i * o for i, o in sides)
    step = cost.step_flops(solvers.pdadmm(net), samples=size) / 2 + (line.sweeps[0] - 1) * once
    passes = 3 if line.momentum or line.memory else 1
    return line.visits * (samples // size) * (line.iterations * step + passes * forward)
