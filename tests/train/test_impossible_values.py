"""Boxes and images that are finite and cannot be right."""

import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from tiny_step import batch_of

from train.batches import impossible_values
from train.trainer import Trainer

SIDE = 64  # of the images of `batch_of`
INVERTED, OUTSIDE = "inverted (x2 < x1 or y2 < y1)", "outside the network input, or more than 4 times as long"


def with_box(*box, valid=True):
    batch = batch_of()
    batch.boxes[1, 1] = torch.tensor(box)
    batch.valid[1, 1] = valid
    return batch


@pytest.mark.parametrize(
    ("box", "kinds"),
    [
        ((1, 2, 3, 4), []),
        ((0, 0, SIDE, SIDE), []),
        ((-5, -5, 70, 70), []),  # reaches beyond the image
        ((5, 5, 5, 9), []),  # empty, which the assigner leaves alone
        ((9, 2, 3, 4), [INVERTED]),
        ((1, 8, 3, 4), [INVERTED]),
        ((-9, 1, 0, 5), [OUTSIDE]),
        ((1, SIDE, 5, SIDE + 9), [OUTSIDE]),
        ((-5e5, 0, 5e5, 9), [OUTSIDE]),
        ((200, 1, 100, 5), [INVERTED, OUTSIDE]),
    ],
)
def test_boxes(box, kinds):
    found = impossible_values(with_box(*box))
    assert list(found) == kinds
    told = " ".join(f"{value:g}" for value in box)
    assert all(f"1 boxes of a batch are {kind}" in text for kind, text in found.items())
    assert all(f"the first is in image s0_1: x1 y1 x2 y2 = {told}" in text for text in found.values())
    assert impossible_values(with_box(*box, valid=False)) == {}  # padding


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_the_guards_matter(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        impossible_values(with_box(value, value, value, value))


def test_a_batch_without_boxes():
    assert impossible_values(batch_of(boxes=0)) == {}


def test_images_of_one_colour():
    batch = batch_of()
    black = torch.zeros_like(batch.images)
    assert (
        "each of the 2 images of a batch has a single colour, for example s0_0"
        in impossible_values(replace(batch, images=black))["one colour"]
    )
    colours = black + torch.arange(3, dtype=torch.uint8)[:, None, None]
    assert "one colour" in impossible_values(replace(batch, images=colours))
    one_pixel = black.clone()
    one_pixel[1, 2, 33, 5] = 1  # not among those that are compared first
    assert impossible_values(replace(batch, images=one_pixel)) == {}
    assert impossible_values(replace(batch, images=torch.stack([black[0], batch.images[1]]))) == {}


@pytest.mark.usefixtures("no_checkpoints")
def test_a_run_counts_such_batches_and_says_each_kind_once(squares_config, caplog):
    trainer = Trainer(squares_config(maxEpoch=2, epochValidation=False))
    look = trainer.monitor.check_inputs

    def odd(batch, progress):
        if batch.valid.any():
            batch.boxes[batch.valid] = torch.tensor([9.0, 9.0, 3.0, 3.0])
        look(batch, progress)

    trainer.monitor.check_inputs = odd
    folder = trainer.run()
    assert [json.loads(line)["odd_batches"] for line in folder.metrics.read_text().splitlines()] == [3, 3]
    assert caplog.text.count("boxes of a batch are inverted") == 1
    assert "check the data set and its augmentation" in caplog.text
