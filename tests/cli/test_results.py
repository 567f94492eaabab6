"""What commands write, what they may replace, and what is left out where a package is not there."""

import json
import os
import sys

import pytest

from jtssm import plot
from jtssm.cli import main, results, tables
from tests.train.short_runs import SMALL, stopping

TRAIN = ["train", *SMALL, "--epochs", "2"]
PLAN = ["--devices", "2", "--batch", "8", "--machine", "host", "--widths", "4,8,4"]
SWEEP = ["sweep", "sgd", *PLAN, "--no-count"]
OURS = (
    "history.csv",
    "params.npz",
    "params.json",
    "history.png",
    "history.svg",
    "history.pdf",
    "result.json",
    "run.json",
)


def refused(command, out, capsys, message):
    """The command ends by one line and leaves all as it was."""
    names = sorted(out.rglob("*"))
    before = {p: p.read_bytes() for p in names if p.is_file()}
    assert main([*command, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jtssm: error: --out: expected")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(out.rglob("*")) == names
    assert {p: p.read_bytes() for p in names if p.is_file()} == before


@pytest.mark.parametrize("name", OURS)
def test_a_file_that_is_there_is_not_replaced(name, tmp_path, capsys):
    (tmp_path / name).write_text("precious")
    refused(TRAIN, tmp_path, capsys, "holds one" if name == "result.json" else f"holds {name}")


@pytest.mark.parametrize("name", ["records.jsonl", "sweep.csv", "sweep.json", "sweep.png"])
@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_file_of_a_sweep_is_not_replaced(name, more, tmp_path, capsys):
    (tmp_path / name).write_text("precious")
    if name != "records.jsonl" or not more:
        refused([*SWEEP, *more], tmp_path, capsys, "without an earlier sweep")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (TRAIN, "history.csv"),
        (["train", "pdadmm", "--hidden", "8,8", "--shallow", "1"], "params-shallow.npz"),
        ([*TRAIN, "--history", "jsonl"], "history.jsonl"),
        (["demo"], "history-gsadmm.csv"),
        ([*SWEEP, "--resume"], "records.jsonl"),
    ],
)
@pytest.mark.parametrize("to", ["file", "nothing"])
def test_a_link_is_not_followed(command, name, to, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "file").write_text("precious")
    (tmp_path / "out" / name).symlink_to(tmp_path / to)
    refused(command, tmp_path / "out", capsys, "")
    assert not (tmp_path / "nothing").exists()


def test_a_folder_that_cannot_be_one_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "held" / "history.csv").mkdir(parents=True)
    for out, message in (
        (tmp_path / "file", "expected a folder that can be written; got"),
        (tmp_path / "file" / "run", "expected a folder that can be written; got"),
        (tmp_path / "held", "holds history.csv"),
        ("/proc/run", "expected a folder that can be written; got /proc/run"),
    ):
        assert main([*TRAIN, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert main([*TRAIN, "--out", str(tmp_path / "held"), "--overwrite"]) == 2
    assert "where history.csv can be a file" in capsys.readouterr().err


def test_without_rich_and_matplotlib_a_run_is_whole(tmp_path, capsys, monkeypatch):
    """An earlier run's files, one of them a link, are replaced where that is asked for."""
    out, elsewhere = tmp_path / "run", tmp_path / "precious"
    out.mkdir()
    elsewhere.write_text("precious")
    for name in OURS:
        (out / name).symlink_to(elsewhere)
    (out / "thesis.tex").write_text("precious")
    for module in ("rich", "rich.table", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main([*TRAIN, "--out", str(out), "--overwrite"]) == 0
    shown, notes = capsys.readouterr()
    assert "method  train acc.  valid acc.  test acc.  test loss  seconds\nsgd     0." in shown
    assert f"jtssm: no {out}/history.png: ImportError: figures need matplotlib" in notes
    assert elsewhere.read_text() == (out / "thesis.tex").read_text() == "precious"
    assert (out / "history.csv").read_text().count("\n") == 3
    assert "sgd" in json.loads((out / "result.json").read_text())["results"]
    assert (out / "history.png").is_symlink()  # what could not be drawn replaces nothing
    assert not (out / "run.json").is_symlink()
    assert sorted(p.name for p in out.iterdir()) == sorted({*OURS, "thesis.tex"} - {"run.json"})
    assert main(["methods"]) == 0
    assert "gsadmm" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_run_is_gone_on_from_by_its_own_command_alone(tmp_path, capsys, monkeypatch):
    """And the history of a complete one stands in another folder at once."""
    out, kept = tmp_path / "run", tmp_path / "kept"
    command = [*TRAIN, "--checkpoint", str(kept)]
    with monkeypatch.context() as patch:
        patch.setattr("jtssm.cli.runs.lines", lambda epochs: [stopping(1, lambda: sys.exit(9))])
        with pytest.raises(SystemExit):
            main([*command, "--out", str(out)])
    assert json.loads((out / "run.json").read_text()) == {"checkpoint": str(kept)}
    refused(TRAIN, out, capsys, "holds history.csv, run.json")
    refused([*TRAIN, "--checkpoint", str(tmp_path / "other")], out, capsys, "holds history.csv")
    (out / "history.csv").rename(tmp_path / "first.csv")
    (out / "history.csv").symlink_to(tmp_path / "first.csv")
    refused(command, out, capsys, "history.csv is a link to")
    (out / "history.csv").unlink()
    assert main([*command, "--out", str(out)]) == 0
    assert not (out / "run.json").exists()
    whole = (out / "history.csv").read_text()
    assert [line.split(",")[0] for line in whole.splitlines()] == ["epoch", "1", "2"]
    capsys.readouterr()
    refused(command, out, capsys, "holds one")
    with pytest.warns(UserWarning, match="complete in .*, nothing trained"):
        assert main([*command, "--out", str(tmp_path / "fresh")]) == 0
    assert (tmp_path / "fresh" / "history.csv").read_text() == whole


def test_what_is_needed_is_asked_for_before_the_data(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jtssm.cli.samples.load", lambda arguments: 1 / 0)
    monkeypatch.setitem(sys.modules, "orbax", None)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    assert main([*TRAIN, "--checkpoint", str(tmp_path / "kept")]) == 2
    assert "pip install 'jtssm[checkpoint]'" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("error", [RuntimeError("no font"), MemoryError(), OSError(28, "full")])
def test_a_figure_that_cannot_be_drawn_is_a_note(error, tmp_path, capsys):
    def draw(path):
        path.write_text("half")
        raise error

    results.drawn(tmp_path / "a.png", draw)
    assert f"jtssm: no {tmp_path}/a.png: {type(error).__name__}" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
    results.drawn(tmp_path / "a.png", lambda path: plot.histories(path, {}))
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_a_plain_table_leaves_out_empty_columns(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.table", None)
    tables.show("Title", ("a", "b", "c"), [("1", "", "[red]"), ("22", "", "")])
    assert capsys.readouterr().out == "Title\na   c\n1   [red]\n22\n"
    tables.show("None", ("a", "b"), [])
    assert capsys.readouterr().out == "None\na  b\n"
