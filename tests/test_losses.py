"""Losses against their formulas."""

import numpy as np
import pytest

from jtssm import losses

OUTPUTS = np.array([[1.0, 2.0, -1.0], [0.0, 0.0, 3.0]])


def test_cross_entropy_is_minus_the_log_of_the_softmax_at_the_label():
    y = np.array([0, 2], np.int32)
    softmax = np.exp(OUTPUTS) / np.exp(OUTPUTS).sum(1, keepdims=True)
    expected = -np.log(softmax[[0, 1], y])
    np.testing.assert_allclose(losses.cross_entropy().value(OUTPUTS, y), expected)
    np.testing.assert_array_equal(losses.cross_entropy().correct(OUTPUTS, y), [0, 1])


def test_squared_error_is_half_the_squared_distance():
    y = np.zeros_like(OUTPUTS)
    np.testing.assert_allclose(losses.squared_error().value(OUTPUTS, y), [3.0, 4.5])


def test_losses_are_found_by_name():
    assert losses.find("cross_entropy").name == losses.find(losses.cross_entropy).name
    squared = losses.squared_error()
    assert losses.find(squared) is squared
    with pytest.raises(ValueError, match=r"loss: expected one of \['cross_entropy'.*got 'hinge'"):
        losses.find("hinge")
