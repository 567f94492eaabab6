"""pdADMM-G: perceptrons on features that were mixed along a graph, with rounded exchange.

The graph is `jtssm.data.synthetic.block_graph(seed)`, a stochastic block model of Cora's size and degree
(2 708 nodes, 7 classes, 500 words). Features [X, A X, ..., A^4 X] of single nodes, each to mean 0 and
variance 1, go into perceptrons of 2 and of 9 hidden layers of 100. 20 nodes of each class train, 500
choose, 1 000 test. pdADMM runs 200 iterations, of 9 layers the first 100 on a network of one, which is
grown; full-batch Adam runs 200 epochs. Each line's setting (rho and nu; Adam's rate) is the best of six
on the graph of a seed of its own, then three graphs, whose test nodes are read once. Bytes are what
crosses all boundaries in an iteration, of those of float32.

    python -m benchmarks.pdadmm_graph [--smoke]

About ten minutes on 2 cores. Last result: benchmarks/results/pdadmm_graph.json, in
docs/methods/pdadmm.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import prod
from typing import Any

import jax
import numpy as np
import optax

import jtssm
from benchmarks import record
from benchmarks.running import chosen
from benchmarks.users_networks import SEEDS, TUNING_SEED
from jtssm import data, solvers
from jtssm.data.graphs import hops
from jtssm.data.synthetic import block_graph
from jtssm.solvers import layerwise

HOPS, WIDTH, STEPS, LABELLED = 4, 100, 200, 20
DEPTHS = (2, 9)
SETTINGS = (  # rho, nu, damping; None: along the gradient, as in the paper
    (1e-4, 1e-4, None),
    (1e-2, 1e-2, None),
    (0.1, 0.1, None),
    (1.0, 1.0, None),
    (10.0, 1.0, None),
    (10.0, 1.0, 3.0),
)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
GRIDS: dict[str, dict[str, Any]] = {
    "pdADMM, float32": {},
    "pdADMM, 16 bits": {"grid": 16},
    "pdADMM, 8 bits": {"grid": 8},
    "pdADMM, 8 bits, p alone": {"grid": 8, "float_q": True},
}
FEATURES = ("words alone, Adam", "Adam")


def nodes(seed: int, most: int, smoke: bool) -> data.Splits:
    """Training, held-out and test nodes of a graph."""
    x, y, edges = block_graph(seed, **({"nodes": 700, "words": 60} if smoke else {}))
    x = hops(x, edges, most)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    order = np.random.default_rng(seed).permutation(len(x))
    labelled = np.concatenate([order[y[order] == k][:LABELLED] for k in range(7)])
    rest = np.setdiff1d(order, labelled)
    rest = np.random.default_rng(seed).permutation(rest)
    few, many = (100, 200) if smoke else (500, 1000)
    pick = lambda at: data.Split(x[at], y[at])
    return data.Splits(pick(labelled), pick(rest[:few]), pick(rest[few : few + many]))


def trained(line: str, depth: int, setting: Any, train: data.Split, key: Any, steps: int) -> Any:
    """A line's result after so many iterations."""
    net = lambda depth: jtssm.mlp([train.x.shape[1], *[WIDTH] * depth, 7])
    fit = lambda method, steps, state=None: jtssm.fit(
        method, train, epochs=steps, key=key, state=state, progress=False, evaluate_every=steps
    )
    if line not in GRIDS:
        descent = optax.adam(setting)
        return fit(solvers.sgd(net(depth), optimizer=descent, batch_size=len(train.x)), steps)
    rho, nu, damping = setting
    ways = {"steps": "damped" if damping else "gradient", "damping": damping, **GRIDS[line]}
    shallow = depth <= 2
    method = solvers.pdadmm(net(depth if shallow else 1), rho=rho, nu=nu, **ways)
    if shallow:
        return fit(method, steps)
    method, state = layerwise.grow(method, fit(method, steps // 2).state, net(depth))
    return fit(method, steps - steps // 2, state)


def train(run: tuple, smoke: bool) -> dict[str, Any]:
    """Train once; accuracies after the last iteration."""
    line, depth, setting, seed, read_test = run
    splits = nodes(seed, 0 if line.startswith("words") else HOPS, smoke)
    key, steps = jax.random.key(seed), 6 if smoke else STEPS
    result = trained(line, depth, setting, splits.train, key, steps)
    found = {"run": list(run), "diverged": result.divergence is not None}
    for name in ("valid", "test")[: 1 + read_test]:
        split = getattr(splits, name)
        found[name] = jtssm.evaluate(result.method, result.state, split)["accuracy"]
    return found


def sent(line: str, depth: int) -> float:
    """Bytes across all boundaries in an iteration, of those of float32."""
    moved = lambda options: sum(
        prod(m.shape) * (m.itemsize or 4)
        for m in solvers.pdadmm(jtssm.mlp([8, *[WIDTH] * depth, 7]), **options).moves(140)
        if m.axis == "subnet"
    )
    return moved(GRIDS[line]) / moved({})


def reported(every: Callable, lines: list[tuple], settings: Any, seeds: Any) -> dict[str, Any]:
    """Every line with the setting that was best on held-out nodes."""
    found = chosen(every, lines, settings, seeds, TUNING_SEED, "valid", max)
    report = {}
    for (line, depth), each in found.items():
        tests = [one["test"] for one in each.runs]
        name = f"{line}, {depth} hidden"
        print(f"{name:40} {each.rate}  test {np.mean(tests):.4f} of {np.round(tests, 4)}")
        report[name] = {
            "line": line,
            "hidden": depth,
            "setting": each.rate,
            "test": tests,
            "diverged": any(one["diverged"] for one in each.runs),
            "valid_by_setting": each.by_rate,
            "bytes_of_float32": sent(line, depth) if line in GRIDS else None,
        }
    return report


def main() -> None:
    """Choose, train, show and write."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--smoke", action="store_true", help="a small graph, five iterations")
    smoke = parse.parse_args().smoke
    seeds, depths = ((0,), (2,)) if smoke else (SEEDS, DEPTHS)
    every = lambda wanted: {run: train(run, smoke) for run in wanted}
    pairs = lambda lines: [(line, depth) for depth in depths for line in lines]
    few = slice(0, 2 if smoke else None)
    report = reported(every, pairs(list(GRIDS)[few]), SETTINGS[few], seeds)
    report |= reported(every, pairs(FEATURES), RATES[few], seeds)
    if not smoke:
        content = {"seeds": list(SEEDS), "tuning_seed": TUNING_SEED, "results": report}
        print(record.write("pdadmm_graph", "benchmarks.pdadmm_graph", content))


if __name__ == "__main__":
    main()
