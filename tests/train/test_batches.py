"""Statistics of first batches against figures made by hand."""

import json

import pytest
import torch

from ops.batch import Batch
from ops.probe import probe
from train.batches import FirstBatches


def batch_of(pixels, boxes, labels, valid):
    """`pixels`: a grey value an image."""
    images = torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()
    return Batch(
        images,
        torch.tensor(boxes, dtype=torch.float32).view(len(pixels), -1, 4),
        torch.tensor(labels).view(len(pixels), -1).long(),
        torch.tensor(valid, dtype=torch.bool).view(len(pixels), -1),
        tuple(map(str, range(len(pixels)))),
    )


BOX, SMALL, NONE = [0, 0, 20, 5], [1, 1, 4, 4], [0, 0, 0, 0]  # sizes 10 and 3
TWO = batch_of([10, 30], [[BOX, SMALL], [NONE, NONE]], [[2, 0], [0, 0]], [[1, 1], [0, 0]])
ONE = batch_of([200], [[SMALL]], [[2]], [[1]])
EMPTY = batch_of([0, 0], [], [], [])


def seen(batches, first=None, positives=0):
    first = first or FirstBatches(["red", "green", "blue"])
    for batch in batches:
        with first.observe(batch):
            targets = torch.zeros(len(batch), 8, 3)
            targets[0, :positives, 1] = 0.5
            probe("tal.target", targets)
            probe("tal.share", torch.ones(3))
    return first


def test_many():
    told = seen([TWO, ONE], positives=6).to_dict()
    assert told == {
        "batches": 2,
        "images": 3,
        "pixels": {"lowest": 10, "highest": 200, "mean_rgb": [110, 110, 110]},  # of 20 and 200
        "boxes_an_image": {"lowest": 0, "median": 1, "highest": 2},
        "empty_images": 0.3333,
        "box_sizes": {"lowest": 3, "median": 3, "highest": 10},
        "classes": {"red": 1, "blue": 2},
        "positives_a_box": 4,  # twice 6, for three boxes
    }


def test_one():
    told = seen([ONE], positives=5).to_dict()
    assert told["boxes_an_image"] == {"lowest": 1, "median": 1, "highest": 1} and told["empty_images"] == 0
    assert told["positives_a_box"] == 5 and told["classes"] == {"blue": 1}


def test_no_box():
    first = seen([EMPTY])
    told = first.to_dict()
    assert told["box_sizes"] is None and told["positives_a_box"] is None and told["empty_images"] == 1
    assert first.text().endswith("no box in these batches: the network only learns that there are no objects")


def test_no_batch(tmp_path):
    first = FirstBatches(["red"])
    assert first.to_dict()["boxes_an_image"] is None and first.text() == "first batches: none"
    first.write(tmp_path / "health" / "first.json")
    assert json.loads((tmp_path / "health" / "first.json").read_text())["images"] == 0


def test_only_the_first_are_looked_at():
    first = seen([TWO, ONE, ONE, ONE], FirstBatches(["red"], batches=2), positives=1)
    assert first.is_done and first.to_dict()["images"] == 3
    assert first.to_dict()["positives_a_box"] == pytest.approx(2 / 3, abs=1e-3)


def test_a_channel_has_its_own_mean():
    batch = batch_of([100], [[BOX]], [[0]], [[1]])
    batch.images[0, 2] = 0
    assert seen([batch]).to_dict()["pixels"]["mean_rgb"] == [100, 100, 0]


def test_the_text():
    assert seen([TWO, ONE], positives=6).text().splitlines() == [
        "first 2 batches: 3 images",
        "  pixels: 10-200 (mean 110 110 110 in RGB)",
        "  boxes per image: 0-2 (median 1); images without boxes: 33 %",
        "  box size in pixels: 3-10 (median 3); anchor points per box: 4.0",
        "  classes in these batches: 2 of 3",
    ]
