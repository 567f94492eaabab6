"""Sweeps over mesh shapes, as a library and on the command line."""

import csv
import json

import jax
import numpy as np
import optax
import pytest

import jtssm
from jtssm import nn, sharding, solvers
from jtssm.cli import main
from jtssm.nn import architectures
from jtssm.planning import sweeps
from jtssm.planning.builders import LOCAL_STEPS, builder
from jtssm.sharding.cost import planner
from jtssm.sharding.cost.machine_table import MACHINES

NET = jtssm.mlp([12, 16, 16, 8])
V5E = MACHINES["tpu-v5e"]


@pytest.fixture(autouse=True)
def float32():
    """The model counts words of four bytes; tests/conftest.py turns float64 on."""
    with jax.enable_x64(False):
        yield


def sweep(devices=4, **options):
    return jtssm.sweep(NET, devices, 16, V5E, progress=False, **options)


def test_every_shape_has_a_record_and_predicted_bytes_are_counted_ones():
    records = sweep(method="gsadmm")
    assert [(r["subnet"], r["pr"], r["pc"]) for r in records] == planner.factorisations(4)
    gone = [r for r in records if "error" not in r]
    assert [r["mesh"] for r in records if "error" in r] == ["4 x 1 x 1"]  # three layers
    assert all(r["agrees"] is True for r in gone)
    assert all(r["bytes_sent"] == r["counted_sent"] > 0 for r in gone)
    assert [r["best"] for r in records].count(True) == 1
    (best,) = (r for r in records if r["best"])
    assert best["seconds"] == min(r["seconds"] for r in gone)
    # 2 x 1 x 2: f forward, q - f backward, 8 samples of 16 floats; cut before the second layer
    (one,) = (r for r in records if r["mesh"] == "2 x 1 x 2")
    assert one["bytes_permute_subnet"] == one["counted_permute_subnet"] == 4 * 8 * 16
    assert one["cuts"] == "1"
    parts = [v for k, v in one.items() if k.startswith("seconds_") and k != "seconds_hidden"]
    np.testing.assert_allclose(one["seconds"], sum(parts), rtol=1e-12)
    memory = {k: v for k, v in one.items() if k.startswith("memory_") and k != "memory_outputs"}
    assert one["memory"] == sum(memory.values()) >= one["compiled_memory"]


def test_records_go_into_pandas_or_any_table():
    records = sweep(2, count=False)
    assert all(isinstance(v, (str, int, float, bool)) for r in records for v in r.values())
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(records)
    assert frame.loc[frame.best, "seconds"].item() == frame.seconds.min()


def test_shapes_are_measured_on_the_devices_at_hand():
    records = sweep(2, measure=True, count=False)
    measured = [r["measured_seconds"] for r in records if "error" not in r]
    assert len(measured) == 2
    assert all(0 < s < 60 for s in measured)
    more = sweep(2 * jax.device_count(), measure=True)
    assert not any("measured_seconds" in r or "counted_sent" in r for r in more)


def test_one_failing_shape_does_not_stop_the_rest(monkeypatch):
    real = sweeps.counted

    def failing(found, mesh, samples):
        if found.shape == (1, 2, 2):
            raise RuntimeError("out of memory")
        return real(found, mesh, samples)

    monkeypatch.setattr(sweeps, "counted", failing)
    records = {r["mesh"]: r for r in sweep()}
    assert records["1 x 2 x 2"]["error"] == "RuntimeError: out of memory"
    assert records["1 x 2 x 2"]["seconds"] > 0
    assert records["1 x 1 x 4"]["agrees"]
    assert records["1 x 4 x 1"]["agrees"]


def test_an_interrupted_sweep_goes_on_where_it_was(monkeypatch, tmp_path):
    path, real, calls = tmp_path / "records.jsonl", sweeps.counted, []

    def counted(found, mesh, samples):
        calls.append(found.shape)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(found, mesh, samples)

    monkeypatch.setattr(sweeps, "counted", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep(resume=path)
    path.write_text(path.read_text() + '{"about": {"net"')  # cut off in the middle of a line
    records = sweep(resume=path)
    assert calls == [(1, 1, 4), (1, 2, 2), (1, 4, 1), (1, 4, 1)]
    assert records == sweep()
    assert sweep(resume=path) == records  # nothing is left to do
    assert len(calls) == 7
    with pytest.raises(ValueError, match=r"resume: expected records of the same sweep"):
        jtssm.sweep(NET, 4, 32, V5E, resume=path, progress=False)


def test_a_fixed_number_of_workers_lies_on_any_number_of_devices():
    """Eight workers of two samples each, on 1, 2 and 4 positions of subnet."""
    build = builder("local_sgd", workers=8)
    for n in (1, 2, 4):
        assert build(NET, n, 16).batch_shape == (LOCAL_STEPS, 8, 2)
    assert builder("ist")(NET, 4, 16).batch_shape == (LOCAL_STEPS, 4, 4)


def test_names_are_found_and_the_nearest_is_named():
    plan = jtssm.plan("alexnet", 8, 256, "tpu-v5e", runners_up=0)
    assert plan.best.shape[1] * plan.best.shape[2] == 8
    assert len(plan.best.forms) == len(architectures.find_architecture("alexnet")().layers)
    with pytest.raises(ValueError, match=r"'alexnat'.*'alexnet'"):
        jtssm.plan("alexnat", 8, 256, "tpu-v5e")
    with pytest.raises(ValueError, match=r"'tpu-5e'.*tpu-v5e"):
        jtssm.plan("alexnet", 8, 256, "tpu-5e")
    with pytest.raises(ValueError, match=r"method: expected one of .*'sgd'"):
        jtssm.plan("alexnet", 8, 256, "tpu-v5e", method="sdg")
    with pytest.raises(
        ValueError, match=r"topology: expected a name like 'tpu-v5e:4x4'; got 'v5e'"
    ):
        sweeps.topology_devices("v5e")


def test_published_networks_are_planned_and_blocks_count_where_the_grid_runs_them():
    """ResNet-50 and the transformer on 64 devices: residual blocks are batch, gathered or paired."""
    for name, kinds, count, forms in (
        ("resnet50", ("bottleneck",), 16, {"batch", "gathered"}),
        ("transformer", ("attention", "perceptron"), 24, {"batch", "gathered", "paired"}),
    ):
        best = jtssm.plan(name, 64, 1024, "tpu-v5p", runners_up=0).best
        layers = best.method.network.layers
        blocks = [f for f, l in zip(best.forms, layers, strict=True) if l.name.startswith(kinds)]
        assert len(blocks) == count
        assert set(blocks) <= forms


SHAPE = ["--widths", "12,16,16,8", "--devices", "4", "--batch", "16", "--machine", "tpu-v5e"]


def test_the_command_writes_a_table_csv_json_and_a_figure(tmp_path, capsys):
    out = tmp_path / "sweep"
    assert main(["sweep", *SHAPE, "--method", "gsadmm", "--measure", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    (best,) = (line for line in shown.splitlines() if "best" in line and "│" in line)
    records = json.loads((out / "sweep.json").read_text())["records"]
    (mesh,) = (r["mesh"] for r in records if r["best"])
    assert mesh in best
    assert "does not go: 4 x 1 x 1" in shown
    lines = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert [line["mesh"] for line in lines] == [r["mesh"] for r in records]
    assert all(line["agrees"] == "True" for line in lines if not line["error"])
    assert (out / "sweep.png").stat().st_size > 5000
    assert main(["sweep", *SHAPE, "--method", "gsadmm", "--out", str(out)]) == 2
    assert "add --overwrite, or --resume" in capsys.readouterr().err


def test_plan_prints_python_that_builds_the_answer(capsys):
    for options in (["--method", "gsadmm"], ["--method", "ist", "--local-steps", "3"], []):
        assert main(["plan", *SHAPE, *options]) == 0
        shown = capsys.readouterr().out
        scope: dict = {}
        exec("import jtssm\n" + shown.split("import jtssm\n", 1)[1], scope)
        best = jtssm.plan(
            NET,
            4,
            16,
            "tpu-v5e",
            method=options[1] if options else "sgd",
            **({"local_steps": 3} if "ist" in options else {}),
        ).best
        assert tuple(scope["mesh"].shape.values()) == best.shape
        placed = scope["placed"]
        assert placed.name == best.method.name
        assert placed.batch_shape == best.method.batch_shape
        if best.forms:
            assert placed.forms == best.forms


def test_plan_prints_python_that_builds_a_published_network(capsys):
    words = ["--net", "alexnet", "--devices", "4", "--batch", "64", "--machine", "tpu-v5e"]
    outer = ["--outer-optimizer", "sgd(0.7, momentum=0.9)"]
    for options in (["gsam", "--cuts", "5", "--alpha", "2"], ["local_sgd", *outer]):
        assert main(["plan", *options, *words]) == 0
        scope: dict = {}
        exec("import jtssm\n" + capsys.readouterr().out.split("import jtssm\n", 1)[1], scope)
        assert len(scope["net"].layers) == len(nn.find_architecture("alexnet")().layers)
        assert scope["placed"].name == options[0]
    found = scope["method"].settings.arguments["outer_optimizer"].init(np.zeros(2))
    np.testing.assert_array_equal(found[0].trace, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "0"], "num_devices: expected an integer of at least 1; got 0"),
        (["--batch", "3"], "none goes"),
        (["--machine", "tpu-v9"], "did you mean 'tpu-v"),
        (["--machine", "no.json"], "no.json"),
        (["--optimizer", "adm"], "--optimizer: expected one of"),
        (["--method=local_sgd", "--outer-optimizer", "sgd"], "--outer-optimizer: expected an"),
        (["--net", "alexnat", "--widths", ""], "alexnat"),
    ],
)
def test_bad_options_are_refused(options, message, capsys):
    given = [*SHAPE, *options] if "--widths" not in options else [*SHAPE[2:], *options[:2]]
    assert main(["plan", *given]) == 2
    assert message in capsys.readouterr().err


def test_schedules_are_planned_as_objects_and_told_apart_in_a_file(tmp_path):
    given = {"method": "gsadmm", "subnets": 2, "samples": 64}
    named = jtssm.plan(NET, 2, 16, V5E, schedule="stored", **given)
    once = jtssm.plan(NET, 2, 16, V5E, schedule=solvers.Stored(weight_steps=1), **given)
    assert named.best.method.settings.arguments["schedule"] == solvers.Stored()
    assert once.best.method.settings.arguments["schedule"] == solvers.Stored(weight_steps=1)
    assert once.best.seconds.total < named.best.seconds.total  # an epoch is four minibatches
    with pytest.raises(ValueError, match=r"options: expected one of .*'schedule'.*got 'sweeps'"):
        jtssm.plan(NET, 2, 16, V5E, sweeps=2, **given)
    ways = given | {"count": False, "progress": False, "resume": tmp_path / "records.jsonl"}
    optimizer = solvers.optimizer("adam", 1e-3)
    jtssm.sweep(NET, 2, 16, V5E, schedule=solvers.Stored(2), optimizer=optimizer, **ways)
    about = json.loads((tmp_path / "records.jsonl").read_text().splitlines()[0])["about"]
    schedule = {"kind": "Stored", "sweeps": 2, "weight_steps": None, "order": None}
    assert about["options"] == {"subnets": 2, "schedule": schedule}
    assert about["optimizer"] == {"name": "adam", "learning_rate": 0.001}
    with pytest.raises(ValueError, match=r"resume: expected records of the same sweep"):
        jtssm.sweep(NET, 2, 16, V5E, schedule=solvers.Stored(3), optimizer=optimizer, **ways)


def test_the_python_that_plan_prints_makes_the_schedule(capsys):
    words = ["--method", "gsadmm", "--schedule", "stored", "--weight-steps", "2", "--samples", "64"]
    assert main(["plan", *words, *SHAPE]) == 0
    printed = capsys.readouterr().out
    found: dict = {}
    exec(printed[printed.index("import jtssm\n") :], found)
    schedule = found["method"].settings.arguments["schedule"]
    assert schedule == solvers.Stored(weight_steps=2)


def test_calibrate_writes_a_machine_that_plan_takes(tmp_path, capsys):
    path = tmp_path / "here.json"
    assert main(["calibrate", str(path)]) == 0
    assert "flops" in capsys.readouterr().out
    assert main(["plan", *SHAPE[:-1], str(path)]) == 0
    assert jtssm.plan(NET, 4, 16, str(path)).best.seconds.total > 0
    assert main(["calibrate", str(path), "--net", "mlp"]) == 2
    assert "--net, --batch: expected both" in capsys.readouterr().err
    for wrong, told in ((["mpl", "4"], "mpl"), (["mlp", "0"], "--batch: expected an integer")):
        assert main(["calibrate", str(path), "--net", wrong[0], "--batch", wrong[1]]) == 2
        assert told in capsys.readouterr().err
    assert main(["calibrate", str(path), "--net", "mlp", "--batch", "4"]) == 0
    assert "a step of sgd was measured" in sharding.find_machine(str(path)).source


def test_a_users_own_function_builds_the_method():
    build = lambda net, n, batch: solvers.gsadmm(
        net, cuts=[2], optimizer=optax.sgd(0.1), batch_size=batch
    )
    best = jtssm.plan(NET, 2, 16, V5E, method=build).best
    assert best.cuts == (2,)
    sharding.place(best.method, sharding.make_mesh(*best.shape))
