"""Figures: what stands in them."""

from math import nan

import numpy as np
import pytest

from jtssm import plot

FILLING = [
    {"epoch": 1, "loss": nan, "coupling": nan, "valid_loss": 2.0, "valid_accuracy": 0.1},
    {"epoch": 2, "loss": 1.5, "coupling": 0.3, "valid_loss": 1.0, "valid_accuracy": 0.6},
]
PLAIN = [{"epoch": 1, "loss": 1.0, "valid_loss": 0.9, "valid_accuracy": 0.7}]


@pytest.fixture
def figures(monkeypatch):
    made, figure = [], plot._figure
    monkeypatch.setattr(plot, "_figure", lambda size: made.append(figure(size)) or made[-1])
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
    plot.on_links(tmp_path / "a.png", {"mlp": {"gsADMM": {"free": 0.6, "10mbit": 6.0}}})
    (axes,) = figures[0].axes
    line, one = axes.lines
    assert line.get_label() == "gsADMM"
    np.testing.assert_array_equal(line.get_ydata(), [0.6, 6.0])
    assert set(one.get_ydata()) == {1}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["free", "10mbit"]
