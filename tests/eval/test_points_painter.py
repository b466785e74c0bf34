"""Objects with their points: where dots and frames are, how small images grow, and sheets of several."""

import numpy as np
import pytest

from eval.points_painter import MarkedObject, contact_sheet, paint_objects

GREEN = (0, 205, 75)


def marked(points, strides, text="") -> MarkedObject:
    points = np.array(points, dtype=np.float32).reshape(-1, 2)
    return MarkedObject((16.0, 16.0, 48.0, 40.0), text, GREEN, points, np.array(strides, dtype=np.float32))


def test_nothing_to_mark_enlarges_and_no_more():
    image = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    painted = paint_objects(image, [])
    assert np.array_equal(painted, image.repeat(10, axis=0).repeat(10, axis=1))
    large = np.zeros((900, 700, 3), dtype=np.uint8)
    assert paint_objects(large, []).shape == large.shape


def test_frames_and_dots_are_where_the_object_is_and_coarser_maps_have_larger_dots():
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    painted = paint_objects(image, [marked([[20, 20], [24, 32]], [8, 16])])
    is_green = (painted == GREEN).all(axis=2)
    assert is_green[160, 160:480].all() and is_green[160:400, 160].all()
    assert not is_green[159].any() and not is_green[:, 480:].any()
    inside = is_green.copy()
    inside[:, :165] = inside[:165] = inside[395:] = inside[:, 475:] = False
    rows, columns = np.nonzero(inside)
    small, large = (((rows - y) ** 2 + (columns - x) ** 2 < 30**2) for x, y in ((200, 200), (240, 320)))
    assert (small | large).all() and 0 < small.sum() < large.sum()
    assert not image.any()


def test_an_object_beside_the_image_and_one_with_words():
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    outside = MarkedObject((-20.0, -20.0, -5.0, -5.0), "", GREEN, np.zeros((0, 2), np.float32), np.zeros(0, np.float32))
    assert paint_objects(image, [outside]).shape == (640, 640, 3)
    assert (paint_objects(image, [marked([], [], "A5 10")]) == GREEN).all(axis=2).sum() > 1000  # the chip's ground


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (4, 2, 2), (5, 2, 3), (9, 3, 3)])
def test_a_sheet(count, rows, columns):
    images = [np.full((4, 6, 3), number, dtype=np.uint8) for number in range(count)]
    sheet = contact_sheet(images, gap=2)
    assert sheet.shape == (rows * 6 - 2, columns * 8 - 2, 3)
    last = count - 1
    assert (sheet[last // columns * 6 :, last % columns * 8 :][:4, :6] == last).all()


def test_a_sheet_of_nothing():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
