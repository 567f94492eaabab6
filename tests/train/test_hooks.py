"""Hooks and callbacks: what is called when, what stops, and what may stand in a line."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import solvers
from jtssm.train.history import HistoryFile
from jtssm.train.hooks import Hook
from jtssm.train.position import Sound
from tests.train.killed import same
from tests.train.short_runs import KEY, NET, X, Y, fail, fit, steps_in


class Noting(Hook):
    """Notes every moment with where the run stands."""

    def __init__(self):
        self.seen = []

    def on_begin(self, trainer):
        self.seen.append(("begin", trainer.at.steps))

    def on_chunk(self, trainer, infos):
        self.seen.append(("chunk", trainer.at.steps, len(infos.loss)))

    def on_line(self, trainer, epoch):
        self.seen.append(("line", epoch.record["epoch"], trainer.infos.loss.shape))

    def on_place(self, trainer):
        self.seen.append(("place", trainer.at.steps, trainer.at.chunks))

    def on_divergence(self, trainer, divergence):
        self.seen.append(("divergence", divergence.step))
        return False

    def on_end(self, trainer):
        self.seen.append(("end", trainer.at.steps))


def test_a_hook_is_called_at_its_moments(monkeypatch):
    """6 steps an epoch in chunks of 3: a place after the first chunk, and after the line."""
    monkeypatch.setattr("jtssm.train.batches.CHUNK", 3)
    noting = Noting()
    fit(epochs=2, callbacks=[noting])
    epochs = [
        [
            ("chunk", 6 * i + 3, 3),
            ("place", 6 * i + 3, 1),
            ("chunk", 6 * i + 6, 3),
            ("line", i + 1, (6,)),
            ("place", 6 * i + 6, 0),
        ]
        for i in range(2)
    ]
    assert noting.seen == [("begin", 0), *epochs[0], *epochs[1], ("end", 12)]


def test_a_hook_is_told_of_a_divergence_and_of_the_end_behind_it():
    noting = Noting()
    how = solvers.sgd(NET, optimizer=optax.sgd(1e200), batch_size=20)
    with pytest.warns(RuntimeWarning, match="is not finite"):
        result = fit(how=how, callbacks=[noting])
    assert noting.seen[-2:] == [("divergence", result.divergence.step), ("end", 0)]


def test_a_hook_of_ones_own_may_go_back_after_a_divergence():
    """From the start, with half the steps, until they are small enough; the history is a whole one."""

    class Again(Hook):
        def on_begin(self, trainer):
            self.start = Sound(trainer.state, trainer.at)

        def on_divergence(self, trainer, divergence):
            state = self.start.state
            self.start = self.start._replace(state=state._replace(pace=state.pace * 1e-100))
            trainer.go_back(self.start)
            return True

    how = solvers.sgd(NET, optimizer=optax.sgd(1e200), batch_size=20)
    result = fit(how=how, callbacks=[Again()])
    assert result.divergence is None
    assert [line["step"] for line in result.history] == [6, 12, 18]
    assert float(result.state.pace) == pytest.approx(1e-200)


@pytest.mark.parametrize(
    "truth", [True, np.True_, np.bool_(1), np.array([True]), jnp.array(True)], ids=repr
)
def test_a_callback_stops_with_any_true_bool(truth):
    assert len(fit(callbacks=[lambda epoch: truth]).history) == 1


@pytest.mark.parametrize(
    "returned", [None, False, np.False_, jnp.array(False), 17, "text", 0.5, np.ones(3, bool)]
)
def test_what_a_callback_happens_to_return_does_not_stop(returned):
    """file.write returns a number, which is true."""
    assert len(fit(callbacks=[lambda epoch: returned]).history) == 3


def test_all_callbacks_see_a_line_that_one_of_them_stops_at():
    seen = []
    least = lambda epoch: np.min([line["loss"] for line in epoch.history]) < 1e9
    fit(callbacks=[least, lambda epoch: seen.append(epoch.record["epoch"])])
    assert seen == [1]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_numpy_and_jax_scalars_in_a_line_stand_in_checkpoints_and_files(tmp_path, suffix):
    def add(epoch):
        epoch.record["best"] = np.min([line["loss"] for line in epoch.history])
        epoch.record["norm"] = jnp.linalg.norm(epoch.method.params(epoch.state)[0]["W"])
        epoch.record["count"] = np.int64(epoch.record["epoch"])

    file = tmp_path / f"history.{suffix}"
    ways = {"callbacks": [add, HistoryFile(file)]}
    fit(tmp_path / "run", epochs=2, **ways)
    result = fit(tmp_path / "run", epochs=3, **ways)
    assert [type(a) for name, a in result.history[0].items() if name == "norm"] == [float]
    assert [line["count"] for line in result.history] == [1, 2, 3]
    text = file.read_text().splitlines()
    lines = list(csv.DictReader(text)) if suffix == "csv" else [json.loads(line) for line in text]
    assert [float(line["norm"]) for line in lines] == [line["norm"] for line in result.history]
    assert float(lines[2]["best"]) == min(line["loss"] for line in result.history)


def test_callbacks_are_functions_or_hooks():
    with pytest.raises(
        ValueError, match=r"callbacks: expected a list of functions, e.g. \[print\]; got"
    ):
        fit(callbacks=[Noting(), 3])


def filling(**options):
    """gsADMM of 4 subnetworks, 2 steps an epoch: 3 steps pass before labels meet an output."""
    net = jtssm.mlp([4, 8, 8, 8, 4])
    ways = {"optimizer": optax.adam(1e-2), "batch_size": 20, "microbatches": 1}
    how = solvers.gsadmm(net, subnets=4, **ways)
    return jtssm.fit(how, (X[:40], Y[:40]), epochs=3, key=KEY, **options)


def test_what_was_not_measured_yet_is_nan_in_history_files_and_bar(tmp_path, capsys):
    files = [HistoryFile(tmp_path / f"history.{suffix}") for suffix in ("csv", "jsonl")]
    result = filling(callbacks=files, progress=True)
    names = ["loss", "accuracy", "coupling", "dual_residual", "primal_residual"]
    unknown = [[bool(np.isnan(line[name])) for name in names] for line in result.history]
    assert unknown == [[True] * 5, [False] * 5, [False] * 5]
    assert [line["samples"] for line in result.history] == [0, 20, 40]
    first, *_ = csv.DictReader((tmp_path / "history.csv").read_text().splitlines())
    assert {first[name] for name in names} == {"nan"}
    first = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[0])
    assert {first[name] for name in names} == {None}  # JSON knows no nan
    assert "loss=nan" in capsys.readouterr().err


class Ending(Hook):
    """Ends a run after so many steps, between two lines."""

    def __init__(self, steps):
        self.steps = steps

    def on_chunk(self, trainer, infos):
        if trainer.at.steps == self.steps:
            fail()


def test_a_pipeline_that_fills_is_no_divergence_and_is_gone_on_from(tmp_path, monkeypatch):
    """Checkpoints every 2 of 12 steps an epoch; the first two keep steps of which nothing is known."""
    monkeypatch.setattr("jtssm.train.batches.CHUNK", 2)
    net = jtssm.mlp([4, 8, 8, 8, 4])
    ways = {"optimizer": optax.adam(1e-2), "batch_size": 20, "microbatches": 1}
    how = solvers.gsadmm(net, subnets=4, **ways)
    ways = {"how": how, "epochs": 4, "evaluate_every": 2, "on_divergence": "halve"}
    with pytest.raises(OSError, match="broken off"):
        fit(tmp_path, every=2, callbacks=[Ending(6)], **ways)
    assert steps_in(tmp_path) == [2, 4]
    whole, on = fit(**ways), fit(tmp_path, every=2, **ways)
    assert same(whole, on)
    assert whole.halvings == ()
    assert [line["samples"] for line in on.history] == [9 * 20, 12 * 20]


def test_a_history_shows_what_its_method_has_and_no_more():
    line = fit(epochs=1).history[0]
    assert list(line) == ["epoch", "step", "seconds", "loss", "accuracy", "samples"]


def test_a_result_and_an_epoch_are_told_in_a_few_lines():
    told = []
    result = fit(epochs=2, validation=(X, Y), callbacks=[lambda e: told.append(repr(e))])
    last = result.history[-1]
    title, line = repr(result).split("\n")
    assert title == "sgd, 2 epochs, 12 steps"
    assert f"loss {last['loss']:.4g}, accuracy {last['accuracy']:.4g}" in line
    assert f"validation_accuracy {last['validation_accuracy']:.4g}" in line
    assert told[1].startswith("epoch 2 of sgd: step 12, seconds ")
    assert told[1].endswith(line.split(", ")[-1])


def test_a_result_tells_what_ended_it():
    how = solvers.sgd(NET, optimizer=optax.sgd(1e200), batch_size=20)
    with pytest.warns(RuntimeWarning, match="is not finite"):
        result = fit(how=how)
    assert repr(result).startswith("sgd, 0 epochs, 0 steps\n  step ")
    assert repr(result).endswith(result.divergence.message)
    result = fit()._replace(interrupted=True, signal=15)
    assert repr(result).endswith("\n  interrupted by SIGTERM")
