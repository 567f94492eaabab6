"""A machine as fast as a network's own steps were measured to be."""

from dataclasses import asdict

import optax
import pytest

import jtssm
from jtssm import planning, sharding, solvers
from jtssm.planning import trials
from jtssm.sharding.cost.machines import Machine

NET = jtssm.mlp([12, 16, 16, 8])
MACHINE = Machine("own", 1e9, 1e10, 1e8, 1e-4, 1e-6, "made up", activation=1e-9, rates=((1, 0.5),))
PLAIN = {"optimizer": optax.sgd(0.1, momentum=0.9), "batch_size": 8}
SGD = solvers.sgd(NET, **PLAIN)


def seconds(method, machine, **sizes):
    return sharding.step_seconds(method, machine, **sizes)


def test_its_steps_take_what_was_measured_and_messages_what_they_took():
    got = sharding.fitted(MACHINE, SGD, 0.25)
    assert seconds(SGD, got).total == pytest.approx(0.25, rel=1e-12)
    slower = 0.25 / seconds(SGD, MACHINE).total
    cut = solvers.gsadmm(NET, subnets=3, microbatches=1, **PLAIN)
    before, after = (seconds(cut, m, subnet=3) for m in (MACHINE, got))
    assert after.compute == pytest.approx(slower * before.compute, rel=1e-12)
    assert after.messages == before.messages > 0
    same = ("name", "link", "latency", "rates", "capacity", "algorithm", "combined")
    assert [asdict(got)[k] for k in same] == [asdict(MACHINE)[k] for k in same]
    assert "a step of sgd was measured" in got.source


def test_a_resident_method_is_told_its_samples():
    method = solvers.pdadmm(jtssm.mlp([12, 16, 8]))
    got = sharding.fitted(MACHINE, method, 0.5, samples=40)
    assert seconds(method, got, samples=40).total == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("given", [0, -1.0, float("nan"), "1"])
def test_seconds_are_above_zero(given):
    with pytest.raises(ValueError, match=r"seconds: expected a finite number above 0, e\.g\. 1\.0"):
        sharding.fitted(MACHINE, SGD, given)


def test_a_machine_goes_by_its_name_and_a_method_is_one():
    assert sharding.fitted("host", SGD, 0.5).link == sharding.MACHINES["host"].link
    with pytest.raises(ValueError, match="machine: expected a Machine, one of"):
        sharding.fitted("hots", SGD, 0.5)
    with pytest.raises(ValueError, match="method: expected"):
        sharding.fitted("host", NET, 0.5)


def test_a_machine_whose_steps_take_no_time_cannot_be_fitted():
    inf = float("inf")
    ideal = Machine("ideal", inf, inf, 1e8, 1e-4, 0, "made up")
    with pytest.raises(ValueError, match="machine: expected one whose products take time"):
        sharding.fitted(ideal, SGD, 0.1)


def test_plain_steps_are_run_here(monkeypatch):
    seen = []
    run = trials.measured_here
    monkeypatch.setattr(
        planning, "measured_here", lambda method: seen.append(run(method)) or seen[0]
    )
    got = planning.fitted_here(NET, 8, MACHINE, optimizer=PLAIN["optimizer"])
    assert seen[0] > 0
    assert seconds(SGD, got).total == pytest.approx(seen[0], rel=1e-12)
    with pytest.raises(ValueError, match="batch: expected an integer of at least 1"):
        planning.fitted_here(NET, 0, MACHINE)
