"""Benchmarks run end to end with small settings, and write nothing then."""

import pytest

from benchmarks import gsadmm_mnist, record


def test_gsadmm_mnist_runs_small(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gsadmm_mnist", "--smoke"])
    monkeypatch.setattr(record, "write", lambda *_: pytest.fail("a smoke run wrote a result"))
    gsadmm_mnist.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if "step ratio" in line]
    assert [line.split("  ")[0] for line in lines] == list(gsadmm_mnist.METHODS)
    assert "step ratio 1.00" in lines[0]


def test_runs_are_timed_in_turns():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = record.alternating(runs, repeats=2)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert [len(s) for s in seconds.values()] == [2, 2]
    assert record.spread([1.0, 2.0, 3.0]) == {"median": 2.0, "quartiles": [1.5, 2.5]}
