"""The command line, run in this process."""

import argparse
import csv
import json

import jax
import numpy as np
import pytest

import jtssm
from jtssm import data
from jtssm.cli import main, samples, train
from jtssm.nn import images
from tests.data.test_data import write_mnist


@pytest.fixture(scope="module", autouse=True)
def eight_devices():
    """jax is in use: a command that asks for fewer devices than the tests have does not get them."""
    assert jax.device_count() == 8


SMALL = ["--hidden", "16,16", "--epochs", "2", "--batch-size", "60"]


def test_train_writes_history_figure_weights_and_a_table(tmp_path, capsys):
    out = tmp_path / "run"
    code = main(
        [
            "train",
            "gsadmm",
            "--subnets",
            "3",
            "--microbatches",
            "5",
            "--mesh",
            "subnet=3,pc=2",
            *SMALL,
            "--out",
            str(out),
        ]
    )
    assert code == 0
    table = capsys.readouterr().out
    assert "gsadmm" in table
    assert "test acc." in table
    lines = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    assert [line["epoch"] for line in lines] == ["1", "2"]
    assert {"loss", "primal_residual", "train_accuracy", "valid_accuracy"} <= set(lines[0])
    assert not any(name.startswith("test") for name in lines[0])
    assert (out / "history.png").stat().st_size > 5000
    result = json.loads((out / "result.json").read_text())["results"]["gsadmm"]
    weights = np.load(out / "params.npz")
    net, test = jtssm.mlp([64, 16, 16, 10]), data.load("digits", flat=True).test
    params = [{k: weights[f"[{i}]['{k}']"] for k in "Wb"} for i in range(3)]
    accuracy = float((net.apply(params, test.x).argmax(1) == test.y).mean())
    assert abs(accuracy - result["test_accuracy"]) < 1e-6


def test_sgd_stored_and_json_lines(tmp_path):
    out = str(tmp_path / "run")
    assert main(["train", "sgd", *SMALL, "--history", "jsonl", "--out", out]) == 0
    lines = [json.loads(a) for a in (tmp_path / "run/history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40]
    options = ["--schedule", "stored", "--subnets", "2", "--rho", "0.5", "--weight-steps", "3"]
    assert main(["train", "gsadmm", *options, *SMALL, "--out", out, "--overwrite"]) == 0
    assert not (tmp_path / "run/result.json").read_text().count('"sgd"')


def test_layers_compute_in_bfloat16_where_it_is_asked_for(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run"), "--overwrite"]
    accuracy = []
    for chosen in ([], ["--compute-dtype", "bfloat16"]):
        assert main(["train", "sgd", *SMALL, *chosen, *out]) == 0
        assert np.load(tmp_path / "run/params.npz")["[0]['W']"].dtype == np.float32
        result = json.loads((tmp_path / "run/result.json").read_text())
        accuracy.append(result["results"]["sgd"]["test_loss"])
    assert 0 < abs(accuracy[0] - accuracy[1]) < 0.05
    for method, given, message in (
        ("sgd", "float16", "compute_dtype: expected None, 'bfloat16'"),
        ("pdadmm", "bfloat16", "train pdadmm: expected no --compute-dtype"),
    ):
        assert main(["train", method, "--compute-dtype", given, *out]) == 2
        assert message in capsys.readouterr().err


def test_gsam_takes_its_own_options(tmp_path):
    out = str(tmp_path / "run")
    options = ["gsam", "--subnets", "3", *SMALL, "--out", out, "--overwrite"]
    assert main(["train", *options, "--schedule", "stored", "--order", "parallel"]) == 0
    programs = ["--compilation-cache", str(tmp_path / "programs")]
    own = ["--delay-power", "0.5", "--grid", "8", "--rates", "constant", *programs]
    assert main(["train", *options, *own]) == 0
    settings = json.loads((tmp_path / "run/result.json").read_text())["settings"]
    told = settings["delay_power"], settings["grid"], settings["rates"]
    assert told == ("0.5", "8", "constant")
    assert any((tmp_path / "programs").iterdir())


@pytest.mark.parametrize(
    "options",
    [
        ["ist", "--subnets", "2", "--normalisation", "running", "--mesh", "subnet=2"],
        [
            *("local_sgd", "--workers", "2", "--local-steps", "5", "--dropout", "0.2"),
            *("--outer-optimizer", "sgd(0.7, momentum=0.9, nesterov=True)"),
        ],
    ],
)
def test_methods_of_workers_take_their_own_options(tmp_path, options):
    shared = ["--hidden", "32", "--epochs", "4", "--batch-size", "16", "--out", str(tmp_path)]
    assert main(["train", *options, *shared]) == 0
    lines = [line.split(",") for line in (tmp_path / "history.csv").read_text().splitlines()]
    steps = int(lines[-1][lines[0].index("step")])
    assert steps == 4 * 1200 // (16 * 2 * (5 if "local_sgd" in options else 20))
    assert (tmp_path / "params.npz").exists()


def test_pdadmm_starts_shallow_and_prints_its_certificate(tmp_path, capsys):
    options = ["pdadmm", "--hidden", "16,16,16", "--shallow", "1", "--mesh", "subnet=2"]
    numbers = ["--rho", "10", "--nu", "0.1", "--epochs", "4", "--evaluate-every", "2"]
    assert main(["train", *options, *numbers, "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "pdadmm, 1 hidden" in shown
    lines = [line for line in shown.splitlines() if line.startswith("epoch")]
    assert len(lines) == 4
    assert all(
        f"  {name} " in line for line in lines for name in ("objective", "c_k", "primal_residual")
    )
    first, then = (
        list(csv.DictReader((tmp_path / "run" / name).read_text().splitlines()))
        for name in ("history-shallow.csv", "history.csv")
    )
    assert [line["epoch"] for line in first + then] == ["2", "4"] * 2
    # the grown network starts where the shallow one ended
    assert float(then[0]["valid_accuracy"]) > float(first[0]["valid_accuracy"]) - 0.05
    with np.load(tmp_path / "run" / "params.npz") as params:
        assert params["[1]['W']"].shape == (16, 16)


def test_a_method_is_named_in_two_ways_and_is_gsadmm_if_it_is_not(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "build", lambda arguments, *_: seen.append(arguments) or 1 / 0)
    rest = ["--sweeps", "2", "--overwrite"]
    for words in (
        ["gsadmm", *rest],
        ["--method=gsadmm", *rest],
        [*rest, "--method", "gsadmm"],
        rest,
    ):
        with pytest.raises(ZeroDivisionError):
            main(["train", *words])
    first, *others = (vars(arguments) for arguments in seen)
    assert (first["method"], first["sweeps"], first["overwrite"]) == ("gsadmm", 2, True)
    assert others == [first] * 3


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 2 * 20),
        ({"sweeps": 3}, 6 * 20),
        ({"weight_steps": 7, "sweeps": 2, "schedule": "stored"}, 2 * 14),
    ],
)
def test_rates_run_up_and_then_down_to_zero_over_all_steps(options, steps):
    given = {"rates": "warmup-cosine", "learning_rate": 0.1, "batch_size": 60, "epochs": 2}
    given |= {"sweeps": None, "weight_steps": None, "method": "gsadmm"} | options
    rate = train.learning_rate(argparse.Namespace(**given), samples=1230)
    assert float(rate(0)) == 0
    assert float(rate(steps // 5)) == pytest.approx(0.1)
    assert 0 < float(rate(steps - 1)) < 0.001
    assert float(rate(steps)) == pytest.approx(0, abs=1e-9)


def test_rates_of_workers_fall_over_their_local_steps():
    given = {"rates": "warmup-cosine", "learning_rate": 0.1, "batch_size": 10, "epochs": 2}
    given |= {"subnets": 4}
    rate = train.learning_rate(argparse.Namespace(method="ist", **given), samples=1200)
    assert float(rate(59)) > 0
    assert float(rate(60)) == pytest.approx(0, abs=1e-9)


def test_mnist_is_zoomed_to_14(tmp_path):
    write_mnist(tmp_path / "mnist", images=240)
    options = ["--data", "mnist", "--data-dir", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main(["train", *options, *SMALL]) == 0
    assert np.load(tmp_path / "run/params.npz")["[0]['W']"].shape == (196, 16)


CONVNET = ["--net", "convnet", "--channels", "2,4", "--hidden", "8", "--batch-size", "60"]


def test_a_convnet_is_trained_on_a_grid(tmp_path, capsys):
    options = ["sgd", *CONVNET, "--mesh", "pr=2,pc=2", "--forms", "auto"]
    assert main(["train", *options, "--epochs", "1", "--out", str(tmp_path)]) == 0
    assert "sgd" in capsys.readouterr().out
    weights, test = np.load(tmp_path / "params.npz"), data.load("digits").test
    net = images.convnet((8, 8, 1), 10, channels=(2, 4), hidden=(8,))
    layers = ("Wb", "", "Wb", "", "Wb", "Wb")  # pools have no weights
    params = [{k: weights[f"[{i}]['{k}']"] for k in names} for i, names in enumerate(layers)]
    assert params[2]["W"].shape == (3, 3, 2, 4)
    accuracy = float((net.apply(params, test.x).argmax(1) == test.y).mean())
    run = json.loads((tmp_path / "result.json").read_text())
    assert abs(accuracy - run["results"]["sgd"]["test_accuracy"]) < 1e-6
    settings = {name: run["settings"][name] for name in ("net", "forms", "channels", "hidden")}
    assert settings == {"net": "convnet", "forms": "auto", "channels": "[2, 4]", "hidden": "[8]"}


def test_a_convnet_takes_mnist_as_it_is(tmp_path, monkeypatch):
    write_mnist(tmp_path / "mnist", images=240)
    built = []
    monkeypatch.setattr(train, "build", lambda *given: built.append(given) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", "--net", "convnet", "--data", "mnist", "--data-dir", str(tmp_path)])
    ((arguments, split),) = built
    assert (arguments.channels, arguments.hidden) == ([16, 32], [128])
    assert split.x.shape == (120, 28, 28, 1)
    assert samples.outputs(split) == 10


WRONG = ["sgd", "--mesh", "pr=2,pc=2", *CONVNET, "--forms"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--net", "magic"],
            "--net: expected one of ['convnet', 'mlp'], or package.module:function; got 'magic'",
        ),
        (["--channels", "4"], "--channels: expected --net convnet with it; got [4] with --net mlp"),
        (
            ["--forms", "auto"],
            "--forms: expected a --mesh with it, e.g. pr=2,pc=2; got auto and none",
        ),
        ([*WRONG, "batch"], "forms: expected 'auto' or a list of 6 forms"),
        ([*WRONG, "batch,batch,batch,batch,batch,rows"], "forms[5]: expected one of ['batch'"),
        ([*WRONG, "batch,batch,batch,batch,domain,batch"], "'dense 8 relu' takes no images"),
        (
            ["pdadmm", *CONVNET[:-2]],
            "net: expected dense layers only; got layer 0, 'convolution 3x3 2 relu'",
        ),
        (
            ["ist", "--subnets", "2", "--mesh", "subnet=2", "--forms", "auto"],
            "train ist: expected no --forms",
        ),
    ],
)
def test_a_network_or_form_that_does_not_fit_is_refused(arguments, message, tmp_path, capsys):
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jtssm: error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["magic"], "method: expected one of ['ensemble', 'gsadmm', "),
        (["--method", "magic"], "--method: expected one of ['ensemble', 'gsadmm', "),
        (["--method"], "--method: expected a value; got none"),
        (["--data", "imagenet"], "name: expected one of"),
        (
            ["--data", "mnist", "--data-dir", "nowhere"],
            "train-images-idx3-ubyte.gz: expected this file",
        ),
        (["--rates", "magic"], "--rates: expected one of"),
        (
            ["--weight-steps", "3"],
            "--weight-steps: expected none with --schedule streaming, which takes --sweeps, --delay-power; got 3",
        ),
        (
            ["--schedule", "stored", "--delay-power", "0"],
            "--delay-power: expected none with --schedule stored, which takes --sweeps, --weight-steps; got 0.0",
        ),
        (
            ["gsam", "--order", "parallel"],
            "--order: expected none with --schedule streaming, which takes --sweeps, --delay-power; got parallel",
        ),
        (
            ["--order", "parallel"],
            "train gsadmm: expected no --order, which it does not take; it takes --batch-size, --subnets, ",
        ),
        (
            ["--schedule", "async", "--sweeps", "2"],
            "schedule: expected one of ['stored', 'streaming'], ",
        ),
        (["--sweeps", "0"], "sweeps: expected an integer of at least 1; got 0"),
        (
            ["sgd", "--order", "parallel"],
            "train sgd: expected no --order, which it does not take; it takes --batch-size, ",
        ),
        (["--optimizer", "magic"], "--optimizer: expected one of"),
        (["--learning-rate", "-1"], "--learning-rate: expected a finite number above 0"),
        (["--method", "sgd", "--rho", "2"], "train sgd: expected no --rho"),
        (["--subnets", "9"], "subnets: expected 1..3"),
        (["--mesh", "subnet=16"], "expected at most 8"),
        (["--mesh", "subnet=4", "--subnets", "3"], "'subnet' axis of at most 3"),
        (["--shallow", "1"], "train gsadmm: expected no --shallow"),
        (
            ["pdadmm", "--shallow", "2"],
            "--shallow: expected 1..1, fewer than the hidden layers; got 2",
        ),
        (
            ["pdadmm", "--alpha", "1"],
            "train pdadmm: expected no --alpha, which it does not take; it takes --rho, ",
        ),
        (["pdadmm", "--batch-size", "60"], "train pdadmm: expected no --batch-size"),
        (
            ["pdadmm", "--grid", "8,x"],
            "--grid: expected a number, or several with commas between, e.g. 8",
        ),
        (["ist"], "train ist: expected --subnets, which it needs, e.g. --subnets 4; got none"),
        (["--subnets", "two"], "--subnets: expected an integer, e.g. 4; got 'two'"),
        (["--cuts", "1;2"], "--cuts: expected integers with commas between, e.g. 2,3; got '1;2'"),
        (["--rho", "one"], "--rho: expected a number, e.g. 0.5; got 'one'"),
        (["--overwrit"], "train gsadmm: expected no --overwrit"),  # no abbreviations
        (["sgd", "gsam"], "train sgd: expected no gsam"),
        (["--rho", "0"], "rho: expected"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    assert main(["train", *arguments, "--hidden", "16,16", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jtssm: error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mesh", ["rows=2", "subnet", "pc=0", "subnet=two"])
def test_a_mesh_that_cannot_be_read_is_refused(mesh, capsys):
    assert main(["train", "--mesh", mesh]) == 2
    assert "expected sizes of subnet, pr and pc" in capsys.readouterr().err


def test_an_earlier_run_is_not_overwritten(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    assert main(["train", *SMALL, *out]) == 0
    assert main(["train", *SMALL, *out]) == 2
    assert "add --overwrite" in capsys.readouterr().err


def test_divergence_ends_with_exit_code_1_and_keeps_the_weights(tmp_path, capsys):
    options = ["--optimizer", "sgd", "--learning-rate", "1e30", "--subnets", "2"]
    with pytest.warns(RuntimeWarning, match="is not finite"):
        assert main(["train", *options, *SMALL, "--out", str(tmp_path)]) == 1
    assert "is not finite" in capsys.readouterr().err
    arrays = np.load(tmp_path / "params.npz")
    assert all(np.isfinite(arrays[name]).all() for name in arrays)


def test_methods_and_data_print_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # lines are not broken
    write_mnist(tmp_path / "mnist")
    assert main(["methods"]) == 0
    assert main(["data", "--data-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for word in ("gsadmm", "--alpha", "sgd", "embedded", "there", "missing", "make_spoken_digits"):
        assert word in shown


def test_the_demo_compares_with_adam(tmp_path, capsys):
    assert main(["demo", "--epochs", "2", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "gsADMM" in shown
    assert "Adam end to end" in shown
    assert (tmp_path / "history.png").exists()
    assert (tmp_path / "history-gsadmm.csv").exists()
    header = (tmp_path / "history-gsadmm.csv").read_text().split("\n")[0]
    assert {"loss", "primal_residual", "train_accuracy", "test_accuracy"} <= set(header.split(","))
