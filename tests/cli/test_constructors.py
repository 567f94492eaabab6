"""Options of the command line: each has a help text, each argument of a method is one."""

import argparse
import inspect
from collections.abc import Sequence

import pytest

from jtssm import solvers
from jtssm.cli import main, parser
from jtssm.cli.constructors import NOT_OPTIONS, add_options, flag, given, names
from jtssm.protocol.arguments import described
from jtssm.protocol.method import Method


def parsers(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """All that can be reached from one, by the words that lead there."""
    found = {top.prog: top}
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found |= parsers(below)
    return found


PARSERS = parsers(parser())


def words(command: str) -> set[str]:
    return {word for action in PARSERS[command]._actions for word in action.option_strings}


def test_there_is_a_parser_for_each_command_and_method():
    alone = {"jtssm"} | {
        f"jtssm {name}"
        for name in ("train", "plan", "sweep", "demo", "methods", "data", "calibrate")
    }
    a_method = {
        f"jtssm {name} {method}"
        for name in ("train", "plan", "sweep")
        for method in solvers.METHODS
    }
    assert set(PARSERS) == alone | a_method | {"jtssm data get"}


@pytest.mark.parametrize("command", PARSERS)
def test_every_option_has_a_help_text(command):
    for action in PARSERS[command]._actions:
        if not isinstance(action, argparse._SubParsersAction):
            assert len(action.help or "") > 3, f"{command}: {action.option_strings}"
    PARSERS[command].format_help()  # a text with a stray % raises


@pytest.mark.parametrize("method", solvers.METHODS)
def test_each_argument_of_a_constructor_is_described_and_an_option(method):
    arguments = set(inspect.signature(solvers.METHODS[method]).parameters)
    assert set(described(solvers.METHODS[method])) == arguments
    assert arguments - set(NOT_OPTIONS) <= set(names(solvers.METHODS[method]))
    options = {flag(name) for name in names(solvers.METHODS[method])}
    assert options <= words(f"jtssm train {method}")
    # the command's --batch is that of all devices together
    assert options - {"--batch-size"} <= words(f"jtssm plan {method}")
    assert options - {"--batch-size"} <= words(f"jtssm sweep {method}")
    others = {flag(name) for make in solvers.METHODS.values() for name in names(make)}
    assert not (others - options) & words(f"jtssm train {method}")


def test_the_fields_of_both_schedules_are_options_which_say_whose_they_are():
    own = ["schedule", "sweeps", "delay_power", "weight_steps"]
    assert [name for name in names(solvers.gsadmm) if name in [*own, "order"]] == own
    assert [name for name in names(solvers.gsam) if name in [*own, "order"]] == [*own, "order"]
    text = " ".join(PARSERS["jtssm train gsam"].format_help().split())
    for part in (
        "--sweeps N streaming: ADMM sweeps a minibatch. stored: ADMM sweeps a step; default: 1",
        "--weight-steps N stored only: minibatch steps of W a sweep",
        "--delay-power X streaming only: updates of subnetwork l",
        "--order NAME stored only: of gsAM",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("words", "schedule"),
    [
        ([], None),
        (["--schedule", "stored"], "stored"),
        (["--sweeps", "2", "--delay-power", "0"], solvers.Streaming(2, 0.0)),
        (["--schedule", "stored", "--weight-steps", "5"], solvers.Stored(weight_steps=5)),
        (
            ["--schedule", "stored", "--order", "parallel", "--sweeps", "3"],
            solvers.Stored(3, order="parallel"),
        ),
        (["--schedule", "async", "--sweeps", "3"], "async"),  # which the constructor refuses
    ],
)
def test_options_of_a_schedule_make_the_schedule(words, schedule):
    found = given(PARSERS["jtssm train gsam"].parse_args(words), solvers.gsam)
    assert found.pop("schedule", None) == schedule
    assert found == {"batch_size": 110}


def test_what_shapes_no_layer_or_takes_no_gradient_lacks_the_options_for_it():
    for method in solvers.METHODS:
        taken = words(f"jtssm train {method}")
        assert ("--forms" in taken) == (method not in ("ist", "local_sgd", "ensemble"))
        assert ("--shallow" in taken) == (method == "pdadmm")
        assert ("--optimizer" in taken) == ("--learning-rate" in taken) == (method != "pdadmm")


def made(
    net,
    *,
    number: int,
    lengths: Sequence[float] | int | None = None,
    share: float = 50.0,
    exactly: bool = False,
    loss: str = "",
) -> Method:
    """A method. It has a second sentence.

    Args:
      net: the network.  number: a number: of things.
      lengths: of
        100% `steps`. None: all.  share, exactly: both
        of them.

    Raises:
      ValueError: never.
    """
    raise NotImplementedError


def test_options_have_the_types_and_defaults_of_the_signature(capsys):
    command = argparse.ArgumentParser()
    add_options(command, made, {}, {})
    with pytest.raises(SystemExit):
        command.parse_args([])
    assert "required: --number" in capsys.readouterr().err
    found = command.parse_args(["--number", "3"])
    assert given(found, made) == {"number": 3}
    words = ["--number", "3", "--lengths", "1,2", "--share", "1", "--exactly"]
    options = given(command.parse_args(words), made)
    assert options == {"number": 3, "lengths": [1.0, 2.0], "share": 1.0, "exactly": True}
    assert type(options["share"]) is float
    assert given(command.parse_args([*words[:2], "--lengths", "8"]), made)["lengths"] == 8
    text = " ".join(command.format_help().split())
    for part in ("of things; required", "100% steps. None: all.", "both of them; default: 50.0"):
        assert part in text


def test_a_default_of_the_commands_own_stands_for_one_that_the_signature_lacks():
    command = argparse.ArgumentParser()
    add_options(command, made, {"number": 20})
    assert given(command.parse_args([]), made) == {"number": 20}
    command = argparse.ArgumentParser()
    add_options(command, made, {}, {"number": "as the mesh says"})
    assert given(command.parse_args([]), made) == {}
    assert "default: as the mesh says" in " ".join(command.format_help().split())


@pytest.mark.parametrize("command", ["train", "plan", "sweep"])
def test_help_of_a_command_lists_its_methods(command, capsys):
    for words in ([command], [command, "--method", "gsam"], [command, "gsam"]):
        with pytest.raises(SystemExit, match="0"):
            main([*words, "--help"])
        shown = capsys.readouterr().out
        assert ("--delay-power" in shown) == ("gsam" in words)
        assert ("local_sgd" in shown) == ("gsam" not in words)
