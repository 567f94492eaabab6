"""`on_divergence="halve"`: back to the last sound line, with half the steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import solvers
from jtssm.cli import main
from jtssm.data import synthetic
from jtssm.train import history
from tests.train.killed import METHODS, method, same
from tests.train.short_runs import KEY, NET, SMALL, X, Y, fail, stopping

RATE = 5.0  # leaves float32, and halved once too; halved twice it does not
TARGETS = np.eye(4, dtype=np.float32)[Y]


def explode(rate=RATE, **options):
    how = solvers.sgd(NET, optimizer=optax.sgd(rate), batch_size=20, loss="squared_error")
    given = {"epochs": 30, "key": KEY} | options
    return jtssm.fit(how, (X.astype(np.float32), TARGETS), **given)


def test_a_rate_that_diverges_is_rescued_by_halved_steps(tmp_path):
    file = history.HistoryFile(tmp_path / "history.csv")
    message = "is not finite; going on from epoch 0 with halved steps, [12] of 5 times"
    with pytest.warns(RuntimeWarning, match=message) as told:
        result = explode(on_divergence="halve", callbacks=[file])
    assert [str(warning.message) for warning in told] == [h.message for h in result.halvings]
    assert result.divergence is None
    assert len(result.halvings) == 2
    assert float(result.state.pace) == 0.25
    assert [line["epoch"] for line in result.history] == [*range(1, 31)]
    assert [line["halvings"] for line in result.history] == [2] * 30
    assert result.history[-1]["loss"] < 0.5
    epochs = [line.split(",")[0] for line in (tmp_path / "history.csv").read_text().split()]
    assert epochs == ["epoch", *map(str, range(1, 31))]
    # it went back to the start: a quarter of the rate comes to the same
    quarter = explode(rate=RATE / 4, epochs=3)
    for line, other in zip(result.history, quarter.history, strict=False):
        np.testing.assert_allclose(line["loss"], other["loss"], rtol=1e-4)


@pytest.mark.filterwarnings("ignore:step .* is not finite")
def test_steps_are_halved_at_most_so_often_and_a_checkpoint_makes_no_difference(tmp_path):
    bounded = explode(on_divergence="halve", halvings=1)
    assert len(bounded.halvings) == 1
    assert bounded.divergence is not None
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(bounded.params))
    whole = explode(on_divergence="halve")
    ways = {"on_divergence": "halve", "checkpoint": tmp_path, "every": 4}
    with pytest.raises(OSError, match="broken off"):
        explode(callbacks=[stopping(1, fail)], **ways)  # on the way out, and nobody knows yet
    on = explode(**ways)
    assert [h.step for h in on.halvings] == [h.step for h in whole.halvings]
    assert same(on, whole)


def test_a_line_from_which_a_blow_up_begins_is_no_place_to_go_back_to(tmp_path):
    """Adam's rate jumps in epoch 3 and is soon beyond float32: back to the end of epoch 2."""
    rates = optax.piecewise_constant_schedule(1e-2, {13: 1e38})
    how = solvers.sgd(NET, optimizer=optax.adam(rates), batch_size=20)
    with pytest.warns(RuntimeWarning, match="is not finite"):
        result = jtssm.fit(
            how, (X.astype(np.float32), Y), epochs=5, key=KEY, on_divergence="halve", halvings=2
        )
    assert ["going on from epoch 2" in h.message for h in result.halvings] == [True, True]
    assert result.divergence is not None
    assert [line["epoch"] for line in result.history] == [1, 2]
    assert result.halvings[0].step >= 13


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in ("gsadmm", "pdadmm", "ist") else pytest.mark.slow)
        for n in METHODS
    ],
)
def test_the_pace_multiplies_the_steps_of_every_method(name):
    """At pace 0 the matrices stay where they are, at pace 1/2 they go another way than at 1."""
    how = method(name)
    x, y = synthetic.separable(0, 120, 4, 3, np.float64)
    start = how.init(KEY, x, y)
    if not how.resident:
        shape = how.batch_shape
        x, y = x[: np.prod(shape)].reshape(*shape, -1), y[: np.prod(shape)].reshape(shape)

    @jax.jit
    def after(pace):
        state = start._replace(pace=pace)
        return jax.lax.fori_loop(0, 4, lambda _, s: how.step(s, x, y)[0], state)

    def matrices(state):
        return [np.asarray(a) for a in jax.tree.leaves(how.params(state)) if a.ndim == 2]

    still, half, whole = (matrices(after(jnp.float64(pace))) for pace in (0.0, 0.5, 1.0))
    for a, b in zip(still, matrices(start), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)
    for other in (still, half):
        assert max(np.abs(a - b).max() for a, b in zip(whole, other, strict=True)) > 1e-4


@pytest.mark.filterwarnings("ignore:step .* is not finite")
def test_the_command_line_halves_steps(tmp_path):
    options = ["--optimizer", "sgd", "--learning-rate", "1e30", "--rates", "constant"]
    options += ["--on-divergence", "halve", "--halvings", "2", "--out", str(tmp_path)]
    assert main(["train", *SMALL, *options]) == 1
