"""`make faults` with a few faults. Its verdict must notice a fault that is missed, misnamed, or changes the state."""

from dataclasses import replace

import pytest
import torch

from benchmarks import bad_values
from benchmarks.bad_values import ALL_INJECTIONS, main, table, try_out
from benchmarks.fault_runs import FaultOutcome, FaultRuns, digest_of, report_rows

BY_NAME = {injection.name: injection for injection in ALL_INJECTIONS}
PAGE = """cwd below zero: loss -1

bad value traced: first produced in the loss
  operation   aten.log.default
  first seen  distil.cwd
  input       self (2, 3) of float32

passed on by:
  aten.mul.Tensor at train/loss.py:1 in f

before this step: spike in batch 3: cls 9 is 9 times what is usual
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> FaultRuns:
    return FaultRuns(tmp_path_factory.mktemp("faults"), 64)


@pytest.mark.parametrize("name", ["normaliser", "box", "own-silu"])
def test_a_fault_is_caught_and_a_wrong_expectation_would_show(runs, name):
    injection = BY_NAME[name]
    outcome = try_out(runs, injection)
    assert (outcome.missing(injection), outcome.changed) == ([], ())
    for row in injection.expected:
        wrong = replace(injection, expected={**injection.expected, row: "another"})
        assert outcome.missing(wrong) == [row]
    for part in ("weights", "momentum", "EMA", "files"):
        assert FaultOutcome(outcome.reported, (part,)).missing(injection) == [part]


def test_a_guard_that_sees_nothing_is_found_out(runs, monkeypatch):
    monkeypatch.setattr("train.guard.flag_of", lambda numbers, never_negative=(): torch.zeros(()))
    injection = replace(BY_NAME["normaliser"], name="unseen")
    outcome = try_out(runs, injection)
    assert {"phase", "operation", "weights", "momentum"} <= {*outcome.missing(injection)}
    assert "momentum" in outcome.reported["left"], "the checkpoint was not written, but everything else is lost"


def test_the_rows_of_a_page():
    assert report_rows(PAGE) == {
        "phase": "first produced in the loss", "operation": "aten.log.default", "first seen": "distil.cwd",
        "input": "self (2, 3) of float32", "before": "spike in batch 3: cls 9 is 9 times what is usual",
    }  # fmt: skip
    assert report_rows("") == {}


def test_a_single_image_is_to_be_named_and_not_the_whole_batch():
    assert FaultOutcome({"images": "{image}"}).missing(replace(BY_NAME["box"], expected={"images": "{image}"})) == []
    assert FaultOutcome({"images": "a, {image}"}).missing(replace(BY_NAME["box"], expected={"images": "{image}"})) == [
        "images"
    ]


def test_digests_tell_bits_apart_and_equal_nan():
    values = torch.tensor([1.0, float("nan")])
    assert digest_of(values) == digest_of(values.clone())
    assert digest_of(torch.tensor([0.0])) != digest_of(torch.tensor([-0.0]))
    assert digest_of(torch.zeros(2, 1)) != digest_of(torch.zeros(1, 2)) != digest_of(torch.zeros(1, 2).double())
    assert digest_of(torch.zeros(0)) == digest_of(torch.zeros(0))


@pytest.mark.parametrize(("tensor", "status"), [("boxes", 0), ("images", 1)])
def test_one_no_is_exit_status_1(monkeypatch, capsys, tensor, status):
    reported = {"phase": "the batch itself is bad", "tensor": tensor, "images": "{image}", "likely": "bad box: ..."}
    monkeypatch.setattr(bad_values, "FaultRuns", lambda *args: None)
    monkeypatch.setattr(bad_values, "try_out", lambda runs, injection: FaultOutcome(reported, ()))
    assert main(["--only", "box"]) == status
    out = capsys.readouterr().out
    assert ("failed: box" in out, "NO: tensor" in out, f"{1 - status} of 1 caught" in out) == (status, status, True)


def test_the_table_wraps_its_cells():
    assert len(table([]).splitlines()) == 3
    lines = table([("a b " * 20, "one\ntwo", "", "all", "yes")]).splitlines()
    assert lines[3].split()[-4:] == ["b", "one", "all", "yes"] and "two" in lines[4]


def test_every_fault_has_a_name_of_its_own_and_an_expectation():
    assert len(BY_NAME) == len(ALL_INJECTIONS) == 25
    assert all(injection.expected for injection in ALL_INJECTIONS)
