"""Signals, broken-off runs on the command line, and what they leave: a checkpoint and a whole history."""

import json
import os
import shutil
import signal
import threading

import pytest

import jtssm
from jtssm.cli import main
from jtssm.train import history
from tests.train.killed import same
from tests.train.short_runs import SMALL, X, Y, complete, fail, fit, steps_in, stopping

# where reading or writing fails, tensorstore calls an event loop that orbax has closed already
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_chunk_writes_a_checkpoint_and_returns(number, tmp_path, monkeypatch):
    monkeypatch.setattr("jtssm.train.batches.CHUNK", 2)
    before = signal.getsignal(number)
    judge, left = jtssm.train.divergence.Guard.judge, iter(range(100))

    def judged(guard, *args):
        if next(left) == 4:
            os.kill(os.getpid(), number)
        return judge(guard, *args)

    with monkeypatch.context() as patch:
        patch.setattr(jtssm.train.divergence.Guard, "judge", judged)
        result = fit(tmp_path)
    assert signal.getsignal(number) is before
    assert result.interrupted
    assert result.signal == number
    assert len(result.history) == 1
    assert next(left) == 5  # no chunk was begun after it
    assert steps_in(tmp_path) == [6, 10]
    on = fit(tmp_path)
    assert not on.interrupted
    assert same(on, fit())


def test_a_second_ctrl_c_gives_up_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    result = fit(tmp_path, callbacks=[stopping(2, twice)])
    assert result.interrupted
    assert len(result.history) == 2
    assert steps_in(tmp_path) == [6]


def test_in_another_thread_no_handler_is_set(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(fit(tmp_path, epochs=1)))
    thread.start()
    thread.join()
    assert len(results[0].history) == 1


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_history_file_holds_each_epoch_once_over_several_lives(suffix, tmp_path):
    file = tmp_path / f"history.{suffix}"
    with pytest.raises(OSError, match="broken off"):
        fit(tmp_path / "run", callbacks=[history.HistoryFile(file), stopping(3, fail)])
    assert file.read_text().count("\n") == (4 if suffix == "csv" else 3)
    result = fit(
        tmp_path / "run",
        epochs=4,
        validation=(X, Y),
        callbacks=[history.HistoryFile(file)],
    )
    lines = file.read_text().splitlines()
    if suffix == "csv":
        names, *rows = (line.split(",") for line in lines)
        assert [row[0] for row in rows] == ["1", "2", "3", "4"]
        assert rows[0][names.index("validation_loss")] == ""
        assert float(rows[-1][names.index("loss")]) == result.history[-1]["loss"]
    else:
        assert [json.loads(line) for line in lines] == result.history
    file.write_text("of another run")
    complete(tmp_path / "run", epochs=4, callbacks=[history.HistoryFile(file)])
    assert file.read_text().splitlines() == lines  # complete: at once
    history.HistoryFile(file)  # which begins no training
    assert file.read_text().splitlines() == lines


def test_the_bar_shows_rate_and_time_left_and_where_a_run_goes_on(kept, tmp_path, capsys):
    folder = shutil.copytree(kept, tmp_path / "kept")
    fit(folder, epochs=4, progress=True)
    shown = capsys.readouterr().err
    assert " 12/24 " in shown
    assert " 24/24 " in shown
    assert "step/s" in shown or "s/step" in shown
    assert "[00:0" in shown
    assert "<" in shown  # time gone < time left
    fit(epochs=1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_line_exits_by_signal_and_goes_on(number, code, tmp_path, capsys, monkeypatch):
    command = [
        "train",
        *SMALL,
        "--out",
        str(tmp_path / "run"),
        "--checkpoint",
        str(tmp_path / "kept"),
    ]
    end = stopping(2, lambda: os.kill(os.getpid(), number))
    with monkeypatch.context() as patch:
        patch.setattr("jtssm.cli.runs.lines", lambda epochs: [end])
        assert main(command) == code
    assert "the same command goes on from" in capsys.readouterr().err
    assert not (tmp_path / "run" / "result.json").exists()
    assert main(command) == 0
    lines = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "1", "2", "3"]
    assert main([*command[:-2], "--every", "3", "--overwrite"]) == 2
    assert "every: expected None without a checkpoint" in capsys.readouterr().err
    written = (tmp_path / "run" / "result.json").read_text()
    # settings that did not train what is there
    assert main([*command, "--learning-rate", "0.5", "--overwrite"]) == 2
    assert "is of another: arguments: optimizer: learning_rate: " in capsys.readouterr().err
    assert main([*command[:6], "4", *command[7:], "--overwrite"]) == 2  # a cosine of more steps
    given = ["--learning-rate", "0.5", "--overwrite", "--resume", "anyway"]
    with pytest.warns(UserWarning, match="another run: arguments: optimizer"):
        assert main([*command, *given]) == 2
    assert "a run that is not complete, or more epochs" in capsys.readouterr().err
    assert (tmp_path / "run" / "result.json").read_text() == written
    with pytest.warns(UserWarning, match="checkpoint: complete in .*kept, nothing trained"):
        assert main([*command, "--overwrite", "--resume", "anyway"]) == 0
    assert (tmp_path / "run" / "history.csv").read_text().splitlines() == lines
