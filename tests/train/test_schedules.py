"""Learning rates, optimizer groups and the average, against numbers worked out by hand or by a slow twin."""

import math

import pytest
import torch
from torch import nn

from config.mconfig import ModelConfig
from model import YoloModel
from train.ema import ModelEMA
from train.opt import build_optimizer, parameter_groups
from train.sched import CosineSchedule, PlateauSchedule


def test_cosine_has_the_assignments_shape():
    schedule = CosineSchedule(0.01, 0.0001, 200)
    assert schedule.rate(0) == pytest.approx(0.001)
    assert schedule.rate(1) == pytest.approx(0.001 + 0.009 / 9)  # quadratic: a ninth of the way after a third of it
    assert schedule.rate(3) == pytest.approx(0.01)
    assert CosineSchedule(0.01, 0.0001, 100).rate(49) == pytest.approx((0.01 + 0.0001) / 2)  # half-way from 3 to 95
    assert [schedule.rate(e) for e in (190, 199)] == [0.0001, 0.0001]
    rates = [schedule.rate(e) for e in range(4, 190)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("max_epoch", [1, 2, 3, 5])
def test_cosine_of_very_short_runs_is_finite_and_positive(max_epoch):
    schedule = CosineSchedule(0.01, 0.0001, max_epoch)
    assert all(0 < schedule.rate(epoch) <= 0.01 + 1e-12 for epoch in range(max_epoch))


def test_plateau_lowers_after_patience_and_remembers():
    schedule = PlateauSchedule(0.01, 0.0001, 100, patience=2)
    for fitness in (0.1, 0.2, None, 0.2, None):
        schedule.observe(fitness)
    assert schedule.rate(50) == 0.01
    twin = PlateauSchedule(0.01, 0.0001, 100, patience=2)
    twin.load_state_dict(schedule.state_dict())
    for one in (schedule, twin):
        one.observe(0.15)
        assert one.rate(50) == pytest.approx(0.001)
    other_base = PlateauSchedule(0.005, 0.0001, 100, patience=2)
    other_base.load_state_dict(schedule.state_dict())
    assert other_base.rate(50) == pytest.approx(0.0005)
    for _ in range(20):
        schedule.observe(0.0)
    assert schedule.rate(99) == 0.0001


def test_groups_hold_every_trainable_parameter_once_and_decay_only_weights():
    model = YoloModel("nano", 3)
    decayed, norms, biases = parameter_groups(model, 5e-4)
    ids = [id(p) for group in (decayed, norms, biases) for p in group["params"]]
    assert len(ids) == len(set(ids)) == sum(p.requires_grad for p in model.parameters())
    assert (decayed["weight_decay"], norms["weight_decay"], biases["weight_decay"]) == (5e-4, 0, 0)
    assert all(p.ndim == 4 for p in decayed["params"]) and all(p.ndim == 1 for p in norms["params"])
    assert id(model.head.dfl.weight) not in ids


def test_a_frozen_backbone_is_not_moved_by_momentum_or_decay():
    torch.manual_seed(0)
    model = YoloModel("nano", 2).train()
    mcfg = ModelConfig()
    optimizer = build_optimizer(mcfg, model)
    images = torch.rand(2, 3, 64, 64)

    def step():
        optimizer.zero_grad(set_to_none=True)
        sum(m.square().mean() for m in model(images)).backward()
        optimizer.step()

    step()
    model.freezeBackbone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step()
    after = model.state_dict()
    for name, value in before.items():
        moved = not torch.equal(value, after[name])
        assert not (moved and name.startswith("backbone.")), name
    assert not torch.equal(before["neck.l12.cv1.conv.weight"], after["neck.l12.cv1.conv.weight"])
    model.unfreezeBackbone()
    step()
    assert not torch.equal(before["backbone.l0.conv.weight"], model.state_dict()["backbone.l0.conv.weight"])


def test_average_equals_the_formula():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = ModelEMA(model, decay=0.99, ramp=10)
    expected = {n: v.clone().double() for n, v in model.state_dict().items()}
    for step in range(1, 6):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(1)
        ema.update(model)
        d = 0.99 * (1 - math.exp(-step / 10))
        for name, value in model.state_dict().items():
            is_float = value.dtype.is_floating_point
            expected[name] = expected[name] * d + value.double() * (1 - d) if is_float else value.double()
    for name, value in ema.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-6)
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())
