"""How accurate is pdADMM after so many seconds on two hosts, by the link and by the bits exchanged?

A perceptron of four hidden layers of 300 from a random start, 20 000 images of MNIST 14 x 14: 100
iterations of pdADMM (rho = 1000, nu = 0.03: the best of benchmarks.pdadmm_accuracy) with floats, 16 and
8 bits, and as many full batches of Adam on one host, at the better of two rates on held-out images.
Held-out accuracy after every fourth iteration, one seed, test images read once; seconds of an iteration
are those of the hosts (benchmarks/results/hosts_rounded.json).

    python -m benchmarks.hosts --networks rounded --seconds 2 --write hosts_rounded
    JTSSM_DATA=FOLDER python -m benchmarks.pdadmm_links --workers 2 [--smoke]

Ten minutes on 2 cores, and two minutes on the hosts. Finished runs are kept in --runs. Last result:
benchmarks/results/pdadmm_links.json and .png, in docs/methods/pdadmm.md.
"""

from __future__ import annotations

import json
from statistics import mean
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jtssm
from benchmarks import figures, record
from benchmarks.host_cases import FULL, NETWORKS
from benchmarks.running import Reported, Runs, arguments, chosen
from benchmarks.users_networks import SEEDS, TUNING_SEED
from jtssm import data, solvers

NETWORK, ITERATIONS, EVERY = "rounded", 100, 4
LINES = {"pdADMM": None, "pdADMM, 16 bits": 16, "pdADMM, 8 bits": 8}
RATES = (1e-3, 3e-3)  # Adam's


def method_of(line: str, rate: float | None, size: int) -> jtssm.Method:
    """What a line trains; rate: Adam's."""
    net = NETWORKS[NETWORK].network()
    if rate is not None:
        return solvers.sgd(net, optimizer=optax.adam(rate), batch_size=size)
    return solvers.pdadmm(net, rho=1000.0, nu=0.03, grid=LINES[line])


def train(run: tuple, smoke: bool) -> dict[str, Any]:
    """Train once; the share of held-out images that is right after every fourth iteration.

    run: (line, rate, seed, whether test images are read).
    """
    line, rate, seed, read_test = run
    splits = data.load("mnist", size=14, flat=True) if not smoke else _zeros()
    size = min(NETWORKS[NETWORK].batch, len(splits.train.x))
    x, y = splits.train.x[:size], splits.train.y[:size]
    method = method_of(line, rate, size)
    state, step = method.init(jax.random.key(seed), x, y), jax.jit(method.step, donate_argnums=0)

    @jax.jit
    def right(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return (method.network.apply(params, x).argmax(axis=1) == y).mean()

    curve = []
    for i in range(1, (EVERY if smoke else ITERATIONS) + 1):
        state, _ = step(state, x, y)
        if i % EVERY == 0:
            curve.append((i, float(right(method.params(state), splits.valid.x, splits.valid.y))))
    seen = {"run": list(run), "curve": curve, "right": curve[-1][1]}
    if read_test:
        seen["test"] = float(right(method.params(state), splits.test.x, splits.test.y))
    return seen


def _zeros() -> data.Splits:
    x, y = jnp.zeros((64, 196)), jnp.zeros(64, int)
    return data.Splits(data.Split(x, y), data.Split(x, y), data.Split(x, y))


def reported(line: str, each: Reported, rows: list[dict]) -> dict[str, Any]:
    """What the table says of a line; rows: of the hosts."""
    own = (row for row in rows if row["case"] == line and "error" not in row)
    curves = zip(*(run["curve"] for run in each.runs), strict=True)
    return {
        "rate": each.rate,
        "test": [run["test"] for run in each.runs],
        "held_out": [(at[0][0], mean(right for _, right in at)) for at in curves],
        "seconds_an_iteration": {row["link"]: row["step_seconds"]["median"] for row in own},
    }


def main() -> None:
    """Train, multiply by the seconds of the hosts; write."""
    given = _arguments()
    with Runs(given.runs, given.workers, lambda seen: True, _shown) as runs:
        every = lambda wanted: runs.all(train, {run: (run, given.smoke) for run in wanted})
        of = lambda lines, rates: chosen(
            every, lines, rates, given.seeds, TUNING_SEED, "right", max
        )
        rates = RATES[: 1 if given.smoke else None]
        found = of([(FULL,)], rates) | of([(line,) for line in given.lines], (None,))
    path = record.RESULTS / "hosts_rounded.json"
    hosts = json.loads(path.read_text()) if path.exists() else {"rows": [], "commit": None}
    report = {line: reported(line, each, hosts["rows"]) for (line,), each in found.items()}
    for line, own in report.items():
        print(f"{line}  test {own['test']}  {own['seconds_an_iteration']}")
    if not given.smoke:
        content = {"seeds": given.seeds, "hosts_commit": hosts["commit"], "results": report}
        print(record.write("pdadmm_links", "benchmarks.pdadmm_links", content))
        figures.draw("pdadmm_links")


def _shown(seen: dict) -> str:
    line, rate, seed, _ = seen["run"]
    return f"{line}, rate {rate}, seed {seed}  held-out {seen['right']:.4f}"


def _arguments() -> Any:
    about = __doc__.splitlines()[0]
    given = arguments(about, "zeros, four iterations", "run/pdadmm_links.jsonl").parse_args()
    given.lines, given.seeds = list(LINES), SEEDS[:1]
    if given.smoke:
        given.lines, given.seeds, given.runs, given.workers = ["pdADMM, 8 bits"], (0,), None, 0
    return given


if __name__ == "__main__":
    main()
