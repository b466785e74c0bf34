"""Learning rates, optimizer groups and the average, against numbers worked out by hand or by a slow twin."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from config.mconfig import ModelConfig
from model import YoloModel
from train.ema import ModelEMA, ramp_for
from train.opt import build_optimizer, load_optimizer, parameter_groups, set_pace
from train.sched import CosineSchedule, Pace, PlateauSchedule, WarmUp, build_schedule, build_warm_up


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
    decayed, norms, biases = parameter_groups(5e-4, model)
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


@pytest.mark.parametrize(("kind", "is_cosine"), [("linear", False), ("cosine", True)])
def test_decay_runs_from_base_to_lowest_in_a_line_or_half_a_cosine(kind, is_cosine):
    mcfg = ModelConfig()
    mcfg.schedulerType, mcfg.maxEpoch = kind, 100
    schedule = build_schedule(mcfg)
    assert schedule.rate(0) == pytest.approx(0.01)
    assert schedule.rate(50) == pytest.approx((0.01 + 0.0001) / 2)
    quarter = (1 + math.cos(math.pi / 4)) / 2 if is_cosine else 0.75
    assert schedule.rate(25) == pytest.approx(0.0001 + 0.0099 * quarter)
    assert schedule.rate(100) == schedule.rate(150) == pytest.approx(0.0001)  # an epoch after the last: no rise again


def test_warm_up_interpolates_like_numpy_and_never_lasts_less_than_a_hundred_batches():
    warm_up = WarmUp(3, 50, bias_rate=0.1, first_momentum=0.8, momentum=0.937, accumulate=4)
    for batch in (0, 1, 37, 75, 149, 150, 151, 9999):
        ends, pace = [0, 150], warm_up.pace(batch, 0.007)
        assert pace.rate == pytest.approx(np.interp(batch, ends, [0, 0.007]))
        assert pace.bias_rate == pytest.approx(np.interp(batch, ends, [0.1, 0.007]))
        assert pace.momentum == pytest.approx(np.interp(batch, ends, [0.8, 0.937]))
        assert pace.accumulate == max(1, np.interp(batch, ends, [1, 4]).round())
    assert WarmUp(3, 13, 0.1, 0.8, 0.937).num_batches == 100
    assert WarmUp(0, 13, 0.1, 0.8, 0.937).pace(0, 0.01) == Pace(0.01, 0.01, 0.937, 1)


def test_the_assignments_schedules_have_no_warm_up_by_batches():
    assert build_warm_up(ModelConfig(), 10).pace(0, 0.001) == Pace(0.001, 0.001, 0.937, 1)


def test_adamw_warms_up_biases_from_nothing_and_keeps_its_betas():
    mcfg = ModelConfig()
    mcfg.optimizerType, mcfg.schedulerType = "AdamW", "linear"
    assert build_warm_up(mcfg, 10).pace(0, 0.01).bias_rate == 0
    optimizer = build_optimizer(mcfg, nn.Linear(2, 2))
    set_pace(optimizer, Pace(0.1, 0.2, 0.8, 1))
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "weights": 0.1, "norms": 0.1, "biases": 0.2,
    }  # fmt: skip
    assert all(group["betas"] == (0.937, 0.999) for group in optimizer.param_groups)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_no_number_of_the_optimizer_may_be_nan(kind):
    mcfg = ModelConfig()
    mcfg.optimizerType = kind
    optimizer = build_optimizer(mcfg, nn.Linear(2, 2))
    optimizer.param_groups[0]["weight_decay"] = math.nan
    with pytest.raises(FloatingPointError, match="the optimizer's weight_decay of the weights is nan"):
        set_pace(optimizer, Pace(0.1, 0.2, 0.8, 1))


@pytest.mark.parametrize(
    ("kind", "name", "value", "told"),
    [
        ("AdamW", "betas", (0.9, math.nan), r"\(0.9, nan\)"),
        ("AdamW", "betas", [math.inf, 0.999], r"\[inf, 0.999\]"),
        ("AdamW", "eps", math.inf, "inf"),
        ("SGD", "dampening", torch.tensor([0.0, math.nan]), r"tensor\(\[0., nan\]\)"),
        ("SGD", "own", [(1.0, (2, math.nan))], "nan"),
        ("SGD", "own", np.float32(math.nan), "nan"),
    ],
)
def test_nor_may_any_in_a_tuple_list_or_tensor(kind, name, value, told):
    mcfg = ModelConfig()
    mcfg.optimizerType = kind
    optimizer = build_optimizer(mcfg, nn.Linear(2, 2))
    pace = Pace(0.1, 0.2, 0.8, 1)
    set_pace(optimizer, pace)  # flags, None and whole numbers beside them are finite
    optimizer.param_groups[1][name] = value
    with pytest.raises(FloatingPointError, match=f"the optimizer's {name} of the norms is .*{told}"):
        set_pace(optimizer, pace)


def test_an_optimizer_may_keep_what_is_no_tensor_and_no_tensor_of_another_shape():
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(ModelConfig(), layer)
    optimizer.state[layer.weight] = {"steps": 3, "none": None, "momentum_buffer": torch.ones(2, 2)}
    other = build_optimizer(ModelConfig(), nn.Linear(2, 2))
    load_optimizer(other, optimizer.state_dict())
    kept = other.state[other.param_groups[0]["params"][0]]
    assert (kept["steps"], kept["none"]) == (3, None)
    optimizer.state[layer.weight]["momentum_buffer"] = torch.ones(3, 2)
    with pytest.raises(ValueError, match="a different shape"):
        load_optimizer(other, optimizer.state_dict())


@pytest.mark.parametrize("ramp", [0.0, -1.0, math.nan])
def test_an_average_without_a_ramp_is_refused(ramp):
    with pytest.raises(ValueError, match=r"emaRamp=.* must be above 0"):
        ModelEMA(nn.Linear(2, 2), ramp=ramp)


@pytest.mark.parametrize("decay", [99.99, -0.1, math.nan])
def test_an_average_that_would_run_away_is_refused(decay):
    with pytest.raises(ValueError, match=r"must be between 0 and 1"):
        ModelEMA(nn.Linear(2, 2), decay=decay)


@pytest.mark.parametrize(("batch", "nominal", "factor"), [(16, None, 1), (16, 64, 1), (24, 64, 72 / 64), (128, 64, 2)])
def test_weight_decay_is_scaled_by_what_a_step_holds_of_the_nominal_batch(batch, nominal, factor):
    mcfg = ModelConfig()
    mcfg.batchSize, mcfg.nominalBatch = batch, nominal
    assert build_optimizer(mcfg, nn.Linear(2, 2)).param_groups[0]["weight_decay"] == pytest.approx(5e-4 * factor)


@pytest.mark.parametrize(("steps", "window"), [(100, 10), (780, 78), (1473, 147.3), (8000, 741), (10**5, 10**4)])
def test_the_average_of_a_run_ends_with_a_window_of_a_tenth_of_its_steps(steps, window):
    """Of a long one less, and at most 10,000, for the decay is .9999 at most."""
    ema = ModelEMA(nn.Linear(1, 1), ramp=ramp_for(steps))
    d = ema.decay * (1 - math.exp(-steps / ema.ramp))
    assert 1 / (1 - d) == pytest.approx(window, rel=0.02)


@pytest.mark.parametrize("steps", [0, 1, 5, 30])
def test_the_shortest_runs_have_a_ramp_too(steps):
    assert 0 < ramp_for(steps) <= 2000
