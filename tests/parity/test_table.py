"""The table of `make parity` hides nothing: neither what is too far apart, nor what nobody has measured."""

import math

import pytest
import torch
from parity.table import PARTS, Finding, largest_gap, note, surroundings, table

FIRST, SECOND, *OTHERS = PARTS


def test_every_part_has_a_line_whatever_was_measured():
    lines = table([])
    assert len(lines) == 1 + len(PARTS) and all(part in line for part, line in zip(PARTS, lines[1:], strict=True))
    assert all("not measured" in line for line in lines[1:])


def test_a_part_shows_its_cases_and_the_largest_difference():
    found = [Finding(FIRST, 2e-7, 1e-6), Finding(FIRST, 5e-7, 1e-6), Finding(SECOND, 3e-6, 1e-6)]
    found.append(Finding(OTHERS[0], math.inf, 1e-6))
    first, second, third = table(found)[1:4]
    assert first.split()[-3:] == ["2", "5.0e-07", "1e-06"]
    assert second.split()[-4:] == ["1", "3.0e-06", "1e-06", "FAILS"]
    assert third.split()[-4:] == ["1", "inf", "1e-06", "FAILS"]


def test_gaps_of_nothing_of_numbers_and_of_none():
    assert largest_gap(torch.zeros(0, 4), torch.zeros(0, 4)) == 0
    assert largest_gap(torch.tensor([1.0, 2]), torch.tensor([1.5, 2])) == 0.5
    assert largest_gap(torch.tensor([1.0, math.nan]), torch.tensor([1.0, 2])) == math.inf
    with pytest.raises(AssertionError, match="against"):
        largest_gap(torch.zeros(2, 1), torch.zeros(2))


@pytest.mark.parametrize("difference", [2e-6, math.inf, math.nan])
def test_a_difference_that_is_too_large_or_no_number_is_told_and_fails(difference):
    told = []
    note(lambda *one: told.append(one), FIRST, 1e-6, 1e-6)
    with pytest.raises(AssertionError, match="is allowed"):
        note(lambda *one: told.append(one), FIRST, difference, 1e-6)
    assert len(told) == 2 and Finding(*told[1][1]).difference > 1e-6


def test_versions_and_processor_are_told():
    assert "torch" in surroundings() and "Python" in surroundings()
