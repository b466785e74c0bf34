"""`make chaos` in short; and that its comparison would see a loss."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.chaos import Done, Tally, same, table

ROOT = Path(__file__).resolve().parent.parent


def test_the_comparison_sees_every_difference():
    one = {"model": {"w": torch.tensor([1.0, 2.0])}, "steps": [1, None]}
    assert same(one, {"model": {"w": torch.tensor([1.0, 2.0])}, "steps": [1, None]})
    least = torch.nextafter(torch.tensor([1.0, 2.0]), torch.tensor(3.0))
    for other in (
        {"model": {"w": least}, "steps": [1, None]},
        {"model": {"w": one["model"]["w"].double()}, "steps": [1, None]},
        {"model": {}, "steps": [1, None]},
        {"model": one["model"], "steps": [1]},
        {"model": one["model"], "steps": [True, None]},
        None,
    ):
        assert not same(one, other)


def test_a_complaint_is_one_sentence_with_its_status():
    assert Done(2, "", "mars: a: is damaged\n").complaint(2, "damaged") == ""
    for done in (Done(1, "", "mars: damaged\n"), Done(2, "", "mars: else\n"), Done(2, "", "Traceback\ndamaged\n")):
        assert "wanted status 2" in done.complaint(2, "damaged")


def test_the_table_counts_what_was_lost():
    lines = table([Tally("killed", 3, 2, ["002: weights differ"]), Tally("full disk", 1, 1)]).splitlines()
    assert [line.split() for line in (lines[0], lines[2], lines[-1])] == [
        ["what", "was", "done", "tried", "survived", "lost"],
        ["killed", "3", "2", "1"],
        ["all", "4", "3", "1"],
    ]


@pytest.mark.slow
def test_four_kills():
    command = [sys.executable, "-m", "benchmarks.chaos", "--kills", "4", "--seed", "1", "--no-faults"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-2].split() == ["all", "4", "4", "0"]
