"""Objects that are too small for the network input, counted from the annotations alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from config.errors import UserError
from dl.annotations import Annotation
from ops.anchors import make_anchors
from train.points import SmallObjects, are_inside, have_points, report_small_objects, small_objects


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
    expected = are_inside(points, boxes, min_side).any(dim=-1)
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
        report_small_objects(annotations, (64, 64), 0.0)


LARGE, NARROW, POINTLESS = (0, 0, 20, 20), (10, 10, 10.9, 30), (5, 5, 7, 7)


def test_few_are_not_reported_many_are_and_all_are_refused(caplog):
    report_small_objects([annotation("a", (64, 64), NARROW, *[LARGE] * 99)], (64, 64), 0.0)
    assert not caplog.messages
    report_small_objects([annotation("a", (64, 64), NARROW, POINTLESS, *[LARGE] * 98)], (64, 64), 0.0)
    report_small_objects([annotation("a", (64, 64), NARROW, POINTLESS)], (64, 64), 16.0)
    both, thin = caplog.messages
    assert both == (
        "2 of 100 training objects are too small to be learned at inputShape=64,64 (1 are less than a pixel wide or "
        "high, no anchor point lies inside 1): use a larger inputShape, or cut the images into parts, or set "
        "talMinSide=16"
    )
    assert thin == (
        "1 of 2 training objects are too small to be learned at inputShape=64,64 (1 are less than a pixel wide or "
        "high): use a larger inputShape, or cut the images into parts"
    )
    with pytest.raises(UserError, match=r"^nothing can be learned: 2 of 2 training objects are too small"):
        report_small_objects([annotation("a", (64, 64), NARROW), annotation("b", (64, 64), NARROW)], (64, 64), 0.0)
