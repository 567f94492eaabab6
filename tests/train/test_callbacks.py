"""Callbacks for daily use, steps that are told, results that are written and read."""

import json
import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import callbacks, sharding, solvers
from jtssm.train.every_steps import EverySteps
from jtssm.train.hooks import Hook
from jtssm.train.written import save_params
from tests.train.short_runs import KEY, NET, X, Y, adam, fit, sgd

HOW = sgd()


class Numbers:
    """A callback that writes given numbers into the lines, before a hook reads them."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def __call__(self, epoch):
        epoch.record["number"] = self.numbers[epoch.record["epoch"] - 1]


def stopped(numbers, **options):
    """The number of epochs, and what stopped them."""
    stop = callbacks.EarlyStopping("number", **options)
    result = fit(how=HOW, epochs=len(numbers), callbacks=[Numbers(*numbers), stop])
    return len(result.history), stop


@pytest.mark.parametrize(
    ("numbers", "options", "epochs", "best"),
    [
        ([3.0, 2, 2.5, 2.2, 1, 1], {"patience": 2}, 4, (2.0, 2)),
        ([3.0, 2, 2.5, 1.9, 2.5, 2], {"patience": 2}, 6, (1.9, 4)),
        ([3.0, 2.9, 2.8, 2.7], {"patience": 2, "least": 0.15}, 4, (2.8, 3)),
        ([1.0, 2, 3, 2], {"patience": 1, "mode": "max"}, 4, (3.0, 3)),
        ([np.nan, np.nan, 1.0, 2.0], {"patience": 2}, 2, (np.inf, 0)),
        ([1.0, np.nan, 0.5, 0.6], {"patience": 1}, 2, (1.0, 1)),
    ],
)
def test_training_stops_when_a_number_no_longer_improves(numbers, options, epochs, best):
    found, stop = stopped(numbers, **options)
    assert found == epochs
    assert (stop.best, stop.best_epoch) == best


def test_accuracies_are_to_rise_and_losses_to_fall():
    modes = [callbacks.EarlyStopping(n).mode for n in ("valid_accuracy", "valid_loss", "top5")]
    assert modes == ["max", "min", "min"]


def test_the_weights_of_the_best_line_are_kept_though_training_goes_on():
    seen = []
    keep = lambda epoch: seen.append(jax.tree.map(np.array, epoch.method.params(epoch.state)))
    stop = callbacks.EarlyStopping("number", patience=3, keep_params=True)
    result = fit(how=HOW, epochs=5, callbacks=[Numbers(3.0, 1, 2, 2, 2), keep, stop])
    assert len(result.history) == 5
    assert jax.tree.all(jax.tree.map(np.array_equal, stop.params, seen[1]))
    assert not np.array_equal(stop.params[0]["W"], result.params[0]["W"])


def test_a_run_that_goes_on_counts_the_lines_before(tmp_path):
    numbers = Numbers(1.0, 2, 2, 2, 2, 2)
    stop = lambda: callbacks.EarlyStopping("number", patience=3)
    fit(tmp_path, how=HOW, epochs=3, callbacks=[numbers, stop()])
    on = stop()
    result = fit(tmp_path, how=HOW, epochs=6, callbacks=[numbers, on])
    assert len(result.history) == 4
    assert (on.best, on.best_epoch) == (1.0, 1)


def test_lines_that_a_divergence_drops_count_no_more():
    """A line of loss 1 that is dropped is not the best."""
    stop = callbacks.EarlyStopping("loss", patience=5, keep_params=True)

    class Trained:
        history = [{"epoch": 1, "loss": 3.0}]
        state = None

    stop.on_begin(Trained)
    Trained.history.append({"epoch": 2, "loss": 1.0})
    stop._see(Trained.history[-1])
    stop.params = [1]
    del Trained.history[1:]
    assert stop.on_divergence(Trained, None) is False
    assert (stop.best, stop.best_epoch, stop.params) == (3.0, 1, None)


def test_steps_are_told_in_groups_whatever_the_chunks_are(monkeypatch):
    """18 steps in chunks of 4 and 2, told every 5: their losses are means of the steps' own."""
    monkeypatch.setattr("jtssm.train.batches.CHUNK", 4)
    losses, told = [], []

    class Losses(Hook):
        def on_chunk(self, trainer, infos):
            losses.extend(infos.loss.tolist())

    fit(how=HOW, epochs=3, callbacks=[Losses(), callbacks.Steps(told.append)], log_every=5)
    assert [record["step"] for record in told] == [5, 10, 15]
    assert [record["samples"] for record in told] == [100] * 3
    means = [np.mean(losses[i : i + 5]) for i in (0, 5, 10)]
    np.testing.assert_allclose([record["loss"] for record in told], means, rtol=1e-12)


def test_every_step_can_be_told_and_none_is_by_default():
    told = []
    fit(how=HOW, epochs=1, callbacks=[callbacks.Steps(told.append)])
    assert told == []
    fit(how=HOW, epochs=1, callbacks=[callbacks.Steps(told.append)], log_every=1)
    assert [record["step"] for record in told] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="log_every: expected an integer of at least 1; got 0"):
        fit(how=HOW, log_every=0)


def test_steps_before_a_divergence_are_not_in_the_next_group():
    told = []

    class At:
        steps = 3

    class Trained:
        at = At

    every = EverySteps(4, [callbacks.Steps(told.append)])
    info = lambda *losses: jtssm.Info(np.array(losses), np.array(losses), np.ones(len(losses)), {})
    every.on_chunk(Trained, info(9.0, 9.0, 9.0))
    every.on_divergence(Trained, None)
    At.steps = 4
    every.on_chunk(Trained, info(1.0, 1.0, 1.0, 1.0))
    assert [(record["step"], record["loss"]) for record in told] == [(4, 1.0)]


@pytest.mark.parametrize(
    "placed", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one device", "a mesh"]
)
def test_the_average_of_weights_is_that_of_a_loop(monkeypatch, placed):
    """Chunks of 2 steps; the twin averages what a hook saw of the weights at each of them."""
    monkeypatch.setattr("jtssm.train.batches.CHUNK", 2)
    seen = []

    class Weights(Hook):
        def on_begin(self, trainer):
            seen.append(self.of(trainer))

        def on_chunk(self, trainer, infos):
            seen.append(self.of(trainer))

        def of(self, trainer):
            return jax.tree.map(np.array, sharding.gathered(trainer.method.params(trainer.state)))

    how = HOW
    if placed:
        net = jtssm.mlp([4, 8, 8, 4])
        how = solvers.gsadmm(net, subnets=2, optimizer=adam(0.1), batch_size=20)
        how = sharding.place(how, sharding.make_mesh(2, 1, 2))
    average = callbacks.Averaging(0.8, validation={"valid": (X, Y)})
    result = fit(how=how, epochs=2, callbacks=[Weights(), average])
    expected = seen[0]
    for weights in seen[1:]:
        expected = jax.tree.map(lambda a, b: 0.8**2 * a + (1 - 0.8**2) * b, expected, weights)
    assert len(seen) == 7
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        average.params,
        expected,
    )
    outputs = np.asarray(how.network.apply(expected, X))
    shifted = outputs - outputs.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(Y)), Y]
    np.testing.assert_allclose(result.history[-1]["average_valid_loss"], losses.mean(), rtol=1e-5)


def test_an_average_begins_anew_after_a_divergence():
    average = callbacks.Averaging(0.9)

    class Method:
        mesh = None
        params = staticmethod(lambda state: state)

    class Trained:
        method = Method
        state = [{"W": jnp.ones(2)}]

        class at:
            steps = 7

    average.on_begin(Trained)
    Trained.state = [{"W": jnp.zeros(2), "count": jnp.arange(2)}]
    assert average.on_divergence(Trained, None) is False
    assert average.params[0]["W"].tolist() == [0, 0]
    assert average.params[0]["count"].dtype == jnp.arange(2).dtype


class Writer:
    """tensorboardX.SummaryWriter."""

    def __init__(self, folder):
        self.folder, self.scalars, self.closed = folder, [], False
        Writer.last = self

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def flush(self):
        assert not self.closed

    def close(self):
        self.closed = True


def test_tensorboard_is_told_lines_and_steps(monkeypatch, tmp_path):
    module = ModuleType("tensorboardX")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    board = callbacks.TensorBoard(tmp_path)
    skip = Numbers(np.nan, 1.5)
    result = fit(how=HOW, epochs=2, validation=(X, Y), callbacks=[skip, board], log_every=4)
    written = Writer.last
    assert written.closed
    assert written.folder == str(tmp_path)
    found = {(tag, step): value for tag, value, step in written.scalars}
    for line in result.history:
        assert found["validation/loss", line["step"]] == line["validation_loss"]
    assert ("number", 6) not in found
    assert found["number", 12] == 1.5
    assert sorted(step for tag, step in found if tag == "steps/loss") == [4, 8, 12]


def test_real_tensorboard_files_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboardX")
    fit(how=HOW, epochs=1, callbacks=[callbacks.TensorBoard(tmp_path / "events")])
    (file,) = (tmp_path / "events").iterdir()
    assert b"accuracy" in file.read_bytes()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: callbacks.EarlyStopping(""), "monitor: expected a name"),
        (lambda: callbacks.EarlyStopping(patience=0), "patience: expected an integer of at least"),
        (lambda: callbacks.EarlyStopping(mode="up"), "mode: expected one of"),
        (lambda: callbacks.EarlyStopping(least=-1), "least: expected a finite number above 0"),
        (
            lambda: fit(how=HOW, callbacks=[callbacks.EarlyStopping()]),
            r"monitor: expected a number .*'loss'.*got 'validation_loss': .*fit\(validation",
        ),
        (lambda: callbacks.Steps(3), "function: expected a function of a dict, e.g. print; got 3"),
        (lambda: callbacks.Averaging(1.0), "decay: expected a share of at least 0 and below 1"),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_tensorboard_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(
        ImportError, match=r"needs tensorboardX: pip install 'jtssm\[tensorboard\]'"
    ):
        callbacks.TensorBoard(tmp_path)


def test_a_result_is_written_and_its_weights_read_back(tmp_path):
    result = fit(how=HOW, epochs=2)
    folder = tmp_path / "new" / "run"
    result.save(folder)
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert lines == result.history
    for path in (folder, folder / "params.npz"):
        params = jtssm.load_params(path)
        assert jax.tree.structure(params) == jax.tree.structure(result.params)
        assert jax.tree.all(jax.tree.map(np.array_equal, params, result.params))
    again = jtssm.fit(HOW, (X, Y), epochs=1, key=KEY, params=params)
    assert again.history
    with pytest.raises(
        ValueError, match=r"folder: expected none of history.jsonl, .*overwrite=True"
    ):
        result.save(folder)
    result.save(folder, overwrite=True)
    with pytest.raises(ValueError, match="step: expected None with saved weights"):
        jtssm.load_params(folder, step=3)


def test_weights_of_all_kinds_of_trees_are_read_back(tmp_path):
    state = optax.TraceState(trace=jnp.arange(3.0))
    trees = [
        {},
        [],
        {"W": jnp.ones((2, 3), jnp.bfloat16), "list": [jnp.zeros(1), state]},
        {"ids": jnp.arange(4)},
    ]
    save_params(tmp_path / "params.npz", trees)
    found = jtssm.load_params(tmp_path / "params.npz")
    assert found[:2] == [{}, []]
    assert found[2]["W"].dtype == jnp.bfloat16
    assert found[2]["W"].astype(float).tolist() == [[1] * 3] * 2
    assert found[2]["list"][1]["trace"].tolist() == [0, 1, 2]
    assert found[3]["ids"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", ["npz", "json", "gone"])
def test_damaged_weights_are_named(tmp_path, damage):
    save_params(tmp_path / "params.npz", [{"W": jnp.ones(50)}])
    file = tmp_path / f"params.{'npz' if damage == 'npz' else 'json'}"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"params.*: expected weights that save_params"):
        jtssm.load_params(tmp_path / "params.npz")


class Table:
    """pandas, with the part of its interface that is used."""

    def __init__(self, rows):
        self.rows = rows

    def set_index(self, name):
        return {row[name]: row for row in self.rows}


def test_a_history_is_a_table_of_pandas(monkeypatch):
    result = fit(how=HOW, epochs=2)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_pandas needs pandas: pip install pandas"):
        result.to_pandas()
    module = ModuleType("pandas")
    module.DataFrame = Table
    monkeypatch.setitem(sys.modules, "pandas", module)
    assert list(result.to_pandas()) == [1, 2]
    assert NET is result.method.network
