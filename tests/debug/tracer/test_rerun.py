"""A trace computes what the training step computed, and changes nothing."""

import copy
import math

import pytest
import torch
from tiny_step import spoil_output, tiny_batch, tiny_step, traced
from torch import nn
from torch.nn import functional as F

from debug.tracer.report import report_text
from ops.random_states import random_states

CALL = nn.Module.__call__


def state_of(model, objective):
    return copy.deepcopy(
        (
            dict(model.named_parameters()), dict(model.named_buffers()), [p.grad for p in model.parameters()],
            [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()],
            {name: state for name, state in random_states().items() if name != "python"},  # which beartype draws from
        )
    )  # fmt: skip


def same(a, b):
    if isinstance(a, torch.Tensor):
        a, b = a.detach(), b.detach()
        return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return a == b


class ChangingEverything(nn.Module):
    """Changes everything in its reach; then it raises, if asked to."""

    def __init__(self, inner, is_raising):
        super().__init__()
        self.inner, self.is_raising = inner, is_raising

    def forward(self, x):
        self.train(False)
        with torch.no_grad():
            for parameter in self.inner.parameters():
                parameter.mul_(2)
                parameter.requires_grad_(False)
                parameter.grad = torch.ones_like(parameter)
        torch.rand(3)
        if self.is_raising:
            raise RuntimeError("stopped half way")
        return self.inner(x)


@pytest.mark.parametrize("kind", ["good", "bad", "raising", "changing"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_nothing_is_changed(kind, precision):
    model, objective = tiny_step()
    batch = tiny_batch()
    objective(model, batch.images.float() / 255, batch).total.backward()
    if kind == "bad":
        model.stem[0].conv.weight.data[0, 0, 0, 0] = math.nan
        model.stem[1].conv.weight.grad[0] = math.nan
    if kind in ("raising", "changing"):
        model.stem[2] = ChangingEverything(model.stem[2], kind == "raising")
    model.stem[3].eval()
    model.stem[0].conv.weight.requires_grad_(False)
    before, pixels = state_of(model, objective), batch.images.clone()
    gradient = model.stem[1].conv.weight.grad
    found = traced(model, objective, batch, precision)
    assert same(before, state_of(model, objective))
    assert model.stem[1].conv.weight.grad is gradient and torch.equal(batch.images, pixels)
    assert ("stopped half way" in found.error) == (kind == "raising")
    assert ("stopped half way" in report_text(found)) == (kind == "raising")
    assert nn.Module.__call__ is CALL


def test_buffers_and_random_states_from_before_the_step_are_used():
    model, objective = tiny_step()
    spoil_output(model.stem[0], lambda x: F.dropout(x, 0.5))
    before = {name: value.clone() for name, value in model.named_buffers()}
    states = random_states()
    first = traced(model, objective)
    model(tiny_batch().images.float() / 255)
    torch.rand(100)
    again = traced(model, objective, buffers=before, random=states)
    assert [block.largest for block in again.growth] == [block.largest for block in first.growth]
    assert [block.largest for block in traced(model, objective).growth] != [block.largest for block in first.growth]


def test_the_trace_computes_what_the_stepper_does():
    model, objective = tiny_step()
    batch = tiny_batch()
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        out = objective(twin, batch.images.float() / 255, batch)
    found = traced(model, objective, batch, torch.bfloat16)
    assert found.parts == pytest.approx({name: float(value) for name, value in out.parts.items()}, abs=1e-6)
    assert found.precision == "bfloat16"
    largest = torch.tensor([block.largest for block in found.growth])
    assert torch.equal(largest, largest.bfloat16().float())  # the outputs of the blocks were bfloat16
