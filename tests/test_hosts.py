"""The benchmark of two hosts: namespaces that go, processes that end, rows that are compared."""

import os
import re
import subprocess
import sys

import pytest
from jax.sharding import AbstractMesh

from benchmarks import host_cases, host_control, hosts, namespaces, record
from jtssm import sharding

LACKING = namespaces.lacking("ip", "tc", "taskset")
needs_hosts = pytest.mark.skipif(LACKING is not None, reason=f"network namespaces: {LACKING}")
WEIGHTS = 785 * 1024 + 5 * 1025 * 1024 + 1025 * 10  # of the perceptron


def my_namespaces():
    """Those that this process has made."""
    there = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return re.findall(rf"jtssm-{os.getpid()}-\d", there.stdout)


@needs_hosts
def test_namespaces_are_removed_whatever_happens_in_them():
    def interrupted():
        with namespaces.joined() as link:
            assert sorted(my_namespaces()) == sorted(link.names)
            link.limit("10mbit")
            shown = ["tc", "-n", link.names[1], "qdisc", "show", "dev", "link1"]
            assert "rate 10Mbit" in subprocess.run(shown, capture_output=True, text=True).stdout
            before = link.sent()
            ping = "import socket; s = socket.socket(2, 2); s.sendto(bytes(1000), ('192.0.2.2', 9))"
            subprocess.run([*link.enter(0), sys.executable, "-c", ping], check=True)
            assert 1042 <= link.sent()[0] - before[0] < 1600  # with its headers
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert my_namespaces() == []


class Nowhere(namespaces.Link):
    """A link whose hosts are this one."""

    def enter(self, this):
        return []


@needs_hosts
@pytest.mark.parametrize(
    ("does", "error"),
    [
        ("import time; time.sleep(60)", (TimeoutError, "no answer within 1 s")),
        ("raise KeyError('step')", (RuntimeError, "process [01] ended: KeyError: 'step'")),
    ],
)
def test_a_process_that_hangs_or_ends_is_told_and_ended(does, error):
    process = [sys.executable, "-c", does]
    pair = host_control.Hosts(Nowhere(("", "")), 2, process=process)
    with pytest.raises(error[0], match=error[1]), pair:
        pair.answers(1 if error[0] is TimeoutError else 60)
    assert all(p.returncode is not None for p in pair.started)


def test_rows_of_hosts_are_compared_and_predictions_ranked():
    row = {"network": "mlp", "against": "one host, SGD", "samples": 10, "link": "none"}
    timed = lambda measured, predicted: {
        "step_seconds": {"median": measured},
        "predicted_seconds": predicted,
        "bytes_crossed": 0.0,
    }
    one = row | timed(1.0, 2.0) | {"case": "one host, SGD"}
    two = row | timed(6.0, 3.0) | {"case": "IST", "link": "free", "samples": 20}
    lost = row | {"case": "grid", "link": "free", "error": "no answer"}
    found = hosts.compared(two, [0.5, 1.0, 5.0], 10)
    assert (found["ratio"], found["against_seconds"]["median"]) == (pytest.approx(3.0), 1.0)
    (found,) = hosts.agreements([one, two, lost], ["free"], "predicted_seconds").values()
    assert found["spearman"] == pytest.approx(-1)  # a sample: 0.2 and 0.15 predicted, 0.1 and 0.3
    assert (found["least_ratio"], found["largest_ratio"]) == (0.5, 2.0)


def test_a_row_is_predicted_anew_by_a_machine_as_slow_as_its_networks_plain_steps():
    machine = {"free": sharding.MACHINES["host"]}
    plain = {"network": "layers", "case": "one host, pdADMM", "against": "one host, pdADMM"}
    rows = [
        plain | {"link": "none", "step_seconds": {"median": 3.0}, "predicted_seconds": 1.0},
        plain | {"link": "free", "case": "pdADMM", "predicted_seconds": 1.0},
        plain | {"link": "free", "case": "pdADMM", "error": "no answer"},
    ]
    one, two, lost = hosts.fitted_rows(rows, machine)
    assert one["fitted_seconds"] == pytest.approx(3.0)
    unfitted = [
        expected("layers", name)["predicted_seconds"] for name in ("one host, pdADMM", "pdADMM")
    ]
    # messages are as fast as they were
    assert 3.0 * unfitted[1] / unfitted[0] > two["fitted_seconds"] > 1.0
    assert "fitted_seconds" not in lost


def expected(network, name):
    trained = host_cases.NETWORKS[network]
    case, method = trained.cases[name], trained.method(name)
    mesh = AbstractMesh(case.mesh or (1, 1, 1), sharding.AXES)
    samples = trained.batch if method.resident else None
    return hosts.expected(method, sharding.MACHINES["host"], mesh, samples)


@pytest.mark.parametrize(
    ("network", "name", "numbers"),
    [
        ("mlp", "gsADMM, n = 2", 128 * 1024),
        pytest.param("mlp", "data parallel", WEIGHTS, marks=pytest.mark.slow),
        pytest.param("mlp", "local SGD, R = 20", WEIGHTS, marks=pytest.mark.slow),
        pytest.param("mlp", "placed, Adam, gsADMM, n = 7", 0, marks=pytest.mark.slow),
        pytest.param("transformer", "gsADMM, n = 2", 32 * 32 * 256, marks=pytest.mark.slow),
    ],
)
def test_bytes_of_a_case_are_a_boundary_or_all_gradients(network, name, numbers):
    scalars = expected(network, name)["bytes_by_formula"] - 4 * numbers
    assert 0 <= scalars <= 4 * 16  # that a step shows


@pytest.mark.slow
def test_every_case_is_predicted_and_has_a_baseline():
    for network, trained in host_cases.NETWORKS.items():
        assert network in host_cases.TITLES
        for name, case in trained.cases.items():
            assert case.against in trained.cases
            seconds = expected(network, name)["predicted_seconds"]
            assert (network, name) == ("layers", "pdADMM") if seconds is None else seconds > 0


@needs_hosts
@pytest.mark.slow
def test_hosts_run_small_and_what_crosses_is_what_the_formula_says(monkeypatch, capsys):
    monkeypatch.setattr(record, "write", lambda *_: pytest.fail("a smoke run wrote a result"))
    monkeypatch.setattr("sys.argv", ["hosts", "--smoke"])
    hosts.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line[13:47].strip() for line in lines[:2]] == ["one host, SGD", "gsADMM, n = 2"]
    share = float(re.search(r"\(([\d.]+) x formula\)", lines[1])[1])
    assert 1.0 <= share < 1.1
    assert "measured" in lines[1]
    for line, key in zip(lines[2:], ("predicted", "fitted"), strict=True):
        assert line.startswith(f"smoke, 100mbit, {key}: spearman")
    assert my_namespaces() == []


def test_what_is_measured_again_takes_the_place_of_the_same_case():
    row = lambda case, link, step: {"network": "a", "case": case, "link": link, "step": step}
    table = {"rows": [row("x", "free", 1), row("y", "free", 2)], "command": "c", "date": "d"}
    table |= {"commit": "e", "machines": {}}
    again = [row("x", "free", 3), row("x", "1gbit", 4)]
    rows, content = hosts.among(table, again, {"titles": {}})
    assert [r["step"] for r in rows] == [3, 2, 4]
    first, second = content["apart"]
    assert (first["cases"], first["commit"], second) == ("all others", "e", {"cases": [("a", "x")]})
    _, content = hosts.among(table | content | {"commit": "f"}, again[1:], {})
    first, second, third = content["apart"]
    assert (first["commit"], second["commit"], second["cases"]) == ("e", "f", [("a", "x")])
    assert third == {"cases": [("a", "x")]}
