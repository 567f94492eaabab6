"""Several processes, each with devices of its own, against one: the same program, the same numbers."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

import jtssm
from jtssm import data, sharding
from jtssm.cli import main
from jtssm.sharding import meeting
from tests.train import distributed_runs as runs

ROOT = Path(__file__).parents[2]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def start(folder: Path, processes: int, what: str) -> list[subprocess.Popen]:
    """A program of distributed_runs in so many processes, in which sets have other orders."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.train.distributed_runs", what, str(folder), free_port()]
    started = []
    for i in range(processes):
        with (folder / f"stderr-{i}.txt").open("w") as errors:
            started.append(
                subprocess.Popen(
                    [*command, str(processes), str(i)],
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env=environment | {"PYTHONHASHSEED": "19"[i % 2]},
                    cwd=ROOT,
                )
            )
    return started


def end(started: list[subprocess.Popen]) -> None:
    for process in started:
        process.kill()
        process.wait()


def finished(started: list[subprocess.Popen], folder: Path, what: str) -> list[dict]:
    """What each process found."""
    try:
        for i, process in enumerate(started):
            assert process.wait(timeout=270) == 0, (folder / f"stderr-{i}.txt").read_text()[-3000:]
    finally:
        end(started)
    return [json.loads((folder / f"{what}-{i}.json").read_text()) for i in range(len(started))]


def together(folder: Path, processes: int, what: str) -> list[dict]:
    return finished(start(folder, processes, what), folder, what)


def agree(found: dict, expected: dict) -> None:
    """All numbers of all cases."""
    assert found.keys() == expected.keys()
    for name in expected:
        assert jax.tree.structure(found[name]) == jax.tree.structure(expected[name]), name
        pair = (np.asarray(jax.tree.leaves(case[name])) for case in (found, expected))
        np.testing.assert_allclose(*pair, rtol=1e-10, atol=1e-10, err_msg=name)


def alone(which) -> dict:
    """The numbers of the cases on one device of one process."""
    return {name: runs.case(method, None) for name, (method, _, _) in which().items()}


def by_hand(method, positions: list[tuple]) -> list:
    """Parameters after two passes over the shares of two processes, on one device.

    positions: for each share which positions of a minibatch it fills, as an index of the minibatch.
    """
    init_key, order_key = jax.random.split(jax.random.key(0))
    draw = np.random.default_rng(np.asarray(jax.random.key_data(order_key)))
    state, step = method.init(init_key, runs.X, runs.Y), jax.jit(method.step)
    shares = [runs.share(process, 2) for process in (0, 1)]
    size = np.prod(method.batch_shape) // 2
    orders = np.concatenate([draw.permutation(48) for _ in range(2)]).reshape(-1, size)
    for rows in orders:
        x, y = np.zeros((*method.batch_shape, 4)), np.zeros(method.batch_shape, int)
        for (xs, ys), at in zip(shares, positions, strict=True):
            x[at], y[at] = (a[rows].reshape(b[at].shape) for a, b in ((xs, x), (ys, y)))
        state, _ = step(state, x, y)
    return [a.tolist() for a in jax.tree.leaves(method.params(state))]


BAD_MEETINGS = [
    (("host:1234", 2, None), "expected all three.*got 'host:1234', 2 and None"),
    ((None, 2, 0), "expected all three"),
    (("host", 2, 0), "coordinator: expected host:port, e.g. 'host:1234'; got 'host'"),
    (("host:1234", 0, 0), "num_processes: expected an integer of at least 1; got 0"),
    (("host:1234", 2, 2), r"process_id: expected one of 0..1, one for each process; got 2"),
]


@pytest.mark.parametrize(("given", "message"), BAD_MEETINGS)
def test_a_meeting_that_cannot_be_is_refused_at_once(given, message):
    with pytest.raises(ValueError, match=message):
        sharding.connect(*given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--distributed"], "--mesh: expected one over the devices of all processes"),
        (["--distributed", "--process-id", "1"], "--distributed: expected no --coordinator"),
        (
            ["--num-processes", "2", "--mesh", "pc=2"],
            "expected all three, e.g. 'host:1234', 2 and 0",
        ),
    ],
)
def test_the_command_line_refuses_half_a_meeting(options, message, capsys):
    assert main(["train", *options]) == 2
    assert message in capsys.readouterr().err


def test_shares_of_one_process_are_all_samples():
    method, _, _ = runs.cases()["sgd"]
    mine = sharding.ProcessSamples(runs.X, runs.Y)
    one, other = (
        runs.numbers(runs.fitted(method, train, None)) for train in (mine, (runs.X, runs.Y))
    )
    assert one == other


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(the folder, what each of two processes found, what one process finds meanwhile)."""
    folder = tmp_path_factory.mktemp("pair")
    started = start(folder, 2, "short")
    try:
        one = alone(runs.few_cases)
    finally:
        found = finished(started, folder, "short")
    return folder, found, one


def test_a_method_of_each_kind_trains_to_the_numbers_of_one_process(pair):
    _, found, one = pair
    assert len(one) == 4
    agree(found[0]["cases"], one)
    assert found[1]["cases"] == found[0]["cases"]


def test_threads_that_wait_for_messages_let_compute_first(pair):
    for found in pair[1]:
        if found["in batches"] is None:
            pytest.skip("threads cannot be seen here")
        assert found["in batches"] >= 1


def test_processes_train_on_shares_of_their_own(pair):
    _, found, _ = pair
    sgd, _ = runs.sharers()["sgd"]
    expected = by_hand(sgd, [(slice(0, 8),), (slice(8, 16),)])
    assert found[0]["shares"] == found[1]["shares"]
    agree({"params": found[0]["shares"]["sgd"]["params"]}, {"params": expected})
    plain = found[0]["cases"]["sgd"]["params"][0]
    assert np.abs(np.subtract(plain, expected[0])).max() > 1e-4  # other minibatches


def test_what_cannot_work_is_refused_in_every_process(pair):
    _, (one, two), _ = pair
    assert "mesh: expected devices of each of the 2 processes" in one["refused"]["mesh"]
    assert "got 2, none of them of processes [1]" in one["refused"]["mesh"]
    assert "equally many samples in each process; got [48, 47]" in one["refused"]["number"]
    assert "on this mesh [[0, 1]]; got different ones" in one["refused"]["alike"]
    assert one["refused"].pop("labels") == (
        "train: the samples of process 1 are refused; see what it says"
    )
    assert "y: expected labels 0..2" in two["refused"].pop("labels")
    assert one["refused"] == two["refused"]


DISAGREE = {
    "key": r"key: .*; got .*\[0, 0\]\] in process 0; .*\[0, 1\]\] in process 1",
    "method": "method: arguments: batch_size: .* got 16 in process 0; 32 in process 1",
    "rate": r"^optimizer \(digest\): expected the same in every process; got \[\d+\] in process 0; ",
    "loss": r"^loss \(digest\): ",
    "network": r"network: layers \(digest\): ",
    "mesh": "^mesh: devices: .*in process 0; ",
    "forms": r"^forms: .* got \['model', 'batch', 'batch'\] in process 0; \['row', ",
    "train": r"^train: .*float64\[96, 4\] of checksum .* in process 1$",
    "kind": "^train: .*in process 0; \\['ProcessSamples', ",
    "epochs": "^epochs: .* got 2 in process 0; 3 in process 1$",
    "validation": "^validation: .* in process 0; None in process 1$",
    "metrics": r"^metrics: .* got \['size'\] in process 0; \[\] in process 1$",
    "dropout": r"^method: layers: .*dropout 0.1.*; network: training \(digest\): ",
    "weights": r"^loss \(digest\): ",
    "resume": "^resume: .* got None in process 0; anyway in process 1$",
    "estimate": "^estimate: .* got None in process 0; False in process 1$",
    "address": "^checkpoint: expected a folder of this machine, .*; got 'gs:/bucket/run', an address$",
    "params": r"^params: \[0\]\['W'\]: ",
    "checkpoint": "checkpoint: .* got True in process 0; False in process 1",
    "folder": r"^checkpoint: expected a folder .* all processes share; got .*of [01], where process 0 does "
    r"not see what \[1\] wrote; where process 1 does not see what \[0\] wrote$",
    "init": "^key: ",
}


def test_processes_that_were_given_other_things_are_refused_and_told_what(pair):
    _, (one, two), _ = pair
    assert one["disagree"].keys() == DISAGREE.keys() | {"refused"}
    for name, message in DISAGREE.items():
        for found in (one, two):
            assert re.search(message, found["disagree"][name]), (name, found["disagree"][name])
    mine = "evaluate_every: expected an integer of at least 1; got 0"
    assert two["disagree"]["refused"] == mine
    assert one["disagree"]["refused"] == f"process 1 raised ValueError: {mine}"


def test_a_callback_of_one_process_works_and_what_it_raises_ends_all(pair):
    _, (one, two), _ = pair
    said = "evaluate: expected to be asked in every process, which it takes; got it asked in the callback "
    said += "of_one_process.<locals>.log of processes 0 alone"
    assert one["of one"] == [[1, 2], said, 2]
    assert two["of one"] == [[], f"process 0 raised ValueError: {said}", 2]


def test_a_folder_in_use_and_a_disk_that_is_full_for_one_process_end_all(pair):
    _, (one, two), _ = pair
    for found in (one, two):
        used, full, lines = found["folder"]
        assert "checkpoint: expected a folder that no other run uses; got " in used
        assert re.search("could not be written to .*, at step .*no space left", full)
        assert lines == "2"
    assert two["folder"][0] == f"process 0 raised ValueError: {one['folder'][0]}"
    assert "process 0 raised OSError: no space left" in two["folder"][1]


def met(*processes: tuple, seconds: float = 5.0) -> list:
    """What `meet` says in each of the threads that stand for processes, given by number and of how many."""
    at = f"localhost:{free_port()}"

    def come(this: int, num: int) -> object:
        try:
            return meeting.meet(at, at, num, this, seconds)
        except (ValueError, OSError) as error:
            return error

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(lambda process: come(*process), processes))


@pytest.fixture
def no_jax(monkeypatch):
    """Nobody listens after the meeting."""
    monkeypatch.setattr(meeting, "_await_jax", lambda *_: None)


def test_processes_meet(no_jax):
    assert met((0, 3), (1, 3), (2, 3)) == [None] * 3
    assert met((0, 1)) == [None]


def test_who_does_not_come_is_named_in_all_that_came(no_jax):
    one, two = met((0, 4), (2, 4), seconds=0.5)
    assert str(one) == str(two)
    assert isinstance(two, TimeoutError)
    assert "expected 4 processes at localhost:" in str(one)
    assert str(one).endswith("within 0.5 s (lost_after); processes 1, 3 did not come")
    (alone,) = met((1, 2), seconds=0.3)
    assert re.search("expected process 0 at .* within 0.3 s .*; process 0 did not come", str(alone))


def test_processes_of_one_number_or_of_other_numbers_are_refused_in_all_that_came(no_jax):
    twice = set(map(str, met((0, 3), (1, 3), (1, 3))))
    assert twice == {"process_id: expected each of 0..2 once; got 1 twice"}
    other = set(map(str, met((0, 3), (1, 2))))
    assert other == {
        "num_processes: expected the same in every process; got 3 in process 0, 2 in process 1"
    }


def test_an_address_of_another_machine_and_a_taken_port_are_named():
    with pytest.raises(
        OSError, match=r"address of process 0's machine with a free port; got 192\.0\.2\.1:"
    ):
        meeting.meet("192.0.2.1:80", "192.0.2.1:80", 2, 0, 1.0)
    with socket.create_server(("localhost", 0)) as taken:
        at = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="JAX_COORDINATOR_BIND_ADDRESS"):
            meeting.meet(at, at, 2, 0, 1.0)


def test_the_command_line_trains_with_several_processes_and_the_first_one_writes(pair):
    folder, _, _ = pair
    drawn = {f"history.{kind}" for kind in ("png", "svg", "pdf")}
    names = {"history.csv", "params.npz", "params.json", "result.json"} | drawn
    assert {file.name for file in (folder / "cli-0").iterdir()} == names
    assert not (folder / "cli-1").exists()
    assert (folder / "cli-1.txt").read_text() == ""
    assert "epoch 2/2" in (folder / "cli-0.txt").read_text()
    result = json.loads((folder / "cli-0/result.json").read_text())["results"]["sgd"]
    weights = np.load(folder / "cli-0/params.npz")
    params = [{k: weights[f"[{i}]['{k}']"] for k in "Wb"} for i in range(2)]
    test = data.load("digits", flat=True).test
    scores = jtssm.mlp([64, 16, 10]).apply(params, test.x)
    assert abs(float((scores.argmax(1) == test.y).mean()) - result["test_accuracy"]) < 1e-6


def test_a_checkpoint_of_two_processes_goes_on_in_one(pair):
    folder, found, one = pair
    (begun,) = found[0]["kept"]["sgd"]["history"]
    resumed = runs.kept(folder, 2, runs.one_case, here=False)["sgd"]
    assert resumed["history"][0]["loss"] == begun["loss"]
    agree({"params": resumed["params"]}, {"params": one["sgd"]["params"]})


@pytest.mark.slow
def test_more_forms_shares_stops_and_a_divergence_in_two_processes(tmp_path):
    started = start(tmp_path, 2, "long")
    try:
        one = alone(runs.more_cases)
    finally:
        found = finished(started, tmp_path, "long")
    agree(found[0]["cases"], one)
    assert found[0] == found[1]
    rounds = [np.s_[:, :2], np.s_[:, 2:]]  # two workers in each process
    expected = {"local_sgd": by_hand(runs.sharers()["local_sgd"][0], rounds)}
    samples = [
        np.concatenate(arrays) for arrays in zip(runs.share(0, 2), runs.share(1, 2), strict=True)
    ]
    method, _ = runs.sharers()["pdadmm"]
    expected["pdadmm"] = runs.numbers(runs.fitted(method, samples, None))["params"]
    agree({k: v["params"] for k, v in found[0]["shares"].items()}, expected)
    assert found[0]["stopped"] == 2
    method, ways = runs.cases()["sgd"][0], {"epochs": 2, "steps_per_epoch": 6}
    whole = {
        "same": runs.batches(runs.X, runs.Y, 20),
        "own": runs.batches(*runs.streamed(runs.X, runs.Y, 2), 20),
    }
    streams = {
        name: runs.numbers(jtssm.fit(method, train, key=jax.random.key(0), **ways))
        for name, train in whole.items()
    }
    agree(found[0]["streams"], streams)
    assert [len(run["history"]) for run in found[0]["streams, begun"].values()] == [1, 1]
    assert found[0]["diverged"] == runs.diverged()
    assert found[0]["signalled"] == [2, True, signal.SIGTERM]


@pytest.mark.slow
def test_every_method_trains_to_the_numbers_of_one_process(tmp_path):
    found = together(tmp_path, 2, "cases")
    agree(found[0]["cases"], alone(runs.cases))
    assert found[1] == found[0]


@pytest.mark.slow
def test_slurms_variables_are_enough_for_processes_to_meet(tmp_path):
    """jax reads them; nothing else of SLURM is here."""
    command = [
        "train",
        "--method",
        "sgd",
        "--hidden",
        "16",
        "--epochs",
        "1",
        "--batch-size",
        "80",
        "--mesh",
        "pc=4",
        "--distributed",
        "--out",
        str(tmp_path / "run"),
    ]
    slurm = {
        "SLURM_JOB_ID": free_port(),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "jtssm.cli", *command],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            env=os.environ | slurm | {"SLURM_PROCID": i, "SLURM_LOCALID": i},
        )
        for i in "01"
    ]
    try:
        assert [process.wait(timeout=200) for process in started] == [0, 0]
    finally:
        end(started)
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
def test_four_processes_train_to_the_numbers_of_one_process(tmp_path):
    found = together(tmp_path, 4, "cases")
    agree(found[0]["cases"], alone(runs.cases))
    assert all(other == found[0] for other in found)


@pytest.mark.slow
def test_checkpoints_of_four_processes_go_on_in_two(tmp_path):
    begun = together(tmp_path, 4, "begin")
    resumed = together(tmp_path, 2, "go on")
    one = {n: {"params": v["params"]} for n, v in alone(runs.cases).items()}
    agree({n: {"params": v["params"]} for n, v in resumed[0].items()}, one)
    assert begun[0] != resumed[0]
    assert resumed[0] == resumed[1]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_process_is_lost_the_other_ends_and_the_run_goes_on_in_one(tmp_path, killed):
    started = start(tmp_path, 2, "endless")
    try:
        begun = time.monotonic()
        told = tmp_path / "epoch-1"
        while not told.exists() or int(told.read_text() or 0) < 5:
            assert all(process.poll() is None for process in started)
            assert time.monotonic() - begun < 200
            time.sleep(0.1)
        started[killed].send_signal(signal.SIGKILL)
        begun = time.monotonic()
        # lost_after, and what it takes to tell and to end
        assert started[1 - killed].wait(timeout=runs.LOST_AFTER + 10) != 0
        assert time.monotonic() - begun < runs.LOST_AFTER + 10
    finally:
        end(started)
    method, _, _ = runs.cases()["sgd"]
    train, key = (runs.X, runs.Y), jax.random.key(0)
    epochs = int(told.read_text()) + 3
    resumed = jtssm.fit(method, train, epochs=epochs, key=key, checkpoint=tmp_path / "checkpoints")
    whole = jtssm.fit(method, train, epochs=epochs, key=key)
    assert [line["epoch"] for line in resumed.history] == list(range(1, epochs + 1))
    assert resumed.history[0]["seconds"] != whole.history[0]["seconds"]
    agree({"params": runs.numbers(resumed)["params"]}, {"params": runs.numbers(whole)["params"]})


@pytest.mark.slow
def test_a_loop_of_ones_own_needs_nothing_of_fit(tmp_path):
    """The first programs of the two begin with other groups of devices."""
    found = together(tmp_path, 2, "loop")
    assert found[0] == found[1]
    for name, (method, _, _) in runs.few_cases().items():
        state, step = method.init(jax.random.key(0), runs.X, runs.Y), jax.jit(method.step)
        lead = method.batch_shape or (len(runs.X),)
        for i in range(3):
            rows = np.roll(np.arange(len(runs.X)), 16 * i)[: np.prod(lead)].reshape(lead)
            state, _ = step(state, runs.X[rows], runs.Y[rows])
        params = [a.tolist() for a in jax.tree.leaves(method.params(state))]
        agree({name: found[0][name]}, {name: {"params": params}})
