"""Labels, anchor points and the picture of a batch: an injected fault is named, good data are called ok."""

from dataclasses import replace

import pytest
import torch
from doctor_checks import batch_of, first_batch, levels, only

from debug.doctor.data_check import (
    examine_batch,
    examine_data,
    examine_labels,
    examine_points,
    examine_sizes,
    select_images,
)
from debug.doctor.finding import LOOK, OK, WRONG
from dl.check import check_data
from dl.report import DataReport, SplitReport


def test_labels_that_are_missing_or_few(setup_of):
    setup = setup_of()
    annotations = setup.loader.dataset.annotations
    only_red = [
        replace(item, boxes=item.boxes[:1], labels=item.labels[:1], difficult=item.difficult[:1])
        for item in annotations
    ]
    found = list(examine_labels(setup.mcfg, only_red * 2))
    assert (levels(found), "no training object of blue" in found[0].text) == ([WRONG], True)
    assert levels(examine_labels(setup.mcfg.with_values(trainSelectedClasses=["red"]), only_red * 2)) == [OK]
    assert levels(examine_labels(setup.mcfg, annotations * 2)) == [OK]
    none = [item for item in annotations if not len(item.labels)]
    found = list(examine_labels(setup.mcfg, annotations * 2 + none * 20))
    assert (levels(found), "22 of 36 images have no object" in found[0].text) == ([LOOK], True)


def test_a_batch_is_drawn_with_its_anchor_points(setup_of, tmp_path):
    setup = setup_of()
    batch = first_batch(setup)
    found = only(examine_batch(setup, batch, tmp_path))
    assert found.level == OK
    assert f"{int(batch.valid.sum())} boxes on 3 images (drawn in" in found.text
    assert (tmp_path / "batch.jpg").read_bytes().startswith(b"\xff\xd8")
    empty = replace(batch, valid=torch.zeros_like(batch.valid))
    assert only(examine_batch(setup, empty, tmp_path)).level == LOOK


def test_of_a_large_batch_the_first_images_are_drawn(setup_of, tmp_path):
    setup = setup_of()
    ten = select_images(first_batch(setup), 10)
    found = only(examine_batch(setup, ten, tmp_path))
    assert f"on 10 images (the first 9 drawn in {tmp_path / 'batch.jpg'})" in found.text
    empty = replace(ten, valid=torch.zeros_like(ten.valid))
    assert (
        "none of its 10 images has an object (the first 9 drawn in" in only(examine_batch(setup, empty, tmp_path)).text
    )


TINY, LARGE = (5.0, 5.0, 8.0, 9.0), (0.0, 0.0, 9.0, 9.0)  # points lie at 4, 12, 20, ...


@pytest.mark.parametrize(
    ("batches", "level", "words"),
    [
        ([batch_of(TINY)], WRONG, "boxes without an anchor point inside: 1 of 1 in 1 augmented batch (100.0 %)"),
        ([batch_of(TINY, *[LARGE] * 9)], LOOK, "(10.0 %)"),
        ([batch_of(TINY, *[LARGE] * 60), batch_of(*[LARGE] * 60)], OK, "(0.8 %)"),
        ([batch_of(LARGE)], OK, "boxes without an anchor point inside: 0 of 1 in 1 augmented batch"),
    ],
)
def test_boxes_without_an_anchor_point(setup_of, batches, level, words):
    found = only(examine_points(setup_of(), batches))
    assert (found.level, words in found.text) == (level, True), found.text
    assert ("talMinSide=16, which gives 1 of them an anchor point" in found.text) == ("too small" in found.text)


def test_small_boxes_with_tal_min_side_and_no_boxes(setup_of):
    setup = setup_of(talMinSide=16)
    assert only(examine_points(setup, [batch_of(TINY)])).level == OK
    assert list(examine_points(setup, [batch_of()])) == []


@pytest.mark.parametrize(("num_thin", "level"), [(1, LOOK), (4, WRONG)])
def test_objects_below_a_pixel_are_in_no_batch_and_are_reported(setup_of, num_thin, level):
    setup = setup_of()
    assert list(examine_sizes(setup)) == []
    annotations = setup.loader.dataset.annotations  # 96 pixels wide on an input of 64; 14 objects
    for number in range(num_thin):
        boxes = annotations[number].boxes.copy()
        boxes[:, 2] = boxes[:, 0] + 1.4
        annotations[number] = replace(annotations[number], boxes=boxes)
    found = only(examine_sizes(setup))
    count = sum(len(annotations[number].boxes) for number in range(num_thin))
    assert (found.level, f"{count} of 14 training objects are too small" in found.text) == (level, True), found.text
    assert "less than a pixel wide or high" in found.text and "anchor point" not in found.text


def test_copies_of_images_in_two_splits_are_wrong(squares_config):
    report = DataReport(("red",), {"train": SplitReport(images=1)}, copies=("'train' and 'test' hold 1 image",))
    findings = list(examine_data(replace(check_data(squares_config(), ["train"]), report=report)))
    assert [(finding.level, finding.subject) for finding in findings] == [("ok", "data"), ("wrong", "data")]
    assert findings[1].text == report.copies[0]
