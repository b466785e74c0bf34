"""Epochs that fit into the minutes a recipe allows."""

from pathlib import Path

import numpy as np
import pytest

from config.load import load_config
from dl.annotations import Annotation
from train.budget import images_an_epoch, verdict, within_minutes


def config(tmp_path, **overrides):
    fields = {"maxEpoch": 36, "trainMinutes": 5, "trainMinEpochs": 1, **overrides}
    return load_config("c1.nano", root=tmp_path, overrides=fields)


@pytest.mark.parametrize(("seconds", "epochs"), [(0.001, 36), (0.02, 22), (0.04, 11), (100.0, 1)])
def test_a_slow_machine_gets_fewer_epochs_and_at_least_one(tmp_path, seconds, epochs):
    fitted = within_minutes(config(tmp_path), seconds, 420, 180, None)
    an_epoch = seconds * (1.35 * 420 + 0.6 * 180)
    assert fitted.maxEpoch == epochs
    assert epochs in (1, 36) or epochs * an_epoch <= 300 < (epochs + 1) * an_epoch


@pytest.mark.parametrize(
    ("fields", "epochs", "minutes"),
    [
        ({"trainMinEpochs": 11}, 11, None),  # what fits: 5 minutes are 11 epochs of 27 seconds (.04 s x 675 images)
        ({"trainMinEpochs": 12}, 12, "5.4"),
        ({"trainMinutes": 0.001, "trainMinEpochs": 10}, 10, "4.5"),
        ({"trainMinutes": 0.001, "trainMinEpochs": 100}, 36, "16.2"),  # never more than there are
        ({"maxEpoch": 5, "trainMinEpochs": 10}, 5, None),  # all of them fit
        ({"maxEpoch": 5, "trainMinEpochs": 10, "trainMinutes": 1}, 5, "2.2"),
        ({"startEpoch": 30, "trainMinutes": 0.001, "trainMinEpochs": 4}, 34, "1.8"),
    ],
)
def test_a_minimum_of_epochs_is_trained_however_long_it_takes(tmp_path, caplog, fields, epochs, minutes):
    fitted = within_minutes(config(tmp_path, **fields), 0.04, 420, 180, None)
    assert fitted.maxEpoch == epochs
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == (minutes is not None)
    for text in warned:
        assert f"trainMinEpochs={fields['trainMinEpochs']}: training takes about {minutes} minutes" in text


@pytest.mark.parametrize(
    ("trained", "planned", "words"),
    [
        (30, 30, None),
        (40, 30, None),
        (29, 30, "trained 29 of 30 epochs; a complete training gives a better result"),
        (15, 30, "trained 15 of 30 epochs; a complete training gives a better result"),
        (14, 30, "trained 14 of 30 epochs; this is not a meaningful result"),
        (1, 2, "trained 1 of 2 epochs; a complete training gives a better result"),
    ],
)
def test_what_a_training_is_worth_that_was_cut_short(trained, planned, words):
    assert verdict(trained, planned) == words


def test_without_a_limit_nothing_changes(tmp_path):
    mcfg = config(tmp_path, trainMinutes=None)
    assert within_minutes(mcfg, 100.0, 420, 180, None) is mcfg


def test_a_run_that_goes_on_keeps_its_number_however_fast_the_machine_is_now(tmp_path):
    for seconds in (0.0, 0.001, 100.0):
        for least in (1, 30):
            mcfg = config(tmp_path, trainMinEpochs=least)
            assert within_minutes(mcfg, seconds, 420, 180, {"maxEpoch": 22}).maxEpoch == 22


def test_epochs_are_counted_from_the_start_epoch(tmp_path):
    mcfg = config(tmp_path, startEpoch=30)
    assert within_minutes(mcfg, 100.0, 420, 180, None).maxEpoch == 31


def test_an_epoch_of_a_student_shows_its_few_images_as_often_as_it_replays(tmp_path):
    """Sixteen images twice beside forty replayed, and a teacher that looks on for half as much again."""
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    empty = Annotation("a", Path("a.png"), Path("a.xml"), 8, 8, *none)
    splits = {"small": [empty] * 16, "validation": [empty] * 9}
    mcfg = config(tmp_path, trainMinutes=None, trainSplitName="small", replayImages=40, baseClasses=["A1"])
    assert images_an_epoch(mcfg, splits) == (72, 9)
    assert images_an_epoch(mcfg.with_values(modelName="distillation", epochValidation=False), splits) == (108, 0)
    assert images_an_epoch(mcfg.with_values(replayImages=0, validationInterval=3), splits) == (16, 3)
