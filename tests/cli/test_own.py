"""`jtssm train --net package.module:function --data file.npz`: networks, samples, losses of one's own."""

import json

import numpy as np
import pytest

from jtssm.cli import main
from tests.cli.own_networks import LENGTH, TOKENS

HERE = "tests.cli.own_networks"
NET = ["--net", f"{HERE}:tokens"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Tokens and at each place the next one, some of them padding; `tests` held out."""
    draw = np.random.default_rng(0)
    x = draw.integers(0, TOKENS, (48, LENGTH))
    y = np.where(draw.random(x.shape) < 0.3, -100, (x + 1) % TOKENS)
    path = tmp_path_factory.mktemp("own") / "tokens.npz"
    parts = {"x": x[:32], "y": y[:32], "x_test": x[32:], "y_test": y[32:]}
    np.savez_compressed(path, **{name: a.astype(np.int16) for name, a in parts.items()})
    return path


def run(file, out, method, *options):
    words = ["--data", str(file), "--out", str(out), "--epochs", "2", "--batch-size", "8"]
    assert main(["train", method, *words, *options]) == 0
    return json.loads((out / "result.json").read_text())


def loss_by_hand(out, file):
    """Of the held-out tokens that count, from the weights that the run left."""
    weights, held = np.load(out / "params.npz"), np.load(file)
    table, scores = (weights[f"[{i}]['params']"] for i in range(2))
    outputs = np.tanh(table[held["x_test"]].astype(np.float64)) @ scores
    shares = outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))
    counts = held["y_test"] >= 0
    labels = np.where(counts, held["y_test"], 0)[..., None]
    return -np.take_along_axis(shares, labels, -1)[..., 0][counts].mean()


def test_a_network_of_tokens_is_trained_on_a_file_with_a_loss_of_ones_own(file, tmp_path, capsys):
    options = ["sgd", *NET, "--loss", f"{HERE}:masked", "--mesh", "pr=2,pc=2"]
    found = run(file, tmp_path / "run", *options, "--learning-rate", "0.1")
    scores = found["results"]["sgd"]
    assert scores["test_loss"] == pytest.approx(loss_by_hand(tmp_path / "run", file), rel=1e-6)
    assert scores["test_loss"] < np.log(TOKENS) - 0.1  # all alike at the start
    assert {name for name in scores if name.endswith("_loss")} == {"train_loss", "test_loss"}
    assert found["settings"]["loss"] == f"{HERE}:masked"
    shown = capsys.readouterr().out
    assert "test acc." in shown
    assert "valid" not in shown
    header = (tmp_path / "run/history.csv").read_text().splitlines()[0]
    assert "train_loss" in header
    assert "test" not in header


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["gsadmm", "--subnets", "2", "--mesh", "subnet=2,pc=2"],
        ["gsadmm", "--subnets", "2", "--schedule", "stored", "--mesh", "subnet=2"],
        ["gsam", "--subnets", "2"],
        ["local_sgd", "--workers", "2", "--local-steps", "2", "--mesh", "subnet=2"],
        ["ensemble", "--members", "2", "--local-steps", "2"],
    ],
    ids=lambda options: options[0],
)
def test_every_method_of_such_networks_takes_them(file, tmp_path, options):
    found = run(file, tmp_path, *options, *NET, "--loss", f"{HERE}:masked", "--batch-size", "4")
    (scores,) = found["results"].values()
    assert scores["test_loss"] < np.log(TOKENS)
    if options[0] != "ensemble":  # the mean of several networks
        assert scores["test_loss"] == pytest.approx(loss_by_hand(tmp_path, file), rel=1e-5)


@pytest.mark.slow
def test_a_run_of_such_a_network_goes_on_from_its_checkpoint(file, tmp_path):
    options = ["gsadmm", *NET, "--loss", f"{HERE}:masked", "--subnets", "2", "--rates", "constant"]
    kept = ["--checkpoint", str(tmp_path / "kept")]
    whole = run(file, tmp_path / "whole", *options)
    run(file, tmp_path / "half", *options, *kept, "--epochs", "1")
    assert main(["train", *options, *kept, "--data", str(file), "--epochs", "1"]) == 2  # batch size
    words = ["--data", str(file), "--epochs", "2", "--batch-size", "8"]
    assert main(["train", *options, *kept, *words, "--out", str(tmp_path / "rest")]) == 0
    rest = json.loads((tmp_path / "rest/result.json").read_text())
    losses = [run["results"]["gsadmm"]["test_loss"] for run in (whole, rest)]
    assert losses[0] == losses[1]


def test_targets_and_a_network_made_for_the_samples(tmp_path, capsys):
    draw = np.random.default_rng(1)
    x = draw.normal(size=(24, 2, 3)).astype(np.float32)
    targets = {"inputs": x, "targets": x.sum(axis=1), "notes": np.zeros(3)}
    np.savez(tmp_path / "targets.npz", **targets)
    arrays = ["--arrays", "x=inputs,y=targets", "--loss", f"{HERE}:absolute", "--hidden", "4"]
    found = run(tmp_path / "targets.npz", tmp_path / "run", "sgd", *arrays)  # flat for a perceptron
    weights = np.load(tmp_path / "run/params.npz")
    assert weights["[0]['W']"].shape == (6, 4)
    hidden = np.maximum(x.reshape(24, 6) @ weights["[0]['W']"] + weights["[0]['b']"], 0)
    outputs = hidden @ weights["[1]['W']"] + weights["[1]['b']"]
    by_hand = np.abs(outputs - targets["targets"]).sum(axis=1).mean()
    assert found["results"]["sgd"]["train_loss"] == pytest.approx(float(by_hand), rel=1e-5)
    assert "acc." not in capsys.readouterr().out  # such a loss knows of none
    with pytest.raises(AssertionError):  # it was read from the samples as they are, [n, 2, 3]
        run(
            tmp_path / "targets.npz",
            tmp_path / "own",
            "sgd",
            *arrays[:4],
            "--net",
            f"{HERE}:of_samples",
        )
    assert "x: expected" in capsys.readouterr().err


def test_a_plan_for_a_network_of_ones_own_prints_python_that_builds_it(capsys):
    options = ["--devices", "2", "--batch", "8", "--machine", "tpu-v5e", "--loss", f"{HERE}:masked"]
    assert main(["plan", "sgd", *NET, *options]) == 0
    shown = capsys.readouterr().out
    code = shown[shown.index("import jtssm") :]
    made = {}
    exec(code, made)
    assert made["net"].shapes[-1] == (LENGTH, TOKENS)
    assert made["method"].loss.ignored == -100
    assert main(["plan", "--net", f"{HERE}:of_samples", *options]) == 2
    assert "none here, where no samples are" in capsys.readouterr().err


def wrong_files(folder):
    x, y = np.zeros((6, LENGTH), int), np.zeros((6, LENGTH), int)
    np.savez(folder / "labels.npz", x=x, y=y, x_test=x, y_test=y + 9)
    np.savez(folder / "short.npz", x=x, y=y[:, :2])
    np.savez(folder / "floats.npz", x=x + 0.5, y=y)
    np.savez(folder / "names.npz", tokens=x, y=y)
    np.savez(folder / "good.npz", x=x, y=y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "none.npz"], "none.npz: expected an npz file with x and y; it is not there"),
        (["--data", "names.npz"], "got no x among the arrays ['tokens', 'y']: name them, e.g. x="),
        (
            ["--data", "labels.npz"],
            "--data: test: y: expected labels 0..6, the network has 7 outputs",
        ),
        (
            ["--data", "short.npz"],
            "--data: train: y: expected shape (6, 5) for cross_entropy; got (6, 2)",
        ),
        (["--data", "floats.npz"], "--data: train: x: expected integers, as the first layer takes"),
        (["--size", "4"], "--size: expected none with a file of your own, good.npz; got 4"),
        (["--arrays", "x"], "--arrays: expected names in the file of x, y, x_valid, "),
        (["--arrays", "x=a,y=b"], "good.npz: expected arrays ['a', 'b']; got ['x', 'y']"),
        (["--data", "digits", "--arrays", "x=a,y=b"], "--arrays: expected an npz file as --data"),
        (
            ["--hidden", "4"],
            f"--hidden: expected none with --net {HERE}:tokens, which makes its own",
        ),
        (["--dropout", "0.5"], "--dropout: expected none with --net"),
        (
            ["--net", "nowhere.at_all:net"],
            "--net: expected package.module:function, e.g. examples.",
        ),
        (["--net", f"{HERE}:absent"], "has no attribute 'absent'"),
        (["--net", f"{HERE}:number"], f"--net: expected a function; got 3 of {HERE}:number"),
        (["--net", f"{HERE}:none"], "--net: expected a function that returns a network, e.g. of"),
        (["--net", f"{HERE}:fails"], "fails raised RuntimeError: first line second line"),
        (["--net", f"{HERE}:of_a_size"], "arguments without a default are, if any, x and y, the"),
        (["--loss", "magic"], "--loss: expected one of ['cross_entropy', 'sigmoid_cross_entropy'"),
        (
            ["--loss", f"{HERE}:number"],
            "--loss: expected one of ['cross_entropy', 'sigmoid_cross_ent",
        ),
        (
            ["--loss", f"{HERE}:mean"],
            "leave out the mean over samples, it is taken over all devices",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_and_exit_code_2(
    options, message, tmp_path, capsys, monkeypatch
):
    wrong_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "sgd", *NET, "--data", "good.npz", "--out", "run", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jtssm: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
