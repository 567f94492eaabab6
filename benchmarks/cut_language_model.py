"""Does a language model keep its bits a byte when it is cut? A decoder, n = 2, 4, 8.

`nn.decoder`, 8 blocks of width 64 with 4 heads, of 32 bytes, on the text of `examples.language_model`;
four passes in batches of 64 (752 steps), a tenth of the steps of warm-up, then a cosine to zero. End to
end (`solvers.sgd`) with Adam and with NAdam; cut, gsADMM with NAdam, M microbatches, all else by default.
Every line has the same budget: its peak rate is chosen out of the same three on 1 000 held-out rows,
with a seed apart from the reported ones. Then three seeds, five of n = 8 (does one collapse?), whose bits
on the text's last 1 000 rows are read once.

    python -m benchmarks.cut_language_model --workers 2 [--only PATTERN] [--smoke]

About forty minutes on 2 cores. Finished runs are kept in --runs, so an interrupted benchmark goes on
where it was. Last result: benchmarks/results/cut_language_model.json.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jtssm
from benchmarks import record
from benchmarks.running import Runs, arguments, chosen
from benchmarks.users_networks import (
    MORE_SEEDS,
    SEEDS,
    TUNING_SEED,
    more_of_the_finest,
    optimizer,
)
from examples import language_model
from jtssm import nn, solvers

BATCH, HELD_OUT, RATES = 64, 1000, (4e-3, 8e-3, 1.6e-2)
BLOCKS, WIDTH, HEADS, PASSES = 8, 64, 4, 4
FINEST = 8  # of this n five seeds


class Line(NamedTuple):
    """One line of the table."""

    optimizer: str
    subnets: int
    microbatches: int

    def __str__(self) -> str:
        parts = f", M = {self.microbatches}" if self.subnets > 1 else ""
        return f"{self.optimizer}, n = {self.subnets}{parts}"


LINES = (Line("adam", 1, 1), *(Line("nadam", n, m) for n, m in ((1, 1), (2, 16), (4, 16), (8, 32))))


def train(run: tuple, smoke: bool) -> dict[str, Any]:
    """Train once; bits a byte of held-out rows.

    run: (optimizer, n, M, rate, seed, whether the last rows are read).
    """
    (line, rate, seed, read_test) = Line(*run[:3]), *run[3:]
    if not smoke:
        jax.config.update("jax_compilation_cache_dir", str(Path("run/compiled").absolute()))
    x, y = language_model.samples()
    end = 640 if smoke else len(x) - 2 * HELD_OUT
    rows = {"valid": slice(-2 * HELD_OUT, -HELD_OUT), "test": slice(-HELD_OUT, None)}
    blocks, width, passes = (2, 16, 1) if smoke else (BLOCKS, WIDTH, PASSES)
    length = language_model.LENGTH
    net = nn.decoder(
        blocks, width=width, heads=HEADS, sequence=length, vocabulary=language_model.BYTES
    )
    shared: dict[str, Any] = {
        "optimizer": optimizer(line.optimizer, rate, passes * (end // BATCH), warmup=10),
        "batch_size": BATCH,
    }
    method = (
        solvers.gsadmm(net, subnets=line.subnets, microbatches=line.microbatches, **shared)
        if line.subnets > 1
        else solvers.sgd(net, **shared)
    )
    result = jtssm.fit(
        method, (x[:end], y[:end]), epochs=passes, key=jax.random.key(seed), progress=False
    )
    bits = lambda part: (
        jtssm.evaluate(method, result.state, (x[rows[part]], y[rows[part]]))["loss"] / math.log(2)
    )
    seen = {
        "run": list(run),
        "diverged": result.divergence is not None,
        "valid_bits": bits("valid"),
    }
    return seen | ({"test_bits": bits("test")} if read_test else {})


def main() -> None:
    """Choose rates, read the last rows, show and write."""
    given = _arguments()
    lines = [line for line in given.lines if re.search(given.only, str(line))]
    with Runs(given.runs, given.workers, lambda seen: True, _shown) as runs:
        every = lambda wanted: runs.all(train, {run: (run, given.smoke) for run in wanted})
        seeds = more_of_the_finest(given.seeds, FINEST)
        found = chosen(every, lines, given.rates, seeds, TUNING_SEED, "valid_bits", min)
    report = {}
    for name, line in ((str(line), found[line]) for line in lines):
        report[name] = {
            "rate": line.rate,
            "diverged": any(one["diverged"] for one in line.runs),
            "valid_bits": [one["valid_bits"] for one in line.runs],
            "test_bits": [one["test_bits"] for one in line.runs],
            "valid_bits_by_rate": line.by_rate,
        }
        tests = report[name]["test_bits"]
        print(f"{name}  rate {line.rate:g}  test {np.mean(tests):.4f} of {tests}")
    if not given.smoke:
        content = {"seeds": given.seeds, "more_seeds_of_the_finest": MORE_SEEDS}
        content |= {"tuning_seed": TUNING_SEED, "results": report}
        print(record.write("cut_language_model", "benchmarks.cut_language_model", content))


def _shown(seen: dict) -> str:
    *line, rate, seed, _ = seen["run"]
    return f"{Line(*line)}, rate {rate:g}, seed {seed}  held-out {seen['valid_bits']:.4f}"


def _arguments() -> argparse.Namespace:
    about = __doc__.splitlines()[0]
    parser = arguments(about, "a tiny decoder on a few rows", "run/cut_language_model.jsonl")
    parser.add_argument("--only", default="", help="regular expression: which lines of the table")
    given = parser.parse_args()
    given.lines, given.rates, given.seeds = LINES, RATES, SEEDS
    if given.smoke:
        given.lines, given.rates, given.seeds = (LINES[1], LINES[2]), (2e-3,), (0,)
        given.runs, given.workers = None, 0
    return given


if __name__ == "__main__":
    main()
