"""What rho, sweeps and duals buy where gradients are nearly fresh: gsADMM and gsAM at equal W-steps.

A perceptron of 5 x 256, MNIST 14 x 14, the first 11 000 training images, batch 110, NAdam, 1 000 steps
of W (a tenth of them warm-up, then a cosine to zero), n = 2. Every line has the same budget: its
peak rate is chosen out of the same three on the held-out last 5 000 training images with a seed apart
from the reported ones; rho stands in the line. Then three seeds, whose test images are read once.
"products": of a run's multiply-adds, times end to end (the cost model counts them). "p carried on":
before every iteration of the stored schedule p moves on by half of its last change, which is what a
prediction of p comes to.

    JTSSM_DATA=FOLDER python -m benchmarks.tssm_duals --workers 2 [--smoke]

Ten minutes on 2 cores. Last result: benchmarks/results/tssm_duals.json, in docs/methods/tssm.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jtssm
from benchmarks import record
from benchmarks.running import Runs, arguments, chosen
from jtssm import data, losses, solvers
from jtssm.protocol import Method
from jtssm.sharding import cost

BATCH, IMAGES, STEPS = 110, 11_000, 1_000
RATES, SEEDS, TUNING_SEED = [1e-3, 2e-3, 4e-3], [0, 1, 2], 100
SUBNETS, ENDS = (2,), "NAdam end to end"


class Line(NamedTuple):
    """How a method is made, and by how much of its last change p moves on between its steps."""

    method: str
    options: Mapping[str, Any]
    carried: float = 0.0


def lines() -> dict[str, Line]:
    """All lines of the table, by name."""
    swept = lambda k: {"schedule": solvers.Streaming(sweeps=k)}
    stored = lambda steps: {"schedule": solvers.Stored(weight_steps=steps)}
    rhos, found = (0.1, 1.0, 10.0), {ENDS: Line("sgd", {})}
    found["streaming, microbatches (default)"] = Line("gsadmm", {})
    found["streaming, whole minibatches"] = Line("gsadmm", {"microbatches": 1})
    for sweeps, penalties in ((2, rhos), (4, (1.0,))):
        for rho in penalties:
            found[f"{sweeps} sweeps, rho = {rho:g}"] = Line("gsadmm", {**swept(sweeps), "rho": rho})
        found[f"{sweeps} sweeps, no dual (gsAM)"] = Line("gsam", swept(sweeps))
    for title, steps in {"an epoch of": None, "10": 10}.items():
        for rho in rhos:
            options = {**stored(steps), "rho": rho}
            found[f"stored, {title} W-steps, rho = {rho:g}"] = Line("gsadmm", options)
        found[f"stored, {title} W-steps, no dual (gsAM)"] = Line("gsam", stored(steps))
    carried = Line("gsadmm", {**stored(10), "rho": 1.0}, carried=0.5)
    return found | {"stored, 10 W-steps, rho = 1, p carried on": carried}


def weight_steps(line: Line) -> int | None:
    """Steps of W in an iteration of the stored schedule; None: an epoch of them, or streaming."""
    schedule = line.options.get("schedule")
    return schedule.weight_steps if isinstance(schedule, solvers.Stored) else None


def made(line: Line, net: jtssm.nn.Network, n: int, rate: float, steps: int) -> Method:
    """The line's method for so many steps of W."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 10), steps)
    cut = {} if line.method == "sgd" else {"subnets": n}
    ways = {"optimizer": optax.nadam(schedule), "batch_size": BATCH}
    return solvers.METHODS[line.method](net, **ways, **cut, **line.options)


def trained(method: Method, line: Line, train: data.Split, steps: int, key: Any) -> Any:
    """Parameters after so many steps of W."""
    a_step = weight_steps(line) or len(train.x) // BATCH  # of W, in a step or epoch of `fit`
    if not line.carried:
        ways = {"key": key, "progress": False, "evaluate_every": steps}
        return jtssm.fit(method, train, epochs=steps // a_step, **ways).params
    return method.params(_carried(method, key, train, steps // a_step, line.carried))


def _carried(method: Method, key: Any, train: data.Split, steps: int, share: float) -> Any:
    """The state after so many steps of a stored schedule whose p moves on before each but the first."""
    step, state = jax.jit(method.step), method.init(key, *train)
    inputs = lambda state: [held.p for held in state.held]
    ahead = inputs(state)
    for _ in range(steps):
        moved = [held._replace(p=p) for held, p in zip(state.held, ahead, strict=True)]
        before = inputs(state)
        state, _ = step(state._replace(held=type(state.held)(moved)), *train)
        ahead = jax.tree.map(lambda a, b: a + share * (a - b), inputs(state), before)
    return state


def train(run: tuple, smoke: bool) -> dict[str, Any]:
    """Train once; accuracies of the composed network."""
    name, n, rate, seed, read_test = run
    line = lines()[name]
    splits = data.load("digits", flat=True) if smoke else data.load("mnist", size=14, flat=True)
    images, steps, (width, depth) = (550, 10, (16, 3)) if smoke else (IMAGES, STEPS, (256, 5))
    few = data.Split(*(a[:images] for a in splits.train))
    net = jtssm.mlp([few.x.shape[1], *[width] * depth, 10])
    params = trained(made(line, net, n, rate, steps), line, few, steps, jax.random.key(seed))
    right = losses.cross_entropy().correct
    accuracy = lambda split: float(right(jax.jit(net.apply)(params, split.x), split.y).mean())
    found = {"run": list(run), "valid_accuracy": accuracy(splits.valid)}
    return found | ({"test_accuracy": accuracy(splits.test)} if read_test else {})


def products(name: str, n: int) -> float:
    """Multiply-adds of a run, times those of end-to-end training with as many steps of W."""
    net, line = jtssm.mlp([196, *[256] * 5, 10]), lines()[name]
    resident = isinstance(line.options.get("schedule"), solvers.Stored)
    a_step = (weight_steps(line) or IMAGES // BATCH) if resident else 1
    samples = IMAGES if resident else None
    own = cost.step_flops(made(line, net, n, 1e-3, STEPS), samples=samples) / a_step
    return own / cost.step_flops(made(lines()[ENDS], net, 1, 1e-3, STEPS))


def main() -> None:
    """Choose rates, read the test images, show and write."""
    parser = arguments(
        __doc__.splitlines()[0], "tiny networks on the embedded digits", "run/tssm_duals.jsonl"
    )
    given, rates, seeds = parser.parse_args(), RATES, SEEDS
    every = [(ENDS, 1), *((name, n) for n in SUBNETS for name in lines() if name != ENDS)]
    if given.smoke:
        given.runs, given.workers, rates, seeds = None, 0, RATES[:1], SEEDS[:1]
    with Runs(given.runs, given.workers, lambda seen: True, _shown) as runs:
        run = lambda wanted: runs.all(train, {each: (each, given.smoke) for each in wanted})
        found = chosen(run, every, rates, seeds, TUNING_SEED, "valid_accuracy", max)
    report = {}
    for (name, n), each in found.items():
        test = [one["test_accuracy"] for one in each.runs]
        print(f"n = {n}  {name:45} rate {each.rate:g}  test {np.mean(test):.4f}")
        report[f"{name}, n = {n}"] = {
            "line": name,
            "subnets": n,
            "rate": each.rate,
            "valid_by_rate": each.by_rate,
            "test_accuracy": test,
            "products": products(name, n),
        }
    if not given.smoke:
        content = {"seeds": seeds, "tuning_seed": TUNING_SEED, "results": report}
        print(record.write("tssm_duals", "benchmarks.tssm_duals", content))


def _shown(seen: dict) -> str:
    name, n, rate, seed, _ = seen["run"]
    return f"{name}, n = {n}, rate {rate:g}, seed {seed}  held-out {seen['valid_accuracy']:.4f}"


if __name__ == "__main__":
    main()
