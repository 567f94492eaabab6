"""The examples in the docstrings of the front doors run, and give what they show."""

import doctest

import pytest

import jtssm
from jtssm import callbacks, data, nn, sharding, solvers

DOORS = [
    jtssm.fit,
    jtssm.evaluate,
    jtssm.plan,
    jtssm.sweep,
    nn.Layer,
    nn.mlp,
    nn.from_nnx,
    nn.layers,
    nn.cut,
    nn.balanced_starts,
    solvers.gsadmm,
    solvers.gsam,
    solvers.pdadmm,
    solvers.ist,
    solvers.sgd,
    solvers.local_sgd,
    solvers.optimizer,
    sharding.place,
    sharding.make_mesh,
    data.load,
    data.from_arrays,
    data.pairs,
    callbacks.EarlyStopping,
    callbacks.Steps,
    callbacks.Averaging,
]


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_the_example_of_a_front_door_runs(door):
    (example,) = doctest.DocTestFinder(recurse=False).find(door, door.__name__, globs={})
    assert any(each.want for each in example.examples), "expected an example that shows something"
    said = []
    failed, _ = doctest.DocTestRunner().run(example, out=said.append)
    assert not failed, "".join(said)
