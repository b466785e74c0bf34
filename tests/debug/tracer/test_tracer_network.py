"""Faults in the network, forward and backward, injected from outside: is their place named?"""

import math
from pathlib import Path

import pytest
import torch
from tiny_step import line_of, spoil_output, tiny_step, traced
from torch.nn import functional as F

from debug.tracer.report import report_text

HERE = Path(__file__).name


def test_a_block_scaled_until_it_overflows():
    model, objective = tiny_step()
    with torch.no_grad():
        model.head[1].weight.mul_(1e38).abs_().add_(1e38)
    found = traced(model, objective)
    assert (found.phase, found.producer.module, found.producer.base) == ("forward", "head.1", "convolution")
    assert found.cause.name == "huge weights in one block"
    row = next(block for block in found.growth if block.name == "head.1")
    assert row.ratio > 1e30 and row.num_bad > 0


def test_values_that_batch_norm_cannot_hold_are_found_in_its_statistics():
    """Their variance overflows, the batch is normalised to zeros, and nothing that comes out is bad."""
    model, objective = tiny_step()
    with torch.no_grad():
        model.stem[1].conv.weight.mul_(1e30)
    found = traced(model, objective)
    assert (found.phase, found.producer.module) == ("forward", "stem.1.bn")
    assert "batch_norm" in found.producer.base and found.cause.name == "huge weights in one block"


def test_weights_that_are_huge_everywhere_point_to_the_learning_rate():
    model, objective = tiny_step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e20)
    found = traced(model, objective)
    assert found.phase == "forward" and found.cause.name == "learning rate too high"


def test_an_overflow_of_float16():
    model, objective = tiny_step()
    with torch.no_grad():
        model.head[2].weight.mul_(1e5)
    found = traced(model, objective, precision=torch.float16)
    assert (found.phase, found.producer.module) == ("forward", "head.2")
    assert found.cause.name == "half-precision overflow"
    found = traced(model, objective, precision=torch.float32)
    assert found.producer is None


def test_zero_times_infinity():
    model, objective = tiny_step()
    spoil_output(model.stem[1], lambda x: x + (x.detach() * 0) * torch.full_like(x, math.inf))
    found = traced(model, objective)
    assert (found.phase, found.producer.base, found.cause.name) == ("forward", "mul", "zero times infinity")
    assert "written by aten.full_like" in found.producer.source and line_of(found)[0] == HERE


def test_an_infinity_placed_by_where_and_multiplied_by_zero():
    model, objective = tiny_step()
    spoil_output(model.stem[1], lambda x: x * 0 * torch.where(x > 0, math.inf, 0.0) + x)
    found = traced(model, objective)
    assert (found.producer.base, found.cause.name) == ("mul", "zero times infinity")
    assert "an infinity written by aten." in found.producer.source


@pytest.mark.parametrize(
    ("change", "base", "cause"),
    [
        (lambda x: x + (x * 1000).exp(), "exp", "exp overflow"),
        (lambda x: x + (x - 5).sqrt(), "sqrt", "root of a negative number"),
        (lambda x: x + (x - x.amax()).log(), "log", "log of a negative number"),
        (lambda x: x / (x - x), "div", "zero normaliser"),
        (lambda x: x / 0, "div", "zero normaliser"),
        (lambda x: (x * 0).reciprocal() + x, "reciprocal", "zero normaliser"),
        (lambda x: x + (x.abs() + 2).acos(), "acos", "edge of the domain"),
        (lambda x: x.masked_fill(x.abs() >= 0, -math.inf).softmax(1) + x, "_softmax", "everything masked"),
        (lambda x: x.fill_(math.nan), "fill", "constant in the code"),
        (lambda x: x + math.nan, "add", "constant in the code"),
        (lambda x: x * torch.tensor(math.nan), "mul", "constant in the code"),
        (lambda x: x.masked_fill(x > 0, math.inf) - x.masked_fill(x > 0, math.inf), "sub", "infinity minus infinity"),
        (lambda x: x * 1e30 * 1e30, "mul", "overflow"),
    ],
)
def test_the_likely_cause(change, base, cause):
    model, objective = tiny_step()
    spoil_output(model.stem[1], change)
    found = traced(model, objective)
    assert (found.phase, found.producer.base, found.cause.name) == ("forward", base, cause)
    assert line_of(found) == (HERE, "<lambda>")


def test_a_root_at_zero_backward():
    model, objective = tiny_step()

    def length(x):
        return x + (x * 0).pow(2).sum(dim=1, keepdim=True).sqrt()

    spoil_output(model.stem[2], length)
    found = traced(model, objective)
    assert (found.phase, found.producer.node) == ("backward", "SqrtBackward0")
    assert found.cause.name == "root at zero, backward" and line_of(found) == (HERE, "length")


def test_an_unguarded_normalise_whose_value_is_masked_but_not_its_gradient():
    model, objective = tiny_step()

    def normalised(x):
        zeros = x * 0
        norm = zeros.norm(dim=1, keepdim=True)
        return x + torch.where(norm > 0, zeros / norm, zeros)

    spoil_output(model.stem[2], normalised)
    found = traced(model, objective)
    assert (found.phase, found.producer.node) == ("backward", "DivBackward0")
    assert found.cause.name == "unguarded normalise, backward" and line_of(found) == (HERE, "normalised")
    assert found.producer.module == "stem.2"


def test_a_gradient_that_is_huge_but_finite_shows_as_a_jump():
    model, objective = tiny_step()
    spoil_output(model.stem[2], lambda x: x + F.normalize(x * 0, dim=1))
    found = traced(model, objective)
    assert found.producer is None
    assert found.jump.operation.node == "DivBackward0" and found.jump.after > 1e5 * found.jump.before
    assert "steepest jump in the backward pass" in report_text(found)


def test_gradients_whose_norm_overflows():
    model, objective = tiny_step()
    spoil_output(model.stem[2], lambda x: x + F.normalize(x - x.detach(), dim=1, eps=1e-30))
    found = traced(model, objective)
    assert found.phase == "backward" and "norm" in found.producer.base
    assert found.cause.name == "exploding gradient"
    assert Path(found.jump.operation.location.line.file).name == HERE


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient / (gradient - gradient)


def test_a_custom_backward():
    model, objective = tiny_step()
    spoil_output(model.stem[3], BadBackward.apply)
    found = traced(model, objective)
    assert (found.phase, found.producer.node, found.cause.name) == (
        "backward",
        "BadBackwardBackward",
        "custom backward",
    )
    assert line_of(found) == (HERE, "backward")


def test_a_hook_on_a_gradient():
    model, objective = tiny_step()
    model.stem[1].conv.weight.register_hook(lambda gradient: gradient * math.inf)
    found = traced(model, objective)
    assert found.phase == "backward" and found.producer.tensor == "the gradient of stem.1.conv.weight"
    assert line_of(found) == (HERE, "<lambda>")


def test_an_overflow_of_float16_backward():
    model, objective = tiny_step()
    assert traced(model, objective, precision=torch.float16, scale=1.0).producer is None
    found = traced(model, objective, precision=torch.float16, scale=2.0**30)
    assert (found.phase, found.cause.name) == ("backward", "half-precision overflow")
