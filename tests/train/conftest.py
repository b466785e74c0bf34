"""A data set that is drawn in a moment: coloured squares on noise, with Pascal VOC annotations."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from config.load import load_config
from train.trainer import Trainer

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}


def draw_data_set(folder, count=12, side=96, seed=0):
    random = np.random.default_rng(seed)
    for name in ("images", "annotations", "splits"):
        (folder / name).mkdir(parents=True)
    names = [f"scene_{i:02}" for i in range(count)]
    for i, name in enumerate(names):
        image = random.integers(90, 150, (side, side, 3)).astype(np.uint8)
        objects = ""
        for label, colour in list(COLOURS.items()) if i != 3 else ():  # one image without objects
            width, height = random.integers(24, 40, 2)
            x, y = random.integers(0, side - width), random.integers(0, side - height)
            image[y : y + height, x : x + width] = colour
            objects += (
                f"<object><name>{label}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
                f"<xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>"
            )
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        size = f"<size><width>{side}</width><height>{side}</height><depth>3</depth></size>"
        (folder / "annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (folder / "classes.txt").write_text("red\nblue\n")
    splits = {"train": names[:8], "validation": names[8:10], "test": names[10:]}
    for split, ids in splits.items():
        (folder / "splits" / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return folder


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """The folder of twelve scenes: 8 train, 2 validation, 2 test."""
    return draw_data_set(tmp_path_factory.mktemp("data") / "squares")


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
def _narrow(narrow_nano):
    """The tests here are about what happens around a network."""


@pytest.fixture(scope="module")
def trained_teacher(squares, tmp_path_factory):
    """The folder of a run of one epoch that students may learn from; they only read it."""
    return Trainer(config_of(squares, tmp_path_factory.mktemp("teacher"), "teacher", maxEpoch=1)).run().path


@pytest.fixture
def no_checkpoints(monkeypatch):
    """The trainer writes none: for tests that read none, since each takes as long as several steps."""
    monkeypatch.setattr("train.runfolder.RunFolder.save", lambda *_, **__: None)
