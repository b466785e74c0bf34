"""The growth table against plain hooks."""

import math

import pytest
import torch
from tiny_step import tiny_batch, tiny_step, traced
from torch import nn

from debug.tracer.findings import block_names
from model import YoloModel


def test_blocks_are_two_levels_below_the_root_and_lists_open():
    names = list(block_names(YoloModel("nano", 2)))
    assert names[:10] == [f"backbone.l{number}" for number in range(10)]
    assert names[10:16] == ["neck.l12", "neck.l15", "neck.l16", "neck.l18", "neck.l19", "neck.l21"]
    assert names[16:] == [f"head.{kind}.{number}" for kind in ("box", "cls") for number in range(3)] + ["head.dfl"]
    assert list(block_names(nn.Sequential(nn.Linear(1, 1), nn.ReLU()))) == ["0", "1"]
    assert list(block_names(nn.ReLU())) == []


def plain_maxima(model, batch):
    """Largest output and input of every block, by plain hooks."""
    found = {}

    def hook(name):
        return lambda module, args, output: found.update(
            {name: (output.abs().max().item(), args[0].abs().max().item())}
        )

    hooks = [model.get_submodule(name).register_forward_hook(hook(name)) for name in block_names(model)]
    model(batch.images.float() / 255)
    for handle in hooks:
        handle.remove()
    return found


def test_the_table_equals_plain_hooks():
    model, objective = tiny_step()
    batch = tiny_batch()
    found = traced(model, objective, batch).growth
    for block in found:
        gave, given = plain_maxima(tiny_step()[0], batch)[block.name]
        assert block.largest == pytest.approx(gave, rel=1e-5)
        assert block.ratio == pytest.approx(gave / given, rel=1e-5)
        weights = [weight.detach().abs().max().item() for weight in model.get_submodule(block.name).parameters()]
        assert block.largest_weight == pytest.approx(max(weights), rel=1e-6)
    assert found[0].shape == (3, 8, 16, 16)


def test_the_gradient_of_a_block_is_the_largest_computed_in_it():
    model, objective = tiny_step()
    batch = tiny_batch()
    found = {block.name: block for block in traced(model, objective, batch).growth}
    total = objective(model, batch.images.float() / 255, batch).total * len(batch)
    total.backward()
    for name, block in found.items():
        own = max(float(parameter.grad.abs().max()) for parameter in model.get_submodule(name).parameters())
        assert block.largest_gradient >= own * (1 - 1e-4)
    assert not any(math.isnan(block.largest_gradient) for block in found.values())


def test_an_explosion_before_it_becomes_nan_shows():
    model, objective = tiny_step()
    with torch.no_grad():
        model.head[1].weight.mul_(1e6)
    found = traced(model, objective)
    steep = [block.name for block in found.growth if block.ratio > 100]
    assert found.producer is None and steep == ["head.1"]
    assert found.cause is not None and found.cause.name == "huge weights in one block"


def test_a_block_without_tensors_and_one_of_nan_only():
    model, objective = tiny_step()
    model.stem[3].register_forward_hook(lambda module, args, output: output * math.nan)
    found = {block.name: block for block in traced(model, objective).growth}
    assert found["head.2"].num_bad == 3 * 19 * 2 * 2 and math.isnan(found["head.2"].largest)
    assert math.isnan(found["head.2"].ratio)
