"""Validation figures that cannot be believed."""

import math

import pytest

from train.effect import finite_or_none, unchanged_ap


@pytest.mark.parametrize(
    ("figure", "wanted"), [(None, None), (math.nan, None), (math.inf, None), (0.0, 0.0), (0.3, 0.3)]
)
def test_only_finite_figures_count(figure, wanted):
    assert finite_or_none(figure) == wanted


def history(*figures):
    return [{"epoch": number, "map50_95": figure} for number, figure in enumerate(figures)]


@pytest.mark.parametrize(
    ("before", "figure", "is_said"),
    [
        ((), 0.3, False),
        ((None, None), 0.3, False),
        ((0.3,), 0.3, True),
        ((0.3, None), 0.3, True),  # of the last epoch that was validated
        ((0.3,), math.nextafter(0.3, 1), False),  # to the last bit
        ((0.3, 0.4), 0.3, False),
        ((0.2, 0.3, 0.3), 0.3, False),  # said already
        ((0.3, 0.3, 0.4), 0.4, True),  # of another standstill
        ((0.0,), 0.0, False),
        ((0.0,) * 9, 0.0, True),
        ((0.0,) * 10, 0.0, False),  # said already
        ((0.1, *(0.0,) * 8), 0.0, False),  # something was found once
        ((1.0,), 1.0, False),
        ((None,), None, False),
    ],
)
def test_a_figure_that_comes_again(before, figure, is_said):
    sentence = unchanged_ap(history(*before), len(before), figure)
    assert (sentence is not None) == is_said
    if sentence and figure:
        assert f"epoch {len(before) + 1} equals that of epoch" in sentence and repr(figure) in sentence
    elif sentence:
        assert "was 0 in each of 10 epochs" in sentence
