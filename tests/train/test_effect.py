"""A training without effect is reported within two epochs, once and with its cause; one that is only slow is not."""

import json
import logging
import math
from dataclasses import replace

import pytest
import torch
from tiny_step import CLASSES, batch_of, tiny_step
from torch import nn

from train.effect import EMA_STILL, FLAT, SHRINKING, STILL, VANISHED, Effect, _change
from train.ema import ModelEMA
from train.guard import BadStep, Guard
from train.monitor import Monitor
from train.opt import parameter_groups
from train.progress import EpochProgress
from train.step import Stepper
from train.trainer import Trainer


def make(rate=0.01, clip=10.0, decay=5e-4, momentum=0.9, adam=False, ema=True, patience=1) -> Stepper:
    model, objective = tiny_step()
    groups = parameter_groups(decay, model)
    optimizer = torch.optim.AdamW(groups, lr=rate) if adam else torch.optim.SGD(groups, lr=rate, momentum=momentum)
    average = ModelEMA(model) if ema else None
    return Stepper(
        model, objective, optimizer, average, torch.float32, clip, True, Guard(model, max_bad_steps=patience)
    )


def epoch(stepper, watch, steps=4, prepare=None):
    """One epoch of different batches; its row."""
    watch.start_epoch(stepper)
    progress = EpochProgress()
    for seed in range(steps):
        batch = batch_of(seed=seed)
        if prepare is not None:
            prepare(stepper, batch)
        watch.add(stepper, stepper.add(batch), progress)
    watch.add(stepper, stepper.flush(), progress)
    stepper.guard.epoch += 1
    return watch.end_epoch(stepper, progress)


@pytest.fixture
def watch(tmp_path):
    return Monitor(tmp_path, ["a", "b", "c"])


def reports(watch, stepper, epochs=3, **named):
    return [epoch(stepper, watch, **named)["no_effect"] for _ in range(epochs)]


def with_loss(stepper, change):
    """The total of the loss goes through `change`."""
    loss = stepper.objective.loss
    compute = loss._compute

    def changed(maps, batch):
        found = compute(maps, batch)
        return replace(found, total=change(found.total))

    loss._compute = changed
    return stepper


def with_logits(stepper, logit):
    """The class scores of a head that begins with this bias."""
    with torch.no_grad():
        for head in stepper.model.head:
            head.bias[-CLASSES:] = logit
    return stepper


def without_gradients(stepper):
    """What is learned beside the network goes on learning."""
    beside = nn.Linear(1, 1)
    stepper.optimizer.add_param_group({"params": beside.parameters(), "name": "beside", "weight_decay": 0.0})
    stepper.parameters += list(beside.parameters())
    stepper.model.requires_grad_(False)
    return with_loss(stepper, lambda total: total + beside(torch.ones(1)).square().sum())


def held_ema(stepper):
    stepper.ema.decay, stepper.ema.ramp = 1.0, 1e-6
    return stepper


def with_bias_rate(stepper, rate):
    stepper.optimizer.param_groups[2]["lr"] = rate
    return stepper


BAD = {
    "clip": (lambda: make(clip=1e-30), STILL, "gradientClip=1e-30 makes a gradient of norm "),
    "clip, AdamW": (lambda: make(clip=1e-30, adam=True), STILL, "gradientClip=1e-30"),
    "clip and no decay": (lambda: make(clip=1e-30, decay=0.0), STILL, "gradientClip=1e-30"),
    "learning rate": (lambda: make(rate=1e-30), STILL, "the learning rate 1e-30 is too low"),
    "learning rate with a warm-up of the biases": (
        lambda: with_bias_rate(make(rate=1e-30), 0.1),
        STILL,
        "the learning rate 1e-30 is too low",
    ),
    "both": (lambda: make(rate=1e-30, clip=1e-30), STILL, "(the default is 10), and the learning rate 1e-30"),
    "frozen": (lambda: without_gradients(make()), STILL, "no parameter of the network requires a gradient"),
    "no gradient": (lambda: with_loss(make(), lambda total: total * 0), STILL, "every gradient is 0"),
    "weight decay": (lambda: make(decay=50.0, momentum=0.0), SHRINKING, "lower optimizerWeightDecay (50;"),
    "low scores": (
        lambda: with_logits(make(rate=1e-3), -100.0),
        VANISHED,
        "lower baseLearningRate or correct the labels",
    ),
    "EMA": (lambda: held_ema(make()), EMA_STILL, "set emaRamp=none"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_has_no_effect_is_reported_in_the_second_epoch_and_once(watch, caplog, name):
    build, kind, cause = BAD[name]
    stepper = build()
    found = reports(watch, stepper)
    assert [kind in one for one in found][:2] == [False, True]
    said = [record.getMessage() for record in caplog.records if f"no effect: {kind}" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("epoch 3: ") and cause in said[0] and "\n" not in said[0]


def of_numbers(change, losses, logit, steps=20, epochs=2):
    """What is reported of epochs whose weights change so much, whose losses lie about these means, ..."""
    model, effect, found = nn.Linear(8, 8), Effect(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    for number in range(epochs):
        effect.start_epoch(model, None)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.view(-1)[number] += change * parameter.norm()
        for step in range(steps):
            effect.add({"loss": losses[number] + (-1) ** step, "grad_norm": 1.0}, logit)
        row, sentences = effect.judge(model, None, optimizer, 10.0)
        found += [row["no_effect"]]
    return found, sentences


def test_a_loss_that_does_not_move_is_reported():
    found, sentences = of_numbers(1e-5, (50.0, 50.1), -7.0)
    assert found == [[], [FLAT]] and "raise baseLearningRate (1e-06; the default is 0.01)" in sentences[0]
    assert "its mean changed from 50 to 50.1, which is within the noise" in sentences[0]


@pytest.mark.parametrize(
    "numbers",
    [
        {"change": 1e-2},  # the weights move
        {"losses": (50.0, 48.0)},
        {"losses": (50.0, 52.0)},
        {"logit": 0.0},  # a trained network, as at the end of a schedule
        {"steps": 10},
        {"logit": -math.inf},  # a user's own loss, which does not report it
    ],
)
def test_a_loss_that_may_stay_where_it_is_is_not_reported(numbers):
    assert of_numbers(**{"change": 1e-5, "losses": (50.0, 50.1), "logit": -7.0, **numbers})[0] == [[], []]


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: make(), {}),
        (lambda: make(adam=True, rate=1e-3), {}),
        (lambda: make(ema=False), {"steps": 2}),
        (lambda: make(rate=1e-7), {"steps": 2}),  # the end of a schedule
        (lambda: make(decay=0.0), {"steps": 8}),
    ],
)
def test_what_trains_is_not_reported(watch, build, named):
    assert reports(watch, build(), **named) == [[], [], []]


@pytest.mark.parametrize(("last_rate", "is_reported"), [(0.0, False), (1e-30, False), (1e-2, True)])
def test_a_schedule_that_has_come_to_its_end_is_not_reported(watch, last_rate, is_reported):
    """Weights that move, then stand still: reported only when the learning rate has not fallen."""
    stepper = make(momentum=0.0, decay=0.0)
    assert not epoch(stepper, watch)["no_effect"]
    for group in stepper.optimizer.param_groups:
        group["lr"] = last_rate
    if is_reported:
        stepper.gradient_clip = 1e-30
    assert any(STILL in found for found in reports(watch, stepper)) is is_reported


def test_one_epoch_of_a_symptom_is_none(watch):
    """As a warm-up with AdamW and one batch, whose first step has a learning rate of 0."""
    stepper = make(rate=0.0)
    assert epoch(stepper, watch)["no_effect"] == []
    for group in stepper.optimizer.param_groups:
        group["lr"] = 0.01
    assert reports(watch, stepper) == [[], [], []]


def test_a_frozen_backbone_is_not_reported(watch):
    stepper = make()
    for parameter in stepper.model.stem.parameters():
        parameter.requires_grad = False
    assert reports(watch, stepper) == [[], [], []]


def test_steps_that_were_left_out_are_not_counted(watch):
    stepper = make(patience=99)

    def spoil(stepper, batch):
        batch.boxes[...] = math.nan

    assert reports(watch, stepper, prepare=spoil) == [[], [], []]


def test_it_goes_on_where_it_was_saved(watch, tmp_path, caplog):
    """In the middle of an epoch and after its end, which may be judged again."""
    stepper, whole = make(clip=1e-30), []
    whole = [epoch(stepper, watch) for _ in range(2)]
    stepper, first = make(clip=1e-30), Monitor(tmp_path, [])
    epoch(stepper, first)
    first.start_epoch(stepper)
    progress = EpochProgress()
    for seed in range(2):
        first.add(stepper, stepper.add(batch_of(seed=seed)), progress)
    second = Monitor(tmp_path, [])
    second.load_state_dict(first.state_dict())
    for seed in range(2, 4):
        second.add(stepper, stepper.add(batch_of(seed=seed)), progress)
    second.end_epoch(stepper, progress)
    third = Monitor(tmp_path, [])
    third.load_state_dict(second.state_dict())
    assert third.end_epoch(stepper, progress) == whole[1] and whole[1]["no_effect"] == [STILL]
    assert caplog.text.count("no effect") == 2  # by the whole run and by the second start, not again by the third


def test_a_checkpoint_of_an_earlier_version_starts_anew(watch):
    watch.load_state_dict({})
    stepper = make(clip=1e-30)
    progress = EpochProgress()
    watch.add(stepper, stepper.add(batch_of()), progress)
    assert watch.end_epoch(stepper, progress)["no_effect"] == []  # where the weights began is not known
    assert reports(watch, stepper, epochs=2) == [[], [STILL]]


def test_a_change_of_direction_by_hand():
    angle = 0.01
    before, after = torch.tensor([3.0, 0.0]), 2 * 3 * torch.tensor([math.cos(angle), math.sin(angle)])
    change = _change([before], [after], True)
    assert change.turned == pytest.approx(math.sin(angle), rel=1e-4) and change.ratio == pytest.approx(2, rel=1e-6)
    assert _change([before], [before * 0.5], True) == (0.0, 0.5)
    assert _change([before], [before * 0.5], False) == (1.0, 0.5)
    assert _change([torch.zeros(2)], [torch.zeros(2)], True).turned == 0.0
    assert _change([torch.zeros(2)], [torch.ones(2)], True).turned == pytest.approx(1.0)
    still, decayed = torch.tensor([0.0, 15.0]), torch.tensor([4.0, 3.0])  # one constant, the other with decay
    assert _change([still, decayed], [still, decayed * 0.9], True).turned == pytest.approx(0, abs=1e-7)
    assert _change([still, decayed, decayed], [still, decayed * 0.1, decayed * 0.1], True).ratio == pytest.approx(0.1)


def test_decay_alone_is_no_change():
    """Rounding turns decayed weights a little in every step; a gradient of any use turns them more."""
    model, steps = nn.Linear(64, 64, bias=False), 200
    effect = Effect()
    optimizer = torch.optim.SGD([{"params": model.parameters(), "weight_decay": 5e-4}], lr=1e-4, momentum=0.9)
    effect.start_epoch(model, None)
    for _ in range(steps):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        effect.add({"loss": 1.0, "grad_norm": 0.0}, -1.0)
    effect.judge(model, None, optimizer, 10.0)
    assert STILL in effect.epoch.symptoms and effect.epoch.change > 0


def test_nothing_to_train_is_refused_before_anything_moves():
    stepper = make()
    stepper.model.requires_grad_(False)
    with pytest.raises(Exception, match="no parameter of the network requires a gradient; unfreeze") as caught:
        stepper.add(batch_of())
    assert type(caught.value).__name__ == "UserError"


@pytest.mark.parametrize("clip", [math.nan, 0.0, -1.0, -math.inf])
def test_a_clip_that_would_spoil_gradients_stops_before_anything_moves(clip):
    stepper = make(clip=clip)
    before = [one.clone() for one in stepper.model.state_dict().values()]
    with pytest.raises(FloatingPointError, match=f"gradientClip is {clip}.*the weights are unchanged") as caught:
        stepper.add(batch_of())
    assert not isinstance(caught.value, BadStep)
    assert all(map(torch.equal, before, stepper.model.state_dict().values()))


def test_an_infinite_clip_leaves_gradients_as_they_are():
    stepper = make(clip=math.inf)
    stepper.add(batch_of())
    assert all(one.isfinite().all() for one in stepper.model.parameters())


@pytest.mark.usefixtures("no_checkpoints")
def test_a_run_says_it_and_goes_on(squares_config, caplog):
    caplog.set_level(logging.INFO, logger="mars")
    fields = {"gradientClip": 1e-30, "warmupBiasRate": 0.0, "epochValidation": False, "useEMA": True}
    folder = Trainer(squares_config(maxEpoch=3, **fields)).run()
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row["no_effect"] for row in rows] == [[], [STILL], [STILL]]
    assert all(0 < row["top_score"] < 1 and row["weight_change"] < 1e-5 for row in rows)
    assert caplog.text.count("epoch 2: no effect: weights stand still in two epochs in a row") == 1
