"""`make chaos` with a few kills. Its comparison must notice a loss."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.chaos import ChaosRow, CommandResult, is_same, table

ROOT = Path(__file__).resolve().parent.parent


def test_the_comparison_sees_every_difference():
    state = {"model": {"w": torch.tensor([1.0, 2.0])}, "steps": [1, None]}
    assert is_same(state, {"model": {"w": torch.tensor([1.0, 2.0])}, "steps": [1, None]})
    least = torch.nextafter(torch.tensor([1.0, 2.0]), torch.tensor(3.0))
    for changed in (
        {"model": {"w": least}, "steps": [1, None]},
        {"model": {"w": state["model"]["w"].double()}, "steps": [1, None]},
        {"model": {}, "steps": [1, None]},
        {"model": state["model"], "steps": [1]},
        {"model": state["model"], "steps": [True, None]},
        None,
    ):
        assert not is_same(state, changed)


def test_a_complaint_is_one_sentence_with_its_status():
    assert CommandResult(2, "", "mars: a: is damaged\n").complaint(2, "damaged") == ""
    for result in (
        CommandResult(1, "", "mars: damaged\n"),
        CommandResult(2, "", "mars: else\n"),
        CommandResult(2, "", "Traceback\ndamaged\n"),
    ):
        assert "expected status 2" in result.complaint(2, "damaged")


def test_the_table_counts_what_was_lost():
    lines = table([ChaosRow("killed", 3, 2, ["002: weights differ"]), ChaosRow("full disk", 1, 1)]).splitlines()
    assert [line.split() for line in (lines[0], lines[2], lines[-1])] == [
        ["fault", "tried", "survived", "lost"],
        ["killed", "3", "2", "1"],
        ["all", "4", "3", "1"],
    ]


@pytest.mark.slow
def test_four_kills():
    command = [sys.executable, "-m", "benchmarks.chaos", "--kills", "4", "--seed", "1", "--no-faults"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-2].split() == ["all", "4", "4", "0"]
