"""How near does gsADMM with two subnetworks come to end-to-end Adam on MNIST, and at what cost?

MNIST 14 x 14, nine hidden layers of 512, batch 110, 5 epochs. Adam's rate is chosen for each method
on the held-out last 5 000 training images (one seed apart from the reported ones, the same rates for
all); then test accuracy over the seeds, read once each. Loss and accuracy are computed from the final
parameters by `Network.apply`, not by the method. An epoch's cost: chunks of 50 steps, methods in
turns, ratio of medians to Adam's.

    JTSSM_DATA=FOLDER python -m benchmarks.gsadmm_mnist [--schedules "gsADMM streaming"] [--smoke]

About 30 minutes on 2 cores, 10 with the streaming schedule alone. Last result, of streaming alone:
test accuracy .9697 against Adam's .9732, a step 1.22 times Adam's
(benchmarks/results/gsadmm_mnist.json).
"""

from __future__ import annotations

import argparse

import jax
import numpy as np
import optax
from jax import lax

import jtssm
from benchmarks import record
from jtssm import data, losses, solvers

ADAM = "Adam end to end"
METHODS = {
    ADAM: None,
    "gsADMM streaming": {},
    "gsADMM streaming, 2 sweeps": {"sweeps": 2},
    "gsADMM stored": {"schedule": "stored"},
}


def main() -> None:
    """Choose rates, report accuracies, measure costs, write the JSON."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument(
        "--smoke", action="store_true", help="seconds instead of minutes, no result file"
    )
    parse.add_argument("--epochs", type=int, default=5)
    parse.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parse.add_argument("--rates", type=float, nargs="+", default=[2.5e-4, 5e-4, 1e-3, 2e-3])
    parse.add_argument("--repeats", type=int, default=15)
    parse.add_argument(
        "--schedules", nargs="*", default=list(METHODS)[1:], choices=list(METHODS)[1:]
    )
    given = parse.parse_args()
    splits = (
        data.load("digits", flat=True) if given.smoke else data.load("mnist", size=14, flat=True)
    )
    width, depth = (32, 3) if given.smoke else (512, 9)
    net = jtssm.mlp([splits.train.x.shape[1], *[width] * depth, 10])
    if given.smoke:
        given.epochs, given.seeds, given.rates, given.repeats = 1, [0], [1e-3], 2
        splits = splits._replace(train=data.Split(*(a[:550] for a in splits.train)))
    names = [ADAM, *given.schedules]
    cost = _cost(names, net, splits.train, given.repeats)
    report = {name: _report(name, net, splits, given) for name in names}
    for name, line in report.items():
        line["step"] = cost[name]
        mean, ratio = np.mean(line["test_accuracy"]), cost[name]["ratio_to_adam"]
        print(f"{name:28} rate {line['rate']:g}  test {mean:.4f}  step ratio {ratio:.2f}")
    if not given.smoke:
        print(
            record.write(
                "gsadmm_mnist", "benchmarks.gsadmm_mnist", {"seeds": given.seeds, "results": report}
            )
        )


def _method(name, net, rate):
    shared = {"optimizer": optax.adam(rate), "batch_size": 110}
    options = METHODS[name]
    return (
        solvers.sgd(net, **shared)
        if options is None
        else solvers.gsadmm(net, subnets=2, **options, **shared)
    )


def _train(name, net, train, rate, seed, epochs):
    key = jax.random.key(seed)
    return jtssm.fit(_method(name, net, rate), train, epochs=epochs, key=key, progress=False).params


def _accuracy(net, params, split) -> float:
    outputs = jax.jit(net.apply)(params, split.x)
    return float(losses.cross_entropy.correct(outputs, split.y).mean())


def _report(name, net, splits, given) -> dict:
    tried = {}
    for rate in given.rates:
        params = _train(name, net, splits.train, rate, 100, given.epochs)
        tried[rate] = _accuracy(net, params, splits.valid)
        print(f"{name}: rate {rate:g}, seed 100: valid {tried[rate]:.4f}", flush=True)
    rate = max(tried, key=tried.get)
    final = [_train(name, net, splits.train, rate, seed, given.epochs) for seed in given.seeds]
    test = [_accuracy(net, params, splits.test) for params in final]
    train = [_accuracy(net, params, splits.train) for params in final]
    print(f"{name}: rate {rate:g}: test {test}", flush=True)
    return {
        "rate": rate, "valid_accuracy_by_rate": {str(k): v for k, v in tried.items()},
        "train_accuracy": train, "test_accuracy": test, "epochs": given.epochs,
    }  # fmt: skip


def _cost(names, net, train, repeats) -> dict:
    """Seconds a step of minibatch methods, an epoch of the resident one divided by its minibatches."""
    runs, steps = {}, {}
    for name in names:
        method = _method(name, net, 1e-3)
        kept = len(train.x) - len(train.x) % 110
        if method.resident:
            x, y = train.x[:kept], train.y[:kept]
            run, steps[name] = jax.jit(method.step), kept // 110
        else:
            steps[name] = min(50, kept // 110)
            x, y = (a[: 110 * steps[name]].reshape(steps[name], 110, *a.shape[1:]) for a in train)
            run = jax.jit(lambda s, x, y, m=method: lax.scan(lambda s, b: m.step(s, *b), s, (x, y)))
        state = method.init(jax.random.key(0), *(train if method.resident is False else (x, y)))
        runs[name] = lambda run=run, state=state, x=x, y=y: run(state, x, y)
    seconds = record.alternating(runs, repeats)
    adam = np.median(seconds[ADAM]) / steps[ADAM]
    return {
        name: record.spread([s / steps[name] for s in taken])
        | {"ratio_to_adam": float(np.median(taken) / steps[name] / adam)}
        for name, taken in seconds.items()
    }


if __name__ == "__main__":
    main()
