"""Tensors under two names: found, distinguished from neighbours in the same memory, and allowed if declared."""

import pytest
import torch
from doctor_checks import levels
from torch import nn

from debug.doctor.aliases import Alias, examine_aliases, find_aliases, merge_to_modules
from debug.doctor.finding import OK, WRONG
from model import YoloModel


class Twice(nn.Module):
    """A bug of a user: conv_1 is conv, so that a fill of conv_1 fills conv."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.conv_1 = self.conv


class Holding(nn.Module):
    """A module with these buffers."""

    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def test_one_module_under_two_names():
    module = Twice()
    found = find_aliases(module)
    assert found == [
        Alias("conv.weight", "conv_1.weight", True),
        Alias("conv.bias", "conv_1.bias", True),
    ]
    assert merge_to_modules(module, found) == [Alias("conv", "conv_1", True)]
    assert str(merge_to_modules(module, found)[0]) == "conv and conv_1 are the same tensor"


def test_a_copy_is_no_alias():
    module = Twice()
    module.conv_1 = nn.Conv2d(3, 3, 3)
    module.conv_1.load_state_dict(module.conv.state_dict())
    assert find_aliases(module) == []
    assert find_aliases(nn.Identity()) == []


def test_one_parameter_in_two_modules():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    found = find_aliases(module)
    assert found == merge_to_modules(module, found) == [Alias("0.weight", "1.weight", True)]


@pytest.mark.parametrize(
    ("first", "second", "overlaps"),
    [
        ((slice(0, 4),), (slice(3, 6),), True),
        ((slice(0, 3),), (slice(3, 6),), False),
        ((slice(0, 6, 2),), (slice(1, 6, 2),), False),  # interleaved
        ((slice(0, 6, 2),), (slice(2, 3),), True),
        ((slice(0, 0),), (slice(0, 6),), False),  # nothing in it
    ],
)
def test_views_of_one_memory(first, second, overlaps):
    memory = torch.zeros(6)
    found = find_aliases(Holding(a=memory[first], b=memory[second]))
    assert found == ([Alias("a", "b", False)] if overlaps else [])


def test_columns_of_a_matrix_share_nothing_and_its_rows_share_with_it():
    matrix = torch.zeros(4, 6)
    assert find_aliases(Holding(a=matrix[:, :3], b=matrix[:, 3:])) == []
    assert find_aliases(Holding(a=matrix, b=matrix[2])) == [Alias("a", "b", False)]
    assert find_aliases(Holding(a=matrix, b=matrix.t())) == [Alias("a", "b", False)]


def test_the_same_bytes_read_as_another_type():
    memory = torch.zeros(8)
    assert find_aliases(Holding(a=memory[:4], b=memory.view(torch.int16)[6:8])) == [Alias("a", "b", False)]
    assert find_aliases(Holding(a=memory[:4], b=memory.view(torch.int16)[8:10])) == []


@pytest.mark.parametrize(
    ("declared", "reported"),
    [
        ([("conv", "conv_1")], []),
        ([("conv_1", "conv")], []),
        ([("conv.weight", "conv_1.weight")], ["conv.bias"]),
        ([("con", "con_1"), ("conv", "other")], ["conv.weight", "conv.bias"]),
    ],
)
def test_declared_pairs_are_not_reported(monkeypatch, declared, reported):
    monkeypatch.setattr("debug.doctor.aliases.DECLARED", declared)
    assert [alias.first for alias in find_aliases(Twice())] == reported


def test_the_network_has_no_alias_until_a_convolution_is_shared():
    model = YoloModel("nano", 2)
    assert find_aliases(model) == []
    block = model.backbone.l2.m[0]
    block.cv2.conv = block.cv1.conv
    found = merge_to_modules(model, find_aliases(model))
    assert found == [Alias("backbone.l2.m.0.cv1.conv", "backbone.l2.m.0.cv2.conv", True)]


def test_a_block_under_two_names_is_one_line():
    model = YoloModel("nano", 2)
    model.backbone.l4.m[1] = model.backbone.l4.m[0]
    found = find_aliases(model)
    assert len(found) == 12  # two convolutions, each with weight and batch norm's five
    assert merge_to_modules(model, found) == [Alias("backbone.l4.m.0", "backbone.l4.m.1", True)]


def test_a_network_without_memory_shares_none():
    with torch.device("meta"):
        assert find_aliases(Twice()) == []


def test_each_module_is_checked_by_itself():
    assert levels(examine_aliases(nn.Linear(2, 2), nn.Linear(2, 2))) == [OK]
    twice = nn.ModuleList([nn.Linear(2, 2)] * 2)
    assert levels(examine_aliases(nn.Linear(2, 2), twice)) == [WRONG]
