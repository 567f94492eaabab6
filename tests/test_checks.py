"""The front door's own tools."""

import warnings
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import jtssm
from jtssm import checks, solvers
from jtssm.train.stream import Stream

HERE = Path(__file__)
NET = jtssm.mlp([4, 6, 3])
X, Y = np.zeros((27, 4), np.float32), np.zeros(27, np.int32)


def line_of(text):
    """The number of this file's only line that ends with the text as a comment."""
    lines = HERE.read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.rstrip().endswith(f"# {text}")]
    return number


def at_home(told, text):
    assert [(Path(w.filename), w.lineno) for w in told] == [(HERE, line_of(text))]


def test_a_warning_points_at_the_line_that_called_the_package():
    with pytest.warns(UserWarning, match="look here") as told:
        checks.warn("look here")  # at once
    at_home(told, "at once")


def test_however_deep_in_the_package_it_is_raised():
    how = solvers.gsadmm(NET, subnets=2, optimizer=optax.sgd(0.1), batch_size=8, schedule="stored")
    with pytest.warns(UserWarning, match="3 of 27 samples are left out") as told:
        jtssm.fit(how, (X, Y), epochs=1, key=jax.random.key(0))  # samples left out
    at_home(told, "samples left out")


@pytest.mark.parametrize("ways", [{}, {"on_divergence": "halve", "halvings": 1}])
def test_divergences_and_halvings_too(ways):
    how = solvers.sgd(NET, optimizer=optax.sgd(np.inf), batch_size=9)
    with pytest.warns(RuntimeWarning, match="is not finite") as told:
        jtssm.fit(how, (X + 1, Y), epochs=1, key=jax.random.key(0), **ways)  # diverged
    assert len(told) == 1 + len(ways) // 2
    assert {(Path(w.filename), w.lineno) for w in told} == {(HERE, line_of("diverged"))}


def test_and_batches_that_are_others_after_a_checkpoint():
    how = solvers.sgd(NET, optimizer=optax.sgd(0.1), batch_size=9)
    feed = Stream(how, [(X, Y)] * 3, None, True)
    order = feed.order()
    order["places"][0] |= {"batch": 1, "passed": 5}
    with pytest.warns(UserWarning, match="expected the batches that were read before") as told:
        feed.resume(order)  # other batches
    at_home(told, "other batches")


def test_no_level_of_the_stack_is_counted_anywhere_else():
    root = Path(jtssm.__file__).parent
    found = [f for f in root.rglob("*.py") if "warnings.warn" in f.read_text()]
    assert found == [root / "checks.py"]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        eval("checks.warn('from code of no file')", {"checks": checks})
    assert told[0].filename == "<string>"
