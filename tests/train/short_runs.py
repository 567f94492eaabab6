"""Short runs with checkpoints, and ways in which they end, for the tests of checkpoints and signals."""

from functools import cache
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import jtssm
from jtssm import solvers
from jtssm.data import synthetic

NET = jtssm.mlp([4, 8, 8, 4])
X, Y = synthetic.separable(0, 120, 4, 4, np.float64)
KEY = jax.random.key(0)


adam = cache(optax.adam)  # one object a rate: what it does is found out once


def sgd(rate=0.1, net=NET, **options):
    return solvers.sgd(net, **{"optimizer": adam(rate), "batch_size": 20} | options)


def fit(folder=None, how=None, epochs=3, **options):
    options |= {} if folder is None else {"checkpoint": folder}
    return jtssm.fit(how or sgd(), (X, Y), **{"epochs": epochs, "key": KEY} | options)


def stopping(after, action=lambda: True):
    """A callback that acts after an epoch."""
    return lambda epoch: action() if epoch.record["epoch"] == after else None


def fail():
    raise OSError("broken off")


def broken_off(folder, after=2, **options):
    """A run that an exception ends, its checkpoints in the folder."""
    with pytest.raises(OSError, match="broken off"):
        fit(folder, callbacks=[stopping(after + 1, fail)], **{"epochs": after + 2} | options)
    return steps_in(folder)


def steps_in(folder):
    """The checkpoints in a folder."""
    return sorted(int(path.name) for path in (Path(folder) / "steps").iterdir())


def complete(folder, *args, **options):
    """What a complete run returns, which says that nothing was trained."""
    with pytest.warns(UserWarning, match=r"checkpoint: complete in .*, nothing trained"):
        return fit(folder, *args, **options)


SMALL = ["--method", "sgd", "--hidden", "16", "--epochs", "3", "--batch-size", "60"]
