"""Does pdADMM train better with renewed variables, sweeps, acceleration, blocks, or grown layer by layer?

MNIST 14 x 14, a perceptron of one hidden layer of 500, the first 10 000 training images, about as many
products as 60 iterations take (those of every line are counted). In long runs the last layer's variables
meet all labels while the composed network does not; so a visit starts with the variables that a forward
pass gives:

    as it is        one visit of 60 iterations to all images
    nu grows        the same, nu and u larger by 5 % after each iteration
    adaptive rho    the same, rho doubled or halved where one of the two residuals is ten times the other
                    (u is the multiplier itself, not that over rho: it stays)
    2 sweeps        one visit, 42 iterations; in each p once, then W, b and z of every layer twice
    z 3 times       one visit of 60 iterations, z three times in each, which takes no products
    renewed         12 visits of 5 iterations
    momentum        the same; after a visit weights go on by half of what it changed, where that makes the
                    training loss no larger (the safeguard)
    Anderson        11 visits of 5 iterations, or 23 short ones of 2; after a visit the weights are mixed
                    with those of up to 4 visits before (Anderson acceleration), under the same safeguard
    blocks          12 passes, 5 iterations to 1 100 images after the other, the damping larger by a
                    quarter after each pass; duals kept: every image keeps its p, z, q and u from pass to
                    pass instead of starting from a forward pass

Beside them Adam, 100 epochs of full batches as in the paper, and 12 passes in the same blocks, 5 steps to
each: .69 and .41 of those products. rho = 300, nu = 0.03.

Ten layers, nine of 500: 100 iterations with one hidden layer as above (damping 0.1), then rho = 30:

    deep stage      grown by eight identity layers, 20 iterations of all
    grown           eight times by one; after each 12 iterations of the last three layers alone, from a
                    forward pass: 196 iterations in all

and Adam with full batches and as many products, 43 epochs.

Every line has one setting of three, pdADMM its damping, with ten layers nu after growth, Adam its rate,
the best on the last 5 000 training images with a seed apart from the reported ones. Test images are read
once a run.

    JTSSM_DATA=FOLDER python -m benchmarks.pdadmm_training --workers 2 [--only PATTERN] [--smoke]

About 35 minutes on one core. Finished runs are kept in --runs. Last result:
benchmarks/results/pdadmm_training.json, in docs/methods/pdadmm.md.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import pdadmm_grown, pdadmm_ways, record
from benchmarks.pdadmm_grown import LAYERS, Grown, stages
from benchmarks.pdadmm_ways import Line, layered, network, order
from benchmarks.running import Reported, Runs, arguments, chosen
from benchmarks.users_networks import SEEDS, TUNING_SEED
from jtssm import data, solvers
from jtssm.arrays import Tree
from jtssm.sharding import cost

TRAINED, LAYERED, ADAM = 10_000, "pdADMM", "Adam"
DEEP = "ten layers, "  # how names of the second table begin
SETTINGS = {
    LAYERED: (0.1, 1.0, 3.0),  # damping
    ADAM: (1e-3, 3e-3, 1e-2),  # rate
    DEEP + LAYERED: (0.03, 0.3, 1.0),  # nu after growth
    DEEP + ADAM: (1e-3, 3e-3, 1e-2),
}
BLOCK = 1100
LINES: dict[str, Line | Grown] = {
    "pdADMM, as it is": Line(iterations=60),
    "pdADMM, nu grows": Line(iterations=60, nu_growth=1.05),
    "pdADMM, adaptive rho": Line(iterations=60, balances=True),
    "pdADMM, 2 sweeps": Line(iterations=42, sweeps=(2, 1)),
    "pdADMM, z 3 times": Line(iterations=60, sweeps=(1, 3)),
    "pdADMM, renewed": Line(12),
    "pdADMM, momentum": Line(12, momentum=0.5),
    "pdADMM, Anderson": Line(11, memory=4),
    "pdADMM, Anderson, short visits": Line(23, 2, memory=4),
    "pdADMM, blocks": Line(12, block=BLOCK, growth=1.25),
    "pdADMM, blocks, duals kept": Line(12, block=BLOCK, growth=1.25, keeps=True),
    "Adam, full batches": Line(100, 1),
    "Adam, blocks": Line(12, block=BLOCK),
    "ten layers, pdADMM, deep stage": Grown(8, LAYERS, 20, renews=False),
    "ten layers, pdADMM, grown, last layers re-solved": Grown(1, 3, 12),
    "ten layers, Adam, full batches": Line(43, 1, hidden=LAYERS - 1),
}


def adam(line: Line, rate: float, split: data.Split, seed: int) -> Tree:
    """Adam's weights; a constant rate for full batches, as in the paper, else a cosine."""
    size = line.block or len(split.x)
    steps = line.visits * line.iterations * (len(split.x) // size)
    descent = optax.adam(optax.cosine_decay_schedule(rate, steps) if line.block else rate)
    net = network(split.x.shape[1], line.hidden)
    method = solvers.sgd(net, optimizer=descent, batch_size=size)
    state = method.init(jax.random.key(seed), split.x, split.y)
    step = jax.jit(method.step, donate_argnums=0)
    for _, rows in order(line, len(split.x), seed):
        x, y = split.x[rows], split.y[rows]
        for _ in range(line.iterations):
            state, _ = step(state, x, y)
    return method.params(state)


def train(run: tuple, smoke: bool) -> dict[str, Any]:
    """Train once; accuracies of the composed network, of grown ones also on held-out images on the way.

    run: (line, setting, seed, whether test images are read).
    """
    name, setting, seed, read_test = run
    splits = data.load("digits" if smoke else "mnist", flat=True, **({} if smoke else {"size": 14}))
    line = small(LINES[name]) if smoke else LINES[name]
    split = data.Split(*(a[:TRAINED] for a in splits.train))

    def right(params: Tree, split: data.Split) -> float:
        scores = jax.jit(network(split.x.shape[1], len(params) - 1).apply)
        return float((scores(params, split.x).argmax(axis=1) == split.y).mean())

    if isinstance(line, Grown):
        passed = list(stages(line, setting, split, seed))
    else:
        passed = [(adam if ADAM in name else layered)(line, setting, split, seed)]
    *_, params = passed
    seen = {"run": list(run), "valid": right(params, splits.valid), "train": right(params, split)}
    if isinstance(line, Grown):
        seen["valid_by_growth"] = [right(each, splits.valid) for each in passed]
    return seen | ({"test": right(params, splits.test)} if read_test else {})


def small(line: Line | Grown) -> Line | Grown:
    """What a smoke run makes of it."""
    if isinstance(line, Grown):
        return line._replace(shallow=2, iterations=1, layers=4, added=min(2, line.added))
    block = line.block and 200
    return line._replace(visits=min(line.visits, 2), block=block, iterations=2)


def products(name: str) -> float:
    """Multiply-adds of a run, times those of 60 iterations of pdADMM with one hidden layer."""
    line, inputs = LINES[name], 14 * 14
    whole = pdadmm_ways.products(LINES["pdADMM, as it is"], inputs, TRAINED)
    if isinstance(line, Grown):
        return pdadmm_grown.products(line, inputs, TRAINED) / whole
    if ADAM not in name:
        return pdadmm_ways.products(line, inputs, TRAINED) / whole
    size, descent = line.block or TRAINED, optax.adam(1.0)
    method = solvers.sgd(network(inputs, line.hidden), optimizer=descent, batch_size=size)
    steps = line.visits * line.iterations * (TRAINED // size)
    return steps * cost.step_flops(method) / 2 / whole


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
    shown = [k for k in ("train", "valid", "valid_by_growth", "test") if k in line.runs[0]]
    found: dict[str, Any] = {k: [run[k] for run in line.runs] for k in shown}
    print(f"{name:50} {line.rate:g}  test {np.mean(found['test']):.4f}")
    found |= {"products": products(name)}
    return found | {"setting": line.rate, "valid_by_setting": line.by_rate}


def _shown(seen: dict) -> str:
    line, setting, seed, _ = seen["run"]
    return f"{line}, {setting:g}, seed {seed}  held-out {seen['valid']:.4f}"


if __name__ == "__main__":
    main()
