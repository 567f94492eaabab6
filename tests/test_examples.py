"""The examples run, and give the numbers that they promise."""

import json

import jax
import numpy as np
import optax
import pytest

from examples import language_model, optax_loop, stream
from jtssm.cli import main


def test_a_flax_nnx_loop_with_gsadmm_in_its_place():
    pytest.importorskip("flax")
    from examples import nnx_loop

    found = nnx_loop.main()
    assert found["nnx"]["before"] == found["gsadmm"]["before"] < 0.3
    assert found["nnx"]["after"] > 0.92
    assert abs(found["gsadmm"]["after"] - found["nnx"]["after"]) < 0.03
    assert found["gsadmm"]["loss"] < 0.3


@pytest.mark.slow
def test_an_optax_loop_with_gsadmm_in_its_place():
    found = optax_loop.main()
    alone, gsadmm = found["optax"], found["gsadmm"]
    assert alone["accuracy"] > 0.92
    assert abs(gsadmm["accuracy"] - alone["accuracy"]) < 0.02
    # one log, one schedule
    logs = [[(line["step"], line["rate"]) for line in run["log"]] for run in (alone, gsadmm)]
    assert logs[0] == logs[1]
    assert [step for step, _ in logs[0]] == [100, 200]
    assert gsadmm["log"][1]["loss"] < 0.2 < gsadmm["log"][0]["loss"]


def test_a_language_model_trains_as_plain_flax_and_optax():
    found = language_model.main(["sgd"], meshes={})
    sgd, plain = found["sgd"], found["plain"]
    assert len(sgd.steps) == 50
    assert np.abs(np.subtract(sgd.steps, plain.steps)).max() < 1e-5
    assert sgd.held_out < 5.0  # bits a byte, of 7 at the start


@pytest.mark.slow
@pytest.mark.parametrize("name", language_model.METHODS)
def test_a_language_model_is_cut_dealt_and_placed_with_the_same_numbers(name):
    shapes = language_model.MESHES[name]
    found = language_model.main([name], {name: shapes})
    here = found[name]
    assert 4.5 < here.held_out < 5.2
    assert np.isfinite(here.steps[-1])
    for shape in shapes:
        there = found[f"{name} on {' x '.join(map(str, shape))}"]
        np.testing.assert_allclose(there.steps, here.steps, rtol=1e-4)
        assert abs(there.held_out - here.held_out) < 1e-4


@pytest.mark.slow
def test_a_language_model_goes_on_with_the_same_bits():
    pytest.importorskip("orbax.checkpoint")
    (x, y), net = language_model.samples(), language_model.network()
    params = net.init(jax.random.key(0), np.float32)
    whole, rest = language_model.resumed(language_model.methods(net)["gsadmm, n = 2"], params, x, y)
    assert whole.history[-1]["step"] == rest.history[-1]["step"] == 50
    pairs = zip(*map(jax.tree.leaves, (whole.params, rest.params)), strict=True)
    assert all((a == b).all() for a, b in pairs)
    # it moved, after the checkpoint too
    start = zip(*map(jax.tree.leaves, (whole.params, params)), strict=True)
    assert any((a != b).any() for a, b in start)


@pytest.mark.slow
def test_a_language_model_is_trained_from_the_shell(tmp_path, monkeypatch):
    x, y = language_model.samples()
    monkeypatch.setattr(language_model, "samples", lambda: (x[:832], y[:832]))
    file, out = tmp_path / "bytes.npz", tmp_path / "run"
    language_model.write(file)
    words = ["--net", "examples.language_model:network", "--data", str(file), "--out", str(out)]
    more = ["--batch-size", "16", "--epochs", "1", "--rates", "constant", "--mesh", "pr=2,pc=2"]
    assert main(["train", "sgd", *words, *more]) == 0
    scores = json.loads((out / "result.json").read_text())["results"]["sgd"]
    assert scores["test_loss"] / np.log(2) < 5.3
    # of the weights that the run left
    net, weights = language_model.network(), np.load(out / "params.npz")
    shapes, tree = jax.tree_util.tree_flatten_with_path(net.parameter_shapes())
    params = tree.unflatten([weights[jax.tree_util.keystr(path)] for path, _ in shapes])
    outputs = net.apply(params, x[576:832])
    by_hand = optax.losses.softmax_cross_entropy_with_integer_labels(outputs, y[576:832]).mean()
    assert scores["test_loss"] == pytest.approx(float(by_hand), rel=1e-5)


def test_samples_from_files():
    pytest.importorskip("grain")
    found = stream.main()
    assert found["files"]["steps"] == found["grain"]["steps"] == 10 * (1200 // 40)
    assert found["files"]["reads"] == 10 * 6
    assert min(each["accuracy"] for each in found.values()) > 0.9
