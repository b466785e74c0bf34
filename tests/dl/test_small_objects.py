"""Objects that are too small for the network input, counted from the annotations alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from config.errors import UserError
from dl.annotations import Annotation
from dl.augment import AugmentRanges, apply_plan, draw_plan
from dl.mosaic import ModernRanges, apply_mosaic, draw_mosaic
from dl.small_objects import SmallObjects, have_points, report_small_objects, small_objects
from ops.anchors import make_anchors, points_inside


def annotation(name, size, *boxes):
    """An image of this (width, height) with these boxes."""
    count, (width, height) = len(boxes), size
    arrays = np.array(boxes, np.float32).reshape(-1, 4), np.zeros(count, np.int64), np.zeros(count, bool)
    return Annotation(name, Path(f"{name}.png"), Path(f"{name}.xml"), width, height, *arrays)


@pytest.mark.parametrize("min_side", [0.0, 3.0, 16.0])
@pytest.mark.parametrize("input_shape", [(32, 32), (64, 96)])
def test_the_nearest_points_decide_like_all_of_them(input_shape, min_side):
    random = torch.Generator().manual_seed(0)
    height, width = input_shape
    centre = torch.rand(3000, 2, generator=random) * torch.tensor([width + 20.0, height + 20.0]) - 10
    half = torch.rand(3000, 2, generator=random) * 8
    boxes = torch.cat([(centre - half), (centre + half)], dim=1).round(decimals=0)
    points = make_anchors(tuple((height // stride, width // stride) for stride in (8, 16, 32))).points
    expected = points_inside(points, boxes, min_side).any(dim=-1)
    assert 0 < expected.sum() < 3000
    assert torch.equal(have_points(boxes, input_shape, min_side), expected)
    assert have_points(boxes[:0], input_shape).tolist() == []


def test_objects_are_measured_where_their_image_just_fits():
    """100 x 50 pixels on 64 x 64: scale .64, 16 rows of grey above. Points of the finest map: 4, 12, 20, ..."""
    wide = annotation(
        "wide", (100, 50),
        (10, 10, 11, 40),  # .64 pixels wide
        (10, 10, 40, 11.5),  # .96 high
        (8, 8, 12, 12),  # 2.56 from (5.1, 21.1): no point between 4 and 12, nor 8 of the next map between 21 and 24
        (30, 10, 32, 40),  # 1.28 wide, from (19.2, 22.4) to (20.48, 41.6): the point (20, 28) lies inside
        (0, 0, 20, 20),  # from (0, 16) to (12.8, 28.8)
    )  # fmt: skip
    square = annotation("square", (64, 64), (3, 3, 5, 5), (5, 5, 7, 7), (15, 15, 17, 17))  # points 4; none; 16 of 32
    assert small_objects([wide, square], (64, 64)) == SmallObjects(8, 2, 2)
    assert small_objects([wide, square], (64, 64), min_side=16.0) == SmallObjects(8, 2, 0)
    assert small_objects([wide, square, square], (64, 64)).total == 8, "an image that comes twice counts once"


def test_no_image_and_no_object():
    for annotations in ([], [annotation("empty", (64, 64))]):
        small = small_objects(annotations, (64, 64))
        assert (small, small.share) == (SmallObjects(0, 0, 0), 0.0)
        report_small_objects(annotations, (64, 64), 0.0, 1.0)


LARGE, NARROW, POINTLESS = (0, 0, 20, 20), (10, 10, 10.9, 30), (5, 5, 7, 7)


def test_few_are_not_reported_many_are_and_all_are_refused(caplog):
    report_small_objects([annotation("a", (64, 64), NARROW, *[LARGE] * 99)], (64, 64), 0.0, 1.0)
    assert not caplog.messages
    report_small_objects([annotation("a", (64, 64), NARROW, POINTLESS, *[LARGE] * 98)], (64, 64), 0.0, 1.0)
    report_small_objects([annotation("a", (64, 64), NARROW, POINTLESS)], (64, 64), 16.0, 1.0)
    both, thin = caplog.messages
    assert both == (
        "2 of 100 training objects are too small to be learned well at inputShape=64,64 (1 object less than a pixel "
        "wide or high, 1 object without an anchor point inside): use a larger inputShape, or cut the images into parts"
        ", or set talMinSide=16"
    )
    assert thin == (
        "1 of 2 training objects are too small to be learned well at inputShape=64,64 (1 object less than a pixel wide "
        "or high): use a larger inputShape, or cut the images into parts"
    )
    with pytest.raises(UserError, match=r"^nothing can be learned: at inputShape=64,64 no training object has"):
        report_small_objects([annotation("a", (64, 64), NARROW), annotation("b", (64, 64), NARROW)], (64, 64), 0.0, 1.0)


@pytest.mark.parametrize(
    ("ranges", "side"),
    [
        (ModernRanges(), 2 / 1.5), (ModernRanges(scale=0.0), 2.0), (ModernRanges(mosaic=0.0, scale=0.9), 2 / 1.9),
        (AugmentRanges(), 0.7 / 1.3 / 2), (AugmentRanges(jitter=0.0, scale=(1.0, 1.0)), 1.0),
    ],
)  # fmt: skip
def test_only_what_every_draw_of_the_augmentation_drops_is_refused(ranges, side):
    """Two squares in the middle of an image that just fits: a little below the side, and a fifth above it."""
    shape, labels = (320, 320), np.arange(2)
    image = np.zeros((*shape, 3), np.uint8)
    boxes = np.array([[160, 160, 160 + length, 160 + length] for length in (0.99 * side, 1.2 * side)], np.float32)
    kept = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        if isinstance(ranges, ModernRanges):
            plan = draw_mosaic(rng, 0, np.array([shape]), shape, replace(ranges, mosaic=0.0))
            tiles = len(plan.tiles)
            kept += apply_mosaic(plan, [image] * tiles, [boxes] * tiles, [labels] * tiles)[2].tolist()
        else:
            kept += apply_plan(draw_plan(rng, shape, shape, ranges), image, boxes, labels)[2].tolist()
    assert ranges.always_dropped == pytest.approx(side)
    # With jitter the largest factor is that of one side of a long image, so it is not reached here.
    assert set(kept) == (set() if ranges == AugmentRanges() else {1})
    with pytest.raises(UserError, match="even at its largest scale"):
        report_small_objects([annotation("a", (64, 64), (10, 10, 10 + 0.99 * side, 30))], (64, 64), 16.0, side)
    above = [annotation("a", (64, 64), (10, 10, 10 + 1.2 * side, 30))]
    report_small_objects(above, (64, 64), 16.0, side)


def test_without_augmentation_nothing_is_refused(caplog):
    report_small_objects([annotation("a", (64, 64), NARROW)], (64, 64), 16.0, 0.0)
    assert ["1 of 1 training objects are too small to be learned well" in text for text in caplog.messages] == [True]
