"""Faults that the tracer has no code for, and how it names them all the same."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_step import line_of, spoil_output, tiny_step, traced
from torch import nn
from torch.utils.checkpoint import checkpoint

HERE = Path(__file__).name


def test_code_that_spoils_a_weight_while_it_computes():
    model, objective = tiny_step()

    def poison(x):
        with torch.no_grad():
            model.stem[2].conv.weight[0].fill_(math.nan)
        return x

    spoil_output(model.stem[1], poison)
    found = traced(model, objective)
    assert (found.producer.base, found.producer.module, line_of(found)) == ("fill_", "stem.1", (HERE, "poison"))
    assert not found.bad_weights and model.stem[2].conv.weight.isfinite().all()


def test_a_nan_out_of_numpy():
    model, objective = tiny_step()
    spoil_output(model.stem[1], lambda x: x + torch.from_numpy(np.array([np.nan], dtype=np.float32)))
    found = traced(model, objective)
    assert (found.producer.base, found.producer.source, found.cause.name) == ("add", "a constant", "written by hand")


def test_a_backward_hook_of_a_module():
    model, objective = tiny_step()
    model.stem[2].register_full_backward_hook(lambda module, to, of: tuple(one * math.inf for one in to))
    found = traced(model, objective)
    assert (found.phase, found.producer.base, line_of(found)[0]) == ("backward", "mul", HERE)


@pytest.mark.filterwarnings("ignore:.*cpu.amp.autocast:FutureWarning")  # torch 2.4's own, in checkpoint
def test_a_root_inside_a_checkpointed_block():
    model, objective = tiny_step()
    inner = model.stem[2]

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    spoil_output(inner, lambda x: x + (x * 0).sqrt())
    model.stem[2] = Checkpointed()
    found = traced(model, objective)
    assert (found.phase, found.producer.node, found.producer.module) == ("backward", "SqrtBackward0", "stem.2.inner")
    assert line_of(found) == (HERE, "<lambda>")


def test_statistics_that_no_training_writes():
    model, objective = tiny_step()
    model.stem[1].eval()
    model.stem[1].bn.running_var[3] = -1.0
    found = traced(model, objective)
    assert (found.producer.module, found.cause.name) == ("stem.1.bn", "negative variance")
    assert line_of(found) == ("tiny_step.py", "forward")


def test_memory_that_was_never_written():
    model, objective = tiny_step()

    def leaky(x):
        places = torch.empty(x.shape)
        places.numpy()[:] = np.nan  # behind torch's back, as whatever lay there before
        places[:, 1:] = 0
        return x + places

    spoil_output(model.stem[1], leaky)
    found = traced(model, objective)
    assert (found.producer.base, found.cause.name) == ("add", "unwritten memory")
    assert line_of(found) == (HERE, "leaky")


def test_infinities_in_a_buffer_may_be_meant():
    model, objective = tiny_step()
    model.register_buffer("mask", torch.full((8, 1, 1), -math.inf))
    model.mask[3:] = 0
    spoil_output(model.stem[1], lambda x: x + (x + model.mask).softmax(dim=1))
    found = traced(model, objective)
    assert found.producer is None and not found.bad_weights


def test_an_error_of_the_step_is_told_with_what_was_seen_before_it():
    model, objective = tiny_step()

    def fall(x):
        if not x.div(0).isfinite().all():
            raise ValueError("not finite")
        return x

    spoil_output(model.stem[1], fall)
    found = traced(model, objective)
    assert found.error == "ValueError: not finite" and [one.name for one in found.growth] == ["stem.0"]
    assert (found.producer.base, found.cause.name, line_of(found)) == ("div", "zero normaliser", (HERE, "fall"))
