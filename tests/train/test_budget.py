"""Epochs that fit into the minutes a recipe allows."""

from pathlib import Path

import numpy as np
import pytest

from config.load import load_config
from dl.annotations import Annotation
from train.budget import images_an_epoch, within_minutes


def config(tmp_path, **overrides):
    return load_config("c1.nano", root=tmp_path, overrides={"maxEpoch": 36, "trainMinutes": 5, **overrides})


@pytest.mark.parametrize(("seconds", "epochs"), [(0.001, 36), (0.02, 22), (0.04, 11), (100.0, 1)])
def test_a_slow_machine_gets_fewer_epochs_and_at_least_one(tmp_path, seconds, epochs):
    fitted = within_minutes(config(tmp_path), seconds, 420, 180, None)
    an_epoch = seconds * (1.35 * 420 + 0.6 * 180)
    assert fitted.maxEpoch == epochs
    assert epochs in (1, 36) or epochs * an_epoch <= 300 < (epochs + 1) * an_epoch


def test_without_a_limit_nothing_changes(tmp_path):
    mcfg = config(tmp_path, trainMinutes=None)
    assert within_minutes(mcfg, 100.0, 420, 180, None) is mcfg


def test_a_run_that_goes_on_keeps_its_number_however_fast_the_machine_is_now(tmp_path):
    for seconds in (0.0, 0.001, 100.0):
        assert within_minutes(config(tmp_path), seconds, 420, 180, {"maxEpoch": 22}).maxEpoch == 22


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
