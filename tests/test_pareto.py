"""Ratios between curves, on curves whose ratio is known."""

import numpy as np
import pandas as pd
import pytest

from analyses.pareto import matched, mean_ratio


def test_the_ratio_of_two_power_laws_is_found_where_they_overlap():
    x, other_x = np.array([10.0, 20, 80]), np.array([15.0, 40, 200])
    ratio, low, high = mean_ratio(x, 3 / x, other_x, 1.5 / other_x)
    assert ratio == pytest.approx(0.5) and (low, high) == (15, 80)


def test_the_order_of_the_points_does_not_matter():
    x = np.array([80.0, 10, 20])
    assert mean_ratio(x, 3 / x, x, 6 / x)[0] == pytest.approx(2)


def test_curves_that_do_not_overlap_have_no_ratio():
    assert np.isnan(mean_ratio(np.array([1.0, 2]), np.ones(2), np.array([3.0, 4]), np.ones(2))[0])


def test_both_comparisons_are_made_both_ways_and_single_points_are_left_out():
    l0 = np.array([10.0, 20, 40])
    frame = pd.concat(
        [
            pd.DataFrame({"curve": "local relu", "L0": 2 * l0, "CE increase": 4 / l0}),
            pd.DataFrame({"curve": "e2e relu", "L0": l0, "CE increase": 4 / l0}),
            pd.DataFrame({"curve": "local topk", "L0": [16.0], "CE increase": [0.2]}),
        ]
    )
    found = matched(frame).set_index(["what", "of", "over"])["ratio"]
    assert found["L0 at matched CE increase", "e2e relu", "local relu"] == pytest.approx(0.5)
    assert found["CE increase at matched L0", "e2e relu", "local relu"] == pytest.approx(0.5)
    assert found["L0 at matched CE increase", "local relu", "e2e relu"] == pytest.approx(2)
    assert len(found) == 4


def test_curves_that_share_a_point_only_have_no_ratio():
    """TopK dictionaries of several widths all lie at about the same L0."""
    x, other_x = np.array([15.99, 16.0]), np.array([10.0, 40])
    assert np.isnan(mean_ratio(x, np.array([0.1, 0.2]), other_x, 1 / other_x)[0])
