"""Figures: what stands in them."""

from math import nan

import numpy as np
import pytest

from benchmarks import figures as figures_of_results
from jtssm import plot

FILLING = [
    {"epoch": 1, "loss": nan, "coupling": nan, "valid_loss": 2.0, "valid_accuracy": 0.1},
    {"epoch": 2, "loss": 1.5, "coupling": 0.3, "valid_loss": 1.0, "valid_accuracy": 0.6},
]
PLAIN = [{"epoch": 1, "loss": 1.0, "valid_loss": 0.9, "valid_accuracy": 0.7}]


@pytest.fixture
def figures(monkeypatch):
    made, figure = [], plot.new_figure
    monkeypatch.setattr(plot, "new_figure", lambda size: made.append(figure(size)) or made[-1])
    return made


def test_a_run_has_curves_of_what_it_shows_and_gaps_where_nothing_was_measured(figures, tmp_path):
    plot.histories(tmp_path / "a.png", {"gsADMM": FILLING, "sgd": PLAIN})
    accuracy, loss, residuals = figures[0].axes
    assert [line.get_label() for line in accuracy.lines] == ["gsADMM valid", "sgd valid"]
    assert [line.get_label() for line in loss.lines] == ["gsADMM valid", "sgd valid"]
    (coupling,) = residuals.lines
    assert coupling.get_label() == "gsADMM coupling"
    np.testing.assert_array_equal(coupling.get_ydata(), [nan, 0.3])
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_run_of_which_nothing_was_measured_has_no_curve_of_residuals(figures, tmp_path):
    plot.histories(tmp_path / "a.png", {"gsADMM": FILLING[:1]})
    assert not figures[0].axes[2].lines


def test_hosts_are_lines_over_the_rates_of_their_link_with_one_host_across(figures, tmp_path):
    figures_of_results.on_links(
        tmp_path / "a.png", {"mlp": {"gsADMM": {"free": 0.6, "10mbit": 6.0}}}
    )
    (axes,) = figures[0].axes
    one, line = axes.lines
    assert line.get_label() == "gsADMM"
    np.testing.assert_array_equal(line.get_ydata(), [0.6, 6.0])
    assert set(one.get_ydata()) == {1}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["free", "10 Mbit/s"]


def legend(figure):
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def test_equal_curves_are_drawn_once_under_both_names(figures, tmp_path):
    plot.histories(tmp_path / "a.png", {"gsADMM": PLAIN, "sgd": PLAIN})
    assert [line.get_label() for line in figures[0].axes[0].lines] == ["gsADMM valid = sgd valid"]
    assert legend(figures[0]) == ["gsADMM valid = sgd valid"]


TRADEOFF = {
    "end to end": {"subnets": 1, "test_accuracy": [0.98, 0.96], "coupling": 0.0},
    "gsADMM, n = 4": {"subnets": 4, "test_accuracy": [0.87, 0.95], "coupling": 0.5},
    "gsADMM, n = 2": {"subnets": 2, "test_accuracy": [0.99, 0.96], "coupling": 0.1},
    "gsAM, n = 2": {"subnets": 2, "test_accuracy": [0.96], "coupling": 0.2},
}


def test_the_tradeoff_is_in_points_behind_on_a_log_axis_with_ranges_over_seeds(figures, tmp_path):
    """Mean of end to end .97: 4 subnetworks are 10 and 2 points behind; 2 are not, and stand at the end."""
    plot.tradeoff(tmp_path / "a.png", TRADEOFF, baseline="end to end")
    behind, coupling = figures[0].axes
    assert behind.get_yscale() == coupling.get_yscale() == "log"
    first, second = behind.containers
    np.testing.assert_allclose(np.asarray(first.lines[0].get_ydata(), float), [0.01, 6.0])
    np.testing.assert_allclose(np.asarray(second.lines[0].get_ydata(), float), [1.0])
    (segments,) = first.lines[2]
    ends = [segment[:, 1].astype(float) for segment in segments.get_segments()]
    np.testing.assert_allclose(ends, [[0.01, 1.0], [2.0, 10.0]])
    np.testing.assert_array_equal(behind.get_xticks(), [2, 4])
    assert legend(figures[0]) == ["seeds of end to end", "gsADMM", "gsAM"]
    assert behind.get_ylabel() == "points of test accuracy behind end to end"
    np.testing.assert_array_equal(coupling.lines[0].get_ydata(), [0.1, 0.5])


RECORDS = [
    {"mesh": "1 x 1 x 2", "seconds": 0.004, "seconds_products": 0.003, "seconds_all_reduce": 0.002}
    | {"memory_weights": 2e6, "memory_samples": 1e6, "best": False, "measured_seconds": 0.006},
    {"mesh": "2 x 1 x 1", "seconds": 0.002, "seconds_products": 0.002, "seconds_all_reduce": 0.0}
    | {"memory_weights": 1e6, "memory_samples": 1e6, "best": True},
    {"mesh": "1 x 2 x 1", "error": "ValueError: no"},
]


def test_shapes_show_milliseconds_and_megabytes_and_mark_the_best(figures, tmp_path):
    plot.shapes(tmp_path / "a.png", RECORDS, "sgd")
    times, memory = figures[0].axes
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in times.containers}
    assert heights == {"products": [3.0, 2.0], "all-reduces": [2.0, 0.0]}
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in memory.containers}
    assert heights == {"weights": [2.0, 1.0], "samples": [1.0, 1.0]}
    (best,) = times.texts
    assert (best.get_text(), best.xy) == ("best", ("2 x 1 x 1", 2.0))
    assert times.get_ylim()[0] == 0
    assert times.get_ylim()[1] > 6  # the measured cross is not cut
    assert (times.get_ylabel(), memory.get_ylabel()) == ("ms a step", "MB a device holds (bound)")
    hatches = [bars[0].get_hatch() for bars in memory.containers]
    assert len({*hatches}) == 2


def test_what_sends_nothing_is_a_dotted_line_in_the_panel_of_bytes(figures, tmp_path):
    line = {"valid_accuracy": [0.8, 0.9], "steps": [1, 2], "samples": [9e4, 2e5], "seconds": [1, 2]}
    lines = {"IST": line | {"bytes": [5, 9]}, "ensemble": line | {"bytes": [0, 0]}}
    plot.against_four(tmp_path / "a.png", lines)
    told, dotted = figures[0].axes[2].lines
    assert told.get_label() == "IST"
    assert (dotted.get_linestyle(), dotted.get_ydata()) == (":", [0.9, 0.9])
    # in the other panels both are the same curve
    assert [line.get_label() for line in figures[0].axes[0].lines] == ["IST = ensemble"]
    ticks = [text.get_text() for text in figures[0].axes[1].get_xticklabels()]
    assert any(text.endswith(" k") for text in ticks)


def test_names_beyond_the_colours_have_looks_of_their_own():
    looks = plot.looks_of(map(str, range(16)))
    assert len({*looks.values()}) == 16
    assert {look.markerfacecolor for look in [*looks.values()][8:]} == {"white"}


@pytest.mark.parametrize(
    "suffix",
    [".svg", *(pytest.param(suffix, marks=pytest.mark.slow) for suffix in (".png", ".pdf"))],
)
def test_a_figure_is_the_same_file_each_time(tmp_path, suffix):
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for file in files:
        plot.histories(file, {"gsADMM": FILLING})
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("labels", "joint"),
    [
        (["sgd valid"], "sgd valid"),
        (["n = 2 primal residual", "n = 2 dual residual"], "n = 2 primal residual = dual residual"),
        (["gsADMM valid", "sgd valid"], "gsADMM valid = sgd valid"),
        (["IST", "ISTs"], "IST = ISTs"),
    ],
)
def test_names_of_one_curve_are_joined(labels, joint):
    assert plot._joint(labels) == joint
