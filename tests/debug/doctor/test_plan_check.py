"""The plan: a frozen random backbone, and rates and mosaic as trainer and loader use them."""

import pytest
import torch
from doctor_checks import levels, only

from debug.doctor.finding import LOOK, OK, WRONG
from debug.doctor.plan_check import epochs_text, examine_freezing, examine_schedule, planned_rates, planned_spans
from model import YoloModel
from train.sched import build_schedule, build_warm_up


@pytest.mark.parametrize(
    ("epochs", "level", "words"),
    [
        (range(100), WRONG, "frozen for 100 of 200 epochs (1 to 100), and its weights are random"),
        (range(5), LOOK, "frozen for 5 of 200 epochs (1 to 5), and its weights are random"),
        ((), OK, "trained in every epoch"),
        ((300,), LOOK, "epochs that are not trained (301)"),
    ],
)
def test_a_frozen_random_backbone(setup_of, epochs, level, words):
    found = only(examine_freezing(setup_of(backboneFreezeEpochs=list(epochs))))
    assert (found.level, words in found.text) == (level, True), found.text


def test_a_backbone_from_a_file_may_be_frozen(setup_of, tmp_path):
    backbone = {f"backbone.{name}": value for name, value in YoloModel("nano", 2).backbone.state_dict().items()}
    torch.save(backbone, tmp_path / "b.pth")
    fields = {"pretrainedBackboneUrl": f"file://{tmp_path}/b.pth", "backboneFreezeEpochs": list(range(100))}
    found = only(examine_freezing(setup_of(**fields)))
    assert (found.level, "with weights from a file" in found.text) == (OK, True)


def test_the_planned_rates_equal_those_of_the_trainer(setup_of, tmp_path):
    setup = setup_of(maxEpoch=50, backboneFreezeEpochs=[0, 1, 4])
    planned, mcfg = planned_rates(setup), setup.mcfg
    assert len(planned.rates) == 50 * 3 + 1  # 8 images in batches of 3
    schedule, warm_up = build_schedule(mcfg), build_warm_up(mcfg, 3)
    for batch in (0, 1, 99, 120):
        pace = warm_up.pace(batch, schedule.rate(batch // 3))
        assert (planned.rates[batch], planned.bias_rates[batch]) == (pace.rate, pace.bias_rate)
    assert planned_spans(setup) == {"frozen": [(0, 2), (4, 5)], "mosaic": [(0, 40)], "teacher": []}
    found = list(examine_schedule(setup, tmp_path))
    assert levels(found) == [OK, LOOK] and "warm-up takes 100 batches, and the training has 150" in found[1].text
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")
    assert levels(examine_schedule(setup_of(maxEpoch=200), tmp_path)) == [OK]
    few = setup_of(maxEpoch=20, warmupEpochs=0)
    assert "the optimizer makes only 60 steps" in list(examine_schedule(few, tmp_path))[1].text


@pytest.mark.parametrize(
    ("fields", "mosaic"), [({"maxEpoch": 6}, [(0, 4)]), ({"maxEpoch": 6, "closeMosaic": 1}, [(0, 5)])]
)
def test_the_planned_mosaic_equals_that_of_the_loader(setup_of, fields, mosaic):
    setup = setup_of(**fields)
    assert planned_spans(setup)["mosaic"] == mosaic
    assert setup.loader.dataset.ranges.mosaic_end == mosaic[0][1]
    assert planned_spans(setup_of(**fields, mosaic=0.0))["mosaic"] == []


def test_a_plateau_is_drawn_without_its_reductions(setup_of, tmp_path):
    words = "without its reductions, because they depend on validation results"
    found = only(examine_schedule(setup_of(schedulerType="plateau"), tmp_path))
    assert (found.level, words in found.text) == (OK, True), found.text
    assert words not in only(examine_schedule(setup_of(), tmp_path)).text


def test_epochs_as_text():
    assert epochs_text([4, 0, 1, 2, 7]) == "1 to 3, 5, 8"
    assert epochs_text([]) == ""
