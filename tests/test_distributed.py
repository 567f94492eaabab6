"""Several processes, each with devices of its own, against one: the same program, the same numbers."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import distributed_runs as runs

ROOT = Path(__file__).parents[1]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def start(folder: Path, processes: int, *what: str) -> list[subprocess.Popen]:
    """One program in so many processes."""
    port = free_port()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.distributed_runs", *what, str(folder), port]
    started = []
    for i in range(processes):
        with (folder / f"stderr-{i}.txt").open("w") as errors:
            started.append(subprocess.Popen(
                [*command, str(processes), str(i)], stdout=subprocess.DEVNULL, stderr=errors,
                env=environment,
            ))  # fmt: skip
    return started


def finished(started: list[subprocess.Popen], folder: Path, what: str) -> list[dict]:
    """What each process found."""
    try:
        for i, process in enumerate(started):
            assert process.wait(timeout=270) == 0, (folder / f"stderr-{i}.txt").read_text()[-3000:]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [json.loads((folder / f"{what}-{i}.json").read_text()) for i in range(len(started))]


def flat(found) -> np.ndarray:
    return np.asarray(jax.tree.leaves(found))


def agree(found: dict, expected: dict) -> None:
    """All numbers of all cases."""
    assert found.keys() == expected.keys()
    for name in expected:
        assert jax.tree.structure(found[name]) == jax.tree.structure(expected[name]), name
        np.testing.assert_allclose(
            flat(found[name]), flat(expected[name]), atol=1e-10, err_msg=name
        )


def alone(which) -> dict:
    """The numbers of the cases on one device of one process."""
    return {
        name: runs.numbers(runs.fitted(method, (runs.X, runs.Y), None, validation=runs.HELD_OUT))
        for name, (method, _, _) in which().items()
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(the folder, what each of two processes found, what one process finds meanwhile)."""
    folder = tmp_path_factory.mktemp("pair")
    started = start(folder, 2, "all_of_it")
    try:
        one = alone(runs.cases)
    finally:
        found = finished(started, folder, "all_of_it")
    return folder, found, one


def test_every_method_trains_to_the_numbers_of_one_process(pair):
    _, found, one = pair
    assert len(one) == 8
    for mine in found:
        agree(mine["cases"], one)
    assert found[0] == found[1]
