"""Trainings on coloured squares, in a moment."""

from functools import partial

import pytest

from benchmarks.squares import draw_squares
from config.load import load_config
from train.trainer import Trainer


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """The folder of twelve scenes: 8 train, 2 validation, 2 test."""
    return draw_squares(tmp_path_factory.mktemp("data") / "squares")


def config_of(squares, root, name="run", **overrides):
    """A config that trains on the squares in a moment, its runs below `root`."""
    fields = {
        "classList": ["red", "blue"],
        "inputShape": 64,
        "batchSize": 3,
        "maxEpoch": 3,
        "dcore": 0,
        "precision": "float32",  # the same on every processor
        "device": "cpu",
    }
    return load_config("voc.nano.full", root=str(root), data=str(squares), overrides={**fields, **overrides}, name=name)


@pytest.fixture
def squares_config(squares, tmp_path):
    """A function from a name and overrides to a config whose runs lie in the test's folder."""
    return partial(config_of, squares, tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _narrow(narrow_networks):
    """The tests here are about what happens around a network."""


@pytest.fixture(scope="module")
def trained_teacher(squares, tmp_path_factory):
    """The folder of a run of one epoch that students may learn from; they only read it."""
    return Trainer(config_of(squares, tmp_path_factory.mktemp("teacher"), "teacher", maxEpoch=1)).run().path


@pytest.fixture
def no_checkpoints(monkeypatch):
    """The trainer writes none: for tests that read none, since each takes as long as several steps."""
    monkeypatch.setattr("runs.folder.RunFolder.save", lambda *_, **__: None)
