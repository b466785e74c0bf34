"""The report as it is read, as a whole and its parts."""

import math

import torch
from tiny_step import tiny_step, traced

from debug.tracer.findings import BadInput, BlockGrowth, Cause, GradientJump, Producer, Trace
from debug.tracer.operations import CodeLine, CodeLocation, Operation, tensor_stats
from debug.tracer.report import report_text


def full_trace() -> Trace:
    """A trace with something in every section of the report."""
    bad = torch.tensor([[1.0, math.nan], [math.inf, 2.0]])
    weighting = CodeLocation("", (CodeLine("train/tal.py", 99, "_metric"),))
    return Trace(
        producer=Producer(
            "loss", "aten.pow.Tensor_Scalar", "", (CodeLine("train/tal.py", 98, "_metric"), CodeLine("a.py", 1, "f")),
            "tal.metric", None, (tensor_stats("self", torch.tensor([[-3.0, 4.0], [1.0, 2.0]])),),
            (tensor_stats("result 0", bad),),
            {"exponent": 0.5}, ("one",),
        ),
        passed_on=[str(Operation(0, "aten.mul.Tensor", weighting, None))] * 8,
        growth=[
            BlockGrowth("l0", (2, 3, 8, 8), 2.0, 1.5, 0, 0.25, 3.0),
            BlockGrowth("l1", (2, 3, 8, 8), 400.0, 200.0, 0, 0.0),
            BlockGrowth("l2", (2, 3, 8, 8), math.nan, math.nan, 7, 1.0),
        ],
        cause=Cause("negative base", "why", "what to do"), evidence="followed",
        bad_inputs=[BadInput("boxes", "2 boxes are NaN", ("two",))], bad_weights=["l0.weight"],
        probes={"tal.score": tensor_stats("tal.score", torch.tensor([0.5]))}, parts={"box": 1.0, "cls": math.nan},
        jump=GradientJump(
            Operation(0, "aten.div.Tensor", CodeLocation("l1", (CodeLine("b.py", 2, "g"),)), "DivBackward0"), 1.0, 1e9
        ), num_harmless=2,
        num_operations=11, error="ValueError: so", notes=["a note"], image_ids=("one", "two"), precision="float32",
        seconds=1.25,
    )  # fmt: skip


FULL_REPORT = """\
loss not finite

bad value traced: first produced in the loss
  operation   aten.pow.Tensor_Scalar (exponent=0.5)
  where       train/tal.py:98 in _metric, called by a.py:1 in f
  first seen  tal.metric
  output      result 0 2x2 float32: 1 .. 2, 2 of 4 bad (1 NaN, 1 Inf)
  input       self 2x2 float32: -3 .. 4
  images      one
  evidence    followed
  likely      negative base: why
  fix         what to do

passed on by:
  aten.mul.Tensor at train/tal.py:99 in _metric
  aten.mul.Tensor at train/tal.py:99 in _metric
  aten.mul.Tensor at train/tal.py:99 in _metric
  aten.mul.Tensor at train/tal.py:99 in _metric
  aten.mul.Tensor at train/tal.py:99 in _metric
  aten.mul.Tensor at train/tal.py:99 in _metric
  and 2 more

the step itself raised:
  ValueError: so

also bad:
  boxes: 2 boxes are NaN (two)
  weights: l0.weight

steepest jump in the backward pass:
  aten.div.Tensor (DivBackward0) in l1 at b.py:2 in g: 1 -> 1e+09

parts of the loss:
  box 1, cls nan

notes:
  a note

probes, at their first call:
  tal.score 1 float32: 0.5 .. 0.5

growth, block by block:
  block  output             largest     ratio   weights  gradient
  l0     2x3x8x8                  2       1.5      0.25         3
  l1     2x3x8x8                400       200                      <-- steep
  l2     2x3x8x8                nan                   1            7 bad

11 operations in float32, 1.2 s; 2 produced infinities without any effect
"""


def test_a_report_in_full():
    assert report_text(full_trace(), "loss not finite") == FULL_REPORT


def test_an_empty_trace_reports_that_nothing_was_found():
    first, empty, last = report_text(Trace(precision="float32")).splitlines()
    assert first.startswith("nothing bad: every value of this step is finite") and "not reproduced here" in first
    assert (empty, last) == ("", "0 operations in float32, 0.0 s")


def test_an_error_without_a_bad_value():
    assert report_text(Trace(error="KeyError: x")).startswith(
        "the step raised an error, and no bad value was found before it\n"
    )


def test_a_producer_without_rows_is_followed_by_the_whole_batch():
    model, objective = tiny_step()
    model.stem[1].conv.weight.data[0, 0, 0, 0] = math.nan
    text = report_text(traced(model, objective))
    assert "tensor      stem.1.conv.weight" in text and "batch       a, b, c" in text


def test_statistics_of_an_empty_tensor_and_of_a_scalar():
    assert str(tensor_stats("self", torch.zeros(0, 4))) == "self 0x4 float32: empty"
    assert str(tensor_stats("self", torch.tensor(2.0), "boxes")) == "self (boxes) scalar float32: 2 .. 2"
    seen = tensor_stats("x", torch.tensor([0.0, -5.0, math.nan, -math.inf]))
    assert (seen.low, seen.high, seen.nearest_zero, seen.num_nan, seen.num_inf, seen.num_bad, seen.peak) == (
        -5,
        0,
        0,
        1,
        1,
        2,
        5,
    )
