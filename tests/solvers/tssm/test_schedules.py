"""Schedules check themselves, are equal by their numbers, and are found by their names."""

import dataclasses

import numpy as np
import optax
import pytest

import jtssm
from jtssm import solvers
from jtssm.solvers.tssm import schedules, stored_gsam

NET = jtssm.mlp([4, 8, 8, 3])


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (solvers.Streaming, {"sweeps": 0}, r"sweeps: expected an integer of at least 1; got 0"),
        (
            solvers.Streaming,
            {"sweeps": 1.5},
            r"sweeps: expected an integer of at least 1; got 1\.5",
        ),
        (solvers.Streaming, {"sweeps": 1001}, r"sweeps: expected at most 1000, .*got 1001"),
        (solvers.Streaming, {"delay_power": -0.5}, r"delay_power: expected a finite .*got -0\.5"),
        (solvers.Stored, {"sweeps": True}, r"sweeps: expected an integer of at least 1; got True"),
        (solvers.Stored, {"sweeps": 1001}, r"sweeps: expected at most 1000, .*got 1001"),
        (solvers.Stored, {"weight_steps": 0}, r"weight_steps: expected an integer.*got 0"),
        (
            solvers.Stored,
            {"order": "random"},
            r"order: expected one of \['parallel', 'seq.*'random'",
        ),
    ],
)
def test_bad_numbers_are_refused(kind, given, message):
    with pytest.raises(ValueError, match=message):
        kind(**given)


def test_a_schedule_takes_its_own_numbers_alone_and_keeps_them():
    with pytest.raises(TypeError, match="unexpected keyword argument 'weight_steps'"):
        solvers.Streaming(weight_steps=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'delay_power'"):
        solvers.Stored(delay_power=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        solvers.Stored().sweeps = 2
    given = solvers.Stored(np.int8(2), np.int16(3))
    assert given == solvers.Stored(2, 3)
    assert (type(given.sweeps), type(given.weight_steps)) == (int, int)
    assert type(solvers.Streaming(delay_power=np.float32(0)).delay_power) is float


def test_names_stand_for_them_with_their_defaults():
    assert schedules.find("streaming") == solvers.Streaming(sweeps=1, delay_power=None)
    assert schedules.find("stored") == solvers.Stored(sweeps=1, weight_steps=None, order=None)
    assert schedules.find(solvers.Streaming(3)) == solvers.Streaming(3)


def test_an_order_is_gsams_alone_and_one_that_it_has_a_rule_for():
    ways = {"optimizer": optax.sgd(0.1), "batch_size": 6, "subnets": 2}
    assert set(schedules.ORDERS) == set(stored_gsam.ORDERS)
    for order in schedules.ORDERS:
        method = solvers.gsam(NET, schedule=solvers.Stored(order=order), **ways)
        assert method.settings.arguments["schedule"].order == order
        with pytest.raises(ValueError, match=rf"order: expected None with gsadmm.*got '{order}'"):
            solvers.gsadmm(NET, schedule=solvers.Stored(order=order), **ways)
