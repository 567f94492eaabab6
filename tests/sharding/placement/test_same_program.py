"""Processes compile one program: a set of names has another order in each, and may decide nothing."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SEEDS = ("1", "9")  # with them ("pr", "pc") comes out of a set in either order


def begun(module: str, seed: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
    command = [sys.executable, *module.split()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def said(module: str) -> list[str]:
    """What a program prints with each seed."""
    started = [begun(module, seed) for seed in SEEDS]
    return [process.communicate()[0] for process in started]


def test_the_seeds_turn_a_set_of_the_axes_round():
    one, other = said("-c print(*{'pr','pc'})")
    assert one.split() == other.split()[::-1]


def test_steps_on_a_mesh_do_not_depend_on_the_order_of_sets():
    one, other = said("-m tests.sharding.placement.lowered_steps")
    assert len(one.splitlines()) == 8
    assert one == other
