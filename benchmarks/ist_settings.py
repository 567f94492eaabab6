"""Does IST pay where layers are deep and wide, inputs wide, or samples few? Seconds to an accuracy.

Three settings, batch normalisation, Adam along a cosine:

    deep      MNIST 14 x 14, 196-4096-4096-10, half a pass over 55 000 images in batches of 128
    spoken    the spoken digits, 4096-4096-10, ten passes over 2 400 recordings in batches of 32
    baskets   a recommendation-like task of wide inputs (`jtssm.data.synthetic.baskets`), 4096-1024-32,
              two passes over 20 000 customers in batches of 128

as `benchmarks.ist_wide`: the accuracy to be reached, on held-out samples, is that of Adam on one host
after 80 % of its steps, mean of the seeds; every line takes the same samples, and the best of two peak
rates at the end with a seed apart from the reported ones, whose test samples are read once. Data parallel
training has the numbers of one host. In one line of IST the rate rises over the first five steps after
each deal, since the optimizer starts anew there. Steps are counted in one process, seconds of a step are
those of the hosts (benchmarks/results/hosts_settings.json).

    python -m benchmarks.hosts --networks deep,deep-half,spoken,spoken-half,baskets,baskets-half \
        --seconds 2 --write hosts_settings
    JTSSM_DATA=FOLDER python -m benchmarks.ist_settings --workers 2 [--only PATTERN] [--smoke]

Half an hour on 2 cores, and ten minutes on the hosts. Finished runs are kept in --runs. Last result:
benchmarks/results/ist_settings.json, in docs/methods/ist.md.
"""

from __future__ import annotations

import json
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import jtssm
from benchmarks import record
from benchmarks.host_cases import SETTINGS, dealt, dealt_network
from benchmarks.ist_wide import reported, trained
from benchmarks.running import Runs, arguments, chosen
from benchmarks.time_to_accuracy import goal_of, seconds
from benchmarks.users_networks import SEEDS, TUNING_SEED
from jtssm import data, solvers
from jtssm.data import synthetic

ONE, PARALLEL, HALF = "one host, Adam", "data parallel, Adam", "half as wide, Adam"
DEALT = "IST, R = 20, Adam"
RISING = f"{DEALT}, rate rises after a deal"
SAME = {RISING: DEALT, HALF: ONE}  # cases that other lines are, but for rate or width
LINES = [*(name for name in dealt() if name != PARALLEL), RISING, HALF]
RISES = 5  # steps after a deal
PASSES = {"deep": 0.5, "spoken": 10, "baskets": 2}
RATES = (3e-3, 1e-2)
LOOKS = 20  # in a training
CUSTOMERS = (20_000, 5_000, 5_000)  # that train, choose and test


def splits_of(setting: str, smoke: bool) -> data.Splits:
    """What a setting is trained, chosen and tested on."""
    if smoke or setting == "baskets":
        sizes = (640, 64, 64) if smoke else CUSTOMERS
        inputs, *_, classes = SETTINGS[setting][0]
        x, y = synthetic.baskets(0, sum(sizes), inputs, classes)
        ends = np.cumsum(sizes)[:-1]
        each = zip(np.split(x, ends), np.split(y, ends), strict=True)
        return data.Splits(*(data.Split(*part) for part in each))
    if setting == "deep":
        return data.load("mnist", size=14, flat=True)
    return data.load("spoken-digits", flat=True)


def method_of(
    setting: str, line: str, rate: float, samples: int, narrower: int = 1
) -> jtssm.Method:
    """What a line trains, on so many samples in all."""
    case, batch = dealt()[SAME.get(line, line)], SETTINGS[setting][1]
    net = dealt_network(setting, narrower * (2 if line == HALF else 1))
    steps = samples // (batch * case.options.get("workers", case.options.get("subnets", 1)))
    falls = optax.cosine_decay_schedule(rate, steps)
    descent = optax.adam(rising(falls, case.options["local_steps"]) if line == RISING else falls)
    return solvers.METHODS[case.method](net, **case.options, optimizer=descent, batch_size=batch)


def rising(rate: optax.Schedule, local_steps: int) -> optax.Schedule:
    """The rate, but for the first steps after each deal, in which it rises: step -> rate."""
    return lambda step: rate(step) * jnp.minimum(1.0, (step % local_steps + 1) / RISES)


def train(run: tuple, smoke: bool) -> dict[str, Any]:
    """Train once; the share of held-out samples that is wrong after so many samples.

    run: (setting, line, rate, seed, whether test samples are read).
    """
    setting, line, rate, seed, read_test = run
    splits = splits_of(setting, smoke)
    samples = int(len(splits.train.x) * PASSES[setting] * (20 if smoke else 1))
    method = method_of(setting, line, rate, samples, 256 if smoke else 1)

    told = trained(method, splits, seed, samples, samples // LOOKS, read_test)
    return {"run": list(run)} | told


def seconds_of(setting: str, line: str, rows: list[dict]) -> dict[str, float]:
    """Of a sample, by link; rows: of the hosts."""
    network = f"{setting}-half" if line == HALF else setting
    return seconds(rows, SAME.get(line, line), 1.0, network)


def main() -> None:
    """Train, count samples to the goal, multiply; write."""
    given = _arguments()
    with Runs(given.runs, given.workers, lambda seen: True, _shown) as runs:
        every = lambda wanted: runs.all(train, {run: (run, given.smoke) for run in wanted})
        rates = RATES[: 1 if given.smoke else None]
        found = chosen(every, given.lines, rates, given.seeds, TUNING_SEED, "wrong", min)
    path = record.RESULTS / "hosts_settings.json"
    hosts = json.loads(path.read_text()) if path.exists() else {"rows": [], "commit": None}
    report: dict[str, Any] = {}
    for setting in dict.fromkeys(setting for setting, _ in given.lines):
        named = {line: each for (of, line), each in found.items() if of == setting}
        goal = goal_of(named[ONE].runs)
        named[PARALLEL] = named[ONE]
        one = {k: seconds_of(setting, k, hosts["rows"]) for k in named}
        own = {k: reported(each, goal, one[k]) for k, each in named.items()}
        report[setting] = {"goal": 1 - goal, "lines": own}
        for line, told in own.items():
            print(
                f"{setting}  {line}  rate {told['rate']:g}  test {told['test']}  {told['samples']}"
            )
    if not given.smoke and not given.only:
        content = {"seeds": given.seeds, "hosts_commit": hosts["commit"], "results": report}
        print(record.write("ist_settings", "benchmarks.ist_settings", content))


def _shown(seen: dict) -> str:
    setting, line, rate, seed, _ = seen["run"]
    return f"{setting}, {line}, rate {rate:g}, seed {seed}  held-out {1 - seen['wrong']:.4f}"


def _arguments() -> Any:
    parse = arguments(__doc__.splitlines()[0], "narrow networks, baskets", "run/ist_settings.jsonl")
    parse.add_argument(
        "--only", default="", help="regular expression: which settings; none is written"
    )
    given = parse.parse_args()
    settings = [name for name in SETTINGS if re.search(given.only, name)]
    given.lines, given.seeds = [(name, line) for name in settings for line in LINES], SEEDS
    if given.smoke:
        lines = [ONE, RISING, HALF]
        given.lines = [("baskets", line) for line in lines]
        given.seeds, given.runs, given.workers = (0,), None, 0
    return given


if __name__ == "__main__":
    main()
