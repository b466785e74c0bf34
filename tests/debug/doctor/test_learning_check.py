"""Gradients that reach every part or not, and overfitting a few images."""

import math
from contextlib import nullcontext

import pytest
import torch
from doctor_checks import STUDENT, batch_of, first_batch, levels, only, teacher_file
from torch import nn

from debug.doctor.finding import LOOK, OK, WRONG
from debug.doctor.learning_check import examine_gradient, examine_overfitting
from ops.device import Precision
from train.loss import LossResult


def test_gradient_reaches_every_part(setup_of):
    setup = setup_of()
    found = only(examine_gradient(setup, first_batch(setup)))
    assert found.level == OK
    assert "frozen: head.dfl (a constant)" in found.text
    assert all(parameter.grad is None for parameter in setup.model.parameters())


def test_a_detached_part_is_named(setup_of):
    setup = setup_of()
    neck = setup.model.neck.forward
    setup.model.neck.forward = lambda *features: neck(*(feature.detach() for feature in features))
    found = list(examine_gradient(setup, first_batch(setup)))
    assert levels(found) == [WRONG]
    assert (
        "no gradient reaches backbone.l0, backbone.l1, backbone.l2" in found[0].text and "and 5 more" in found[0].text
    )


def test_a_part_multiplied_by_zero_is_named(setup_of):
    setup = setup_of()
    setup.model.head.cls[1].register_forward_hook(lambda module, inputs, output: output * 0)
    found = list(examine_gradient(setup, first_batch(setup)))
    assert (levels(found), "the gradient of head.cls.1 is zero everywhere" in found[0].text) == ([WRONG], True)


def test_one_tensor_that_is_not_used_is_named(setup_of):
    setup = setup_of()
    setup.model.neck.l12.register_parameter("spare", nn.Parameter(torch.zeros(2)))
    found = list(examine_gradient(setup, first_batch(setup)))
    assert (levels(found), "no gradient reaches neck.l12.spare" in found[0].text) == ([WRONG], True)


def test_frozen_parts_are_named(setup_of):
    setup = setup_of(backboneFreezeEpochs=[0, 1])
    assert "backbone" not in only(examine_gradient(setup, first_batch(setup))).text, "it is free later"
    setup = setup_of(maxEpoch=3, backboneFreezeEpochs=[0, 1, 2])
    found = only(examine_gradient(setup, first_batch(setup)))
    assert (found.level, "frozen: backbone, head.dfl (a constant), in every epoch" in found.text) == (OK, True)
    setup = setup_of()
    setup.model.head.cls[0].requires_grad_(False)
    found = list(examine_gradient(setup, first_batch(setup)))
    assert (levels(found), "frozen, although no config field asks for it: head.cls.0" in found[0].text) == (
        [LOOK, OK],
        True,
    )


@pytest.mark.parametrize(
    ("fields", "level", "words"),
    [
        ({}, OK, "it learns"),
        ({"baseLearningRate": 1e-12, "minLearningRate": 0}, WRONG, "raise baseLearningRate (1e-12)"),
        ({"baseLearningRate": 1e4}, WRONG, "lower baseLearningRate (10000)"),
    ],
)
def test_one_batch_is_overfitted(setup_of, fields, level, words):
    setup = setup_of(**fields)
    found = only(examine_overfitting(setup, first_batch(setup)))
    assert (found.level, words in found.text) == (level, True), found.text


def test_weights_that_change_without_learning_point_to_labels(setup_of, monkeypatch):
    setup = setup_of()
    loss = setup.objective.loss
    monkeypatch.setattr(
        loss, "_compute", lambda maps, batch: LossResult(1 + 0 * sum((raw.sum() for raw in maps), torch.zeros(())), {})
    )
    found = only(examine_overfitting(setup, first_batch(setup)))
    assert found.level == WRONG
    assert "labels in the picture" in found.text or "hardly changed" in found.text


@pytest.mark.parametrize(("seconds", "steps"), [(0, 6), (math.inf, 24)])
def test_overfitting_ends_after_its_time_and_the_least_steps(setup_of, monkeypatch, seconds, steps):
    """The loss never falls, so only the limits end it. It is computed once before the first step."""
    losses = []
    monkeypatch.setattr("debug.doctor.learning_check._SECONDS", seconds)

    def constant(maps, batch):
        losses.append(1 + 0 * sum((raw.sum() for raw in maps), torch.zeros(())))
        return LossResult(losses[-1], {})

    setup = setup_of()
    monkeypatch.setattr(setup.objective.loss, "_compute", constant)
    only(examine_overfitting(setup, first_batch(setup)))
    assert len(losses) == 1 + steps


@pytest.mark.parametrize("precision", [torch.float16, torch.float32])
def test_gradients_in_float16_are_scaled_as_in_the_training(setup_of, monkeypatch, precision):
    """A scaler, which is on in float16 only. The network computes in float32 here, since a CPU may have no float16."""
    setup, flags, scaler = setup_of(), [], torch.amp.GradScaler
    setup.precision = Precision(precision, "")
    monkeypatch.setattr("train.setup.autocast", lambda device, dtype: nullcontext())

    def noted(device, enabled):
        flags.append(enabled)
        return scaler(device, enabled=enabled)

    monkeypatch.setattr(torch.amp, "GradScaler", noted)
    found = only(examine_overfitting(setup, first_batch(setup)))
    assert flags == [precision == torch.float16]
    assert found.level == OK, "scaled gradients are divided again before the step"


def test_without_objects_overfitting_is_not_tried(setup_of):
    setup, batch = setup_of(), batch_of()
    assert only(examine_overfitting(setup, batch)).level == LOOK


def test_pseudo_labels_are_no_objects_of_the_batch(setup_of, tmp_path):
    """They add boxes inside the step, so that the assigner sees more of them than the batch has."""
    fields = {"unlabelledClasses": "pseudo", "pseudoScore": 0.001, "distilSelectedClasses": ["blue"]}
    setup = setup_of(**STUDENT, **fields, teacherModelFile=teacher_file(tmp_path / "t.pth"))
    batch = first_batch(setup)
    assert setup.objective.pseudo_labels(batch, setup.objective.teacher(batch.images / 255).raw_maps).valid.sum() > 8
    assert "IoU of each object's best box" in only(examine_overfitting(setup, batch)).text
