"""The benchmark of false alarms: its verdict and its table."""

import pytest

from benchmarks.false_alarms import BAD, GOOD, REFUSED, AlarmOutcome, Run, is_as_expected, table_row
from train.effect import STILL


def outcome(*no_effect):
    figures = {"weight_change": 0.02, "top_score": 0.5, "loss": 3.0, "map50": None}
    rows = [{"epoch": number, "no_effect": list(kinds), **figures} for number, kinds in enumerate(no_effect)]
    return AlarmOutcome(rows, ratios=[1.0], ema_changes=[])


@pytest.mark.parametrize(
    ("expected", "begins", "found", "right"),
    [
        (None, 1, outcome((), ()), True),
        (None, 1, outcome((), (STILL,)), False),
        (STILL, 1, outcome((), (STILL,)), True),
        (STILL, 1, outcome((), (), (STILL,)), False),
        (STILL, 2, outcome((), (), (STILL,)), True),
        (STILL, 1, outcome((), ("another",)), False),
        (REFUSED, 1, AlarmOutcome(messages=["nothing can be trained: ..."]), True),
        (STILL, 1, AlarmOutcome(messages=["another error"]), False),
    ],
)
def test_a_report_has_to_be_the_right_one_in_time(expected, begins, found, right):
    run = Run("name", "description", {}, expected, begins=begins)
    assert is_as_expected(run, found) == right
    assert table_row(run, found).count("|") == 9


def test_how_many_runs_there_are():
    assert len(GOOD) >= 6 and sum("random weights" in run.description for run in GOOD) >= 2 and len(BAD) >= 6
