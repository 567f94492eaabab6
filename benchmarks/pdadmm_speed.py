"""What does an iteration of pdADMM cost, against its own matrix products and against a literal one?

10 000 made-up samples, 196 inputs, ten hidden layers of 500, ten outputs, one process. Timed in turns:
iterations with the state donated, several in a dispatch (gradient steps, exact line search or the
paper's doubling; damped steps); the products of each alone, same shapes and as many; and a literal
iteration, which tries step lengths one after the other and multiplies again wherever the paper's text
does (same iterates: compared here). Products are counted from the traced step.

    python -m benchmarks.pdadmm_speed [--smoke]
    python -m benchmarks.pdadmm_speed --samples 55000 --depth 19 --width 2400 --no-literal \\
        --precisions highest tensorfloat32 bfloat16     # on a GPU: the paper's largest

About 3 minutes on 2 cores. Last result: benchmarks/results/pdadmm_speed.json, in the README.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jtssm
from benchmarks import record
from jtssm import losses, solvers
from jtssm.solvers import layerwise

NUMBERS = {"rho": 1.0, "nu": 0.1}
T0 = 0.01  # the paper's doubling and the literal iteration start here
KINDS: dict[str, dict[str, Any]] = {
    "gradient": {"steps": "gradient"},
    "gradient, t0": {"steps": "gradient", "t0": T0},
    "damped": {},
}


def main() -> None:
    """Time, count, print, write the JSON."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parse.add_argument
    add("--smoke", action="store_true", help="seconds, no result file")
    add("--samples", type=int, default=10_000)
    add("--width", type=int, default=500)
    add("--depth", type=int, default=10, help="hidden layers")
    add("--iterations", type=int, default=3, help="in one dispatch")
    add("--repeats", type=int, default=7)
    add("--precisions", nargs="+", default=[None], help="of the products; default: jax's")
    add("--literal", action=argparse.BooleanOptionalAction, default=True)
    given = parse.parse_args()
    if given.smoke:
        given.samples, given.width, given.depth, given.repeats = 40, 16, 2, 1
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(given.samples, 196)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 10, given.samples), jnp.int32)
    net = jtssm.mlp([196, *[given.width] * given.depth, 10])
    found = {str(p): measure(net, x, y, p, given) for p in given.precisions}
    if not given.smoke:
        content = {"arguments": {k: v for k, v in vars(given).items() if k != "smoke"}, **found}
        print(record.write("pdadmm_speed", "benchmarks.pdadmm_speed", content))


def measure(net: Any, x: Any, y: Any, precision: Any, given: argparse.Namespace) -> dict:
    """Seconds an iteration, and how they compare."""
    runs, counts = {}, {}
    for name, options in KINDS.items():
        method = solvers.pdadmm(net, **NUMBERS, **options, precision=precision)
        shapes = products(method, x, y)
        counts[name] = sum(2 * a * b * c for a, b, c in shapes)
        runs[name] = repeated(method, x, y, given.iterations)
        runs[f"{name}: products"] = alone(shapes, precision, given.iterations)
    if given.literal:
        method = solvers.pdadmm(net, **NUMBERS, **KINDS["gradient, t0"], precision=precision)
        literal, counts["literal"] = literally(method, x, y)
    seconds = record.alternating(runs, given.repeats)
    if given.literal:  # slow: a few of one iteration each
        few = record.alternating({"literal": literal}, max(given.repeats // 3, 1))["literal"]
        seconds["literal"] = [s * given.iterations for s in few]
    report: dict[str, Any] = {}
    for name in counts:
        line: dict[str, Any] = record.spread([s / given.iterations for s in seconds[name]])
        line["product_flops"] = counts[name]
        if f"{name}: products" in seconds:
            own = float(np.median(seconds[f"{name}: products"])) / given.iterations
            line |= {"to_products": line["median"] / own, "product_rate": counts[name] / own}
            line["share_of_product_rate"] = own / line["median"]
        report[name] = line
        print(name, report[name], flush=True)
    if given.literal:
        fast = report["gradient, t0"]
        report["literal"]["time_to_ours"] = report["literal"]["median"] / fast["median"]
        report["literal"]["products_to_ours"] = counts["literal"] / counts["gradient, t0"]
        print({k: v for k, v in report["literal"].items() if k.endswith("ours")}, flush=True)
    return report


def repeated(method: Any, x: Any, y: Any, iterations: int) -> Callable:
    """Several iterations in a dispatch; the state goes in donated and is handed on."""
    many = jax.jit(
        lambda s, x, y: lax.scan(lambda s, _: method.step(s, x, y), s, length=iterations),
        donate_argnums=0,
    )
    held = [method.init(jax.random.key(0), x, y)]

    def run():
        held[0], infos = many(held[0], x, y)
        return infos

    return run


def products(method: Any, x: Any, y: Any) -> list[tuple[int, int, int]]:
    """(rows, contracted, columns) of every product over samples in the traced step."""
    state = jax.eval_shape(method.init, jax.random.key(0), x, y)
    found: list[tuple[int, int, int]] = []

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                ((left,), _), _ = eqn.params["dimension_numbers"]
                out, contracted = eqn.outvars[0].aval.shape, eqn.invars[0].aval.shape[left]
                if len(x) in (*out, contracted):
                    found.append((out[0], contracted, out[1]))
            for value in eqn.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    walk(inner)

    walk(jax.make_jaxpr(method.step)(state, x, y).jaxpr)
    return found


def alone(shapes: list[tuple[int, int, int]], precision: Any, iterations: int) -> Callable:
    """The products alone, as often; none can be left out, since each one's result is carried."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    sides = [(draw(a, b), draw(b, c)) for a, b, c in shapes]

    def once(scale, _):
        with jax.default_matmul_precision(precision):
            tops = [((left * scale) @ right)[0, 0] for left, right in sides]
        return 1 + 1e-30 * sum(tops), None

    # scaling the smaller side costs little, but keeps the product inside the loop
    sides = [(b.T, a.T) if a.size > b.size else (a, b) for a, b in sides]
    many = jax.jit(lambda: lax.scan(once, jnp.ones(()), length=iterations)[0])
    return many


def literally(method: Any, x: Any, y: Any) -> tuple[Callable, float]:
    """The paper's iteration as its text reads, and the FLOPs of the products that XLA leaves of it."""
    rho, nu = (jnp.float32(NUMBERS[name]) for name in ("rho", "nu"))
    residual = lambda p, W, b, z: p @ W + b[None, :] - z

    def backtrack(at, phi, g):
        trial, now = lambda t: (t, at - g / t), phi(at)
        fails = lambda c: (
            phi(c[1]) > (now + jnp.sum(g * (c[1] - at)) + c[0] / 2 * jnp.sum((c[1] - at) ** 2))
        )
        t, moved = lax.while_loop(fails, lambda c: trial(2 * c[0]), trial(jnp.float32(T0)))
        return moved, t

    def iteration(v):
        W, b, p, z, q, u = (list(a) for a in v)
        lengths = []
        for l in range(len(W)):
            fit = lambda p_, W_, l=l: nu / 2 * jnp.sum(residual(p_, W_, b[l], z[l]) ** 2)
            if l:
                gap = lambda p_, l=l: p_ - q[l - 1]
                phi = lambda p_, l=l, gap=gap, fit=fit: (
                    fit(p_, W[l]) + jnp.sum(u[l - 1] * gap(p_)) + rho / 2 * jnp.sum(gap(p_) ** 2)
                )
                g = nu * residual(p[l], W[l], b[l], z[l]) @ W[l].T + u[l - 1] + rho * gap(p[l])
                p[l], tau = backtrack(p[l], phi, g)
                lengths.append(tau)
            g = nu * p[l].T @ residual(p[l], W[l], b[l], z[l])
            W[l], theta = backtrack(W[l], lambda W_, l=l, fit=fit: fit(p[l], W_), g)
            lengths.append(theta)
            b[l] = b[l] - residual(p[l], W[l], b[l], z[l]).mean(axis=0)
            m = p[l] @ W[l] + b[l][None, :]
            last = l == len(W) - 1
            z[l] = (
                layerwise.update_z_last(z[l], m, y, nu=nu, loss=losses.cross_entropy())
                if last
                else layerwise.update_z(z[l], m, q[l], nu=nu)
            )
        for l in range(len(q)):
            q[l] = layerwise.update_q(p[l + 1], u[l], z[l], rho=rho, nu=nu)
            u[l] = layerwise.update_u(u[l], p[l + 1], q[l], rho=rho)
        return (W, b, p, z, q, u), jnp.stack(lengths)

    state = method.init(jax.random.key(0), x, y)
    params = [piece.params[0] for piece in state.weights]
    start = (
        [a["W"] for a in params],
        [a["b"] for a in params],
        [x, *state.p[1:]],
        list(state.z),
        list(state.q[:-1]),
        list(state.u[:-1]),
    )
    once = jax.jit(iteration)
    one, lengths = once(start)
    ours, _ = jax.jit(method.step)(state, x, y)
    for a, b in zip(one[3], ours.z, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.abs(b).max()))
    trials = [float(t) for t in 1 + np.round(np.log2(np.asarray(lengths) / T0))]
    flops, k = 0.0, 0
    for l, W in enumerate(start[0]):
        product = 2.0 * len(x) * W.shape[0] * W.shape[1]
        for _ in range(2 if l else 1):  # the residual, the gradient, and phi in every trial
            flops += product * (2 + trials[k])
            k += 1
        flops += product  # of b and z
    return lambda: once(start), flops


if __name__ == "__main__":
    main()
