"""Does pdADMM train better when its variables are renewed, in blocks of samples, with momentum?

MNIST 14 x 14, a perceptron of one hidden layer of 500, the first 10 000 training images, as many products
as 60 iterations take. In long runs the last layer's variables meet all labels while the composed network
does not; so a visit starts with the variables that a forward pass gives:

    as it is     one visit of 60 iterations to all images
    nu grows     the same, nu and u larger by 5 % after each iteration
    renewed      12 visits of 5 iterations
    momentum     the same; after a visit weights go on by half of what it changed, where that makes the
                 training loss no larger (the safeguard)
    blocks       12 passes, 5 iterations to 1 100 images after the other, the damping larger by a quarter
                 after each pass

Beside them Adam, 100 epochs of full batches as in the paper, and 12 passes in the same blocks, 5 steps to
each. rho = 300, nu = 0.03. Every line has one setting of three, pdADMM its damping, Adam its rate, the
best on the last 5 000 training images with a seed apart from the reported ones. Test images are read once
a run.

    JTSSM_DATA=FOLDER python -m benchmarks.pdadmm_training --workers 2 [--only PATTERN] [--smoke]

Five minutes on 2 cores. Finished runs are kept in --runs. Last result:
benchmarks/results/pdadmm_training.json, in docs/methods/pdadmm.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jtssm
from benchmarks import record
from benchmarks.running import Reported, Runs, arguments, chosen
from benchmarks.users_networks import SEEDS, TUNING_SEED
from jtssm import data, losses, solvers
from jtssm.arrays import Array, Tree
from jtssm.solvers import layerwise

WIDTH, TRAINED, RHO, NU = 500, 10_000, 300.0, 0.03
SETTINGS = {"pdADMM": (0.1, 1.0, 3.0), "Adam": (1e-3, 3e-3, 1e-2)}  # damping; rate


class Line(NamedTuple):
    """How all samples are gone through."""

    visits: int = 1  # passes over all samples
    iterations: int = 5  # of a visit
    block: int | None = None  # samples of a visit; None: all
    growth: float = 1.0  # of the damping, after a pass
    nu_growth: float = 1.0  # of nu, after an iteration
    momentum: float = 0.0


BLOCK = 1100
LINES = {
    "pdADMM, as it is": Line(iterations=60),
    "pdADMM, nu grows": Line(iterations=60, nu_growth=1.05),
    "pdADMM, renewed": Line(12),
    "pdADMM, momentum": Line(12, momentum=0.5),
    "pdADMM, blocks": Line(12, block=BLOCK, growth=1.25),
    "Adam, full batches": Line(100, 1),
    "Adam, blocks": Line(12, block=BLOCK),
}


def visited(method: jtssm.Method, line: Line) -> Any:
    """(weights, damping, samples) -> weights after the iterations of a visit, compiled."""

    @jax.jit
    def visit(params: Tree, damping: Array, x: Array, y: Array) -> Tree:
        state = method.init(jax.random.key(0), x, y, params)
        state = state._replace(numbers=state.numbers._replace(damping=damping))

        def iterate(_: int, state: layerwise.State) -> layerwise.State:
            state, _ = method.step(state, x, y)
            numbers = state.numbers._replace(nu=state.numbers.nu * line.nu_growth)
            u = jax.tree.map(lambda a: a * line.nu_growth, state.u)  # u = nu (q - f(z))
            return state._replace(numbers=numbers, u=u)

        return method.params(jax.lax.fori_loop(0, line.iterations, iterate, state))

    return visit


def went_on(net: jtssm.nn.Network, momentum: float) -> Any:
    """(weights before, after, samples) -> further along the same way, where the loss does not mind."""

    @jax.jit
    def further(before: Tree, after: Tree, x: Array, y: Array) -> Tree:
        loss = lambda params: losses.cross_entropy().value(net.apply(params, x), y).mean()
        there = jax.tree.map(lambda a, b: b + momentum * (b - a), before, after)
        better = loss(there) <= loss(after)
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), there, after)

    return further


def order(line: Line, num: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """(pass, samples of a visit) one after the other."""
    rng, block = np.random.default_rng(seed), line.block or num
    for i in range(line.visits):
        rows = rng.permutation(num)
        for start in range(0, num - block + 1, block):
            yield i, rows[start : start + block]


def layered(line: Line, damping: float, split: data.Split, seed: int) -> tuple[Any, Tree]:
    """pdADMM's network and weights."""
    net = jtssm.mlp([split.x.shape[1], WIDTH, 10])
    method = solvers.pdadmm(net, rho=RHO, nu=NU, damping=damping)
    size = line.block or len(split.x)
    params = method.params(method.init(jax.random.key(seed), split.x[:size], split.y[:size]))
    visit, further = visited(method, line), went_on(net, line.momentum)
    for i, rows in order(line, len(split.x), seed):
        x, y = split.x[rows], split.y[rows]
        after = visit(params, jnp.asarray(damping * line.growth**i, jnp.float32), x, y)
        params = further(params, after, x, y) if line.momentum else after
    return net, params


def adam(line: Line, rate: float, split: data.Split, seed: int) -> tuple[Any, Tree]:
    """Adam's network and weights; a constant rate for full batches, as in the paper, else a cosine."""
    net = jtssm.mlp([split.x.shape[1], WIDTH, 10])
    size = line.block or len(split.x)
    steps = line.visits * line.iterations * (len(split.x) // size)
    descent = optax.adam(optax.cosine_decay_schedule(rate, steps) if line.block else rate)
    method = solvers.sgd(net, optimizer=descent, batch_size=size)
    state = method.init(jax.random.key(seed), split.x, split.y)
    step = jax.jit(method.step, donate_argnums=0)
    for _, rows in order(line, len(split.x), seed):
        x, y = split.x[rows], split.y[rows]
        for _ in range(line.iterations):
            state, _ = step(state, x, y)
    return net, method.params(state)


def train(run: tuple, smoke: bool) -> dict[str, Any]:
    """Train once; accuracies of the composed network.

    run: (line, damping or rate, seed, whether test images are read).
    """
    name, setting, seed, read_test = run
    splits = data.load("digits" if smoke else "mnist", flat=True, **({} if smoke else {"size": 14}))
    line = LINES[name]
    if smoke:
        line = line._replace(visits=min(line.visits, 2), block=line.block and 200, iterations=2)
    split = data.Split(*(a[:TRAINED] for a in splits.train))
    net, params = (adam if name.startswith("Adam") else layered)(line, setting, split, seed)
    scores = jax.jit(net.apply)
    right = lambda split: float((scores(params, split.x).argmax(axis=1) == split.y).mean())
    seen = {"run": list(run), "valid": right(splits.valid), "train": right(split)}
    return seen | ({"test": right(splits.test)} if read_test else {})


def main() -> None:
    """Choose, train, show and write."""
    about = __doc__.splitlines()[0]
    parse = arguments(about, "a few iterations on the digits", "run/pdadmm_training.jsonl")
    parse.add_argument("--only", default="", help="regular expression: which lines")
    given = parse.parse_args()
    seeds = SEEDS
    if given.smoke:
        given.workers, given.runs, seeds = 0, None, (0,)
    lines = [name for name in LINES if re.search(given.only, name)]
    report: dict[str, Any] = {}
    with Runs(given.runs, given.workers, lambda seen: True, _shown) as runs:
        every = lambda wanted: runs.all(train, {run: (run, given.smoke) for run in wanted})
        for kind, settings in SETTINGS.items():
            its = [(name,) for name in lines if name.startswith(kind)]
            few = settings[:1] if given.smoke else settings
            found = chosen(every, its, few, seeds, TUNING_SEED, "valid", max)
            report |= {name: reported(name, each) for (name,), each in found.items()}
    if not given.smoke and not given.only:
        content = {"seeds": list(seeds), "tuning_seed": TUNING_SEED, "results": report}
        print(record.write("pdadmm_training", "benchmarks.pdadmm_training", content))


def reported(name: str, line: Reported) -> dict[str, Any]:
    """What the table says of a line, printed too."""
    found = {k: [run[k] for run in line.runs] for k in ("train", "valid", "test")}
    print(f"{name:20} {line.rate:g}  test {np.mean(found['test']):.4f}")
    return found | {"setting": line.rate, "valid_by_setting": line.by_rate}


def _shown(seen: dict) -> str:
    line, setting, seed, _ = seen["run"]
    return f"{line}, {setting:g}, seed {seed}  held-out {seen['valid']:.4f}"


if __name__ == "__main__":
    main()
