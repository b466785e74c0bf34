"""Colours at pixels that are known, and pictures that survive every kind of image."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.label_layout import BoxLabel, LabelRect, drawable_names, place_labels, place_legend
from eval.painter import (
    GREEN,
    PURPLE,
    YELLOW,
    MarkedObject,
    class_colour,
    contact_sheet,
    file_names,
    is_painted,
    match_for_painting,
    paint,
    paint_detections,
    paint_objects,
)

NAMES = ("ant", "bee")
GREY = (90, 90, 90)


def blank(width=640, height=480):
    return np.full((height, width, 3), GREY[0], dtype=np.uint8)


def has(image, colour):
    return bool((image == np.array(colour, dtype=np.uint8)).all(axis=2).any())


def test_known_pixels(make_truth, make_found):
    truth = make_truth("a", [[100, 100, 200, 200, 0, 0], [400, 300, 500, 400, 1, 0]])
    found = make_found("a", [[110, 105, 205, 205, 0, 0.9], [300, 100, 350, 150, 1, 0.5]])
    image = blank()
    painted = paint(image, truth, found, NAMES)
    assert painted.shape == image.shape and painted.dtype == np.uint8
    assert (image == GREY[0]).all()  # the original is left alone
    assert tuple(painted[150, 100]) == PURPLE  # left edge of the first truth: column 100
    assert tuple(painted[150, 99]) == GREY
    assert tuple(painted[399, 450]) == PURPLE  # its last row, 399, of the box that ends at 400
    assert tuple(painted[400, 450]) == GREY
    assert tuple(painted[150, 110]) == GREEN
    assert tuple(painted[150, 204]) == GREEN
    assert tuple(painted[149, 320]) == YELLOW
    assert tuple(painted[150, 150]) == GREY  # nothing is filled


def test_a_prediction_that_covers_the_truth_leaves_it_visible(make_truth, make_found):
    painted = paint(
        blank(), make_truth("a", [[100, 100, 200, 200, 0, 0]]), make_found("a", [[100, 100, 200, 200, 0, 0.9]]), NAMES
    )
    assert tuple(painted[150, 100]) == GREEN
    assert tuple(painted[150, 102]) == PURPLE


def test_nothing_to_paint_changes_the_legend_only(make_truth, make_found):
    painted = paint(blank(), make_truth("a"), make_found("a"), NAMES)
    changed = (painted != GREY[0]).any(axis=2)
    assert changed.any() and changed.mean() < 0.05


@pytest.mark.parametrize(("score", "is_painted"), [(0.2, False), (0.26, True), (0.25, True)])
def test_the_lowest_score_that_is_painted(make_truth, make_found, score, is_painted):
    found = make_found("a", [[10, 10, 60, 60, 0, score]])
    assert len(match_for_painting(make_truth("a"), found, 0.5, 0.25).detections.scores) == is_painted


class TestJudge:
    def verdict(self, make_truth, make_found, truth, found, min_iou=0.5):
        return match_for_painting(make_truth("a", truth), make_found("a", found), min_iou, 0.2)

    def test_each_truth_once_the_best_score_first(self, make_truth, make_found):
        truth = [[0, 0, 100, 100, 0, 0]]
        found = [[0, 0, 100, 98, 0, 0.6], [0, 0, 100, 90, 0, 0.9], [0, 0, 100, 100, 0, 0.3]]
        verdict = self.verdict(make_truth, make_found, truth, found)
        assert verdict.detections.scores.tolist() == pytest.approx([0.9, 0.6, 0.3])
        assert verdict.is_right.tolist() == [True, False, False]
        assert verdict.is_found.tolist() == [True]

    def test_the_second_best_truth_will_do_when_the_best_is_taken(self, make_truth, make_found):
        truth = [[0, 0, 100, 100, 0, 0], [0, 0, 100, 120, 0, 0]]
        found = [[0, 0, 100, 100, 0, 0.9], [0, 0, 100, 101, 0, 0.8]]
        assert self.verdict(make_truth, make_found, truth, found).is_right.tolist() == [True, True]

    def test_another_class_or_too_little_overlap_is_wrong(self, make_truth, make_found):
        truth = [[0, 0, 100, 100, 0, 0]]
        assert not self.verdict(make_truth, make_found, truth, [[0, 0, 100, 100, 1, 0.9]]).is_right.any()
        assert self.verdict(make_truth, make_found, truth, [[0, 0, 100, 50, 0, 0.9]]).is_right.all()
        assert not self.verdict(make_truth, make_found, truth, [[0, 0, 100, 49, 0, 0.9]]).is_right.any()
        assert self.verdict(make_truth, make_found, truth, [[0, 0, 100, 49, 0, 0.9]], min_iou=0.4).is_right.all()

    def test_no_overlap_is_never_right(self, make_truth, make_found):
        truth, found = [[0, 0, 10, 10, 0, 0]], [[50, 50, 60, 60, 0, 0.9]]
        assert not self.verdict(make_truth, make_found, truth, found, min_iou=0.0).is_right.any()


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 48), (640, 480), (4000, 3000)])
def test_every_size(make_truth, make_found, size):
    width, height = size
    truth = make_truth("a", [[0, 0, width, height, 0, 0]], width, height)
    found = make_found("a", [[-5, -5, width * 2, height / 2, 1, 0.9], [width, height, width, height, 0, 0.8]])
    painted = paint(blank(width, height), truth, found, ("a" * 200, "飞机 é"))
    assert painted.shape == (height, width, 3)


def test_three_hundred_boxes_leave_the_picture_visible(make_truth, make_found):
    draw = np.random.default_rng(0)
    low = draw.uniform(0, 600, (300, 2))
    rows = np.column_stack([low, low + 30, draw.integers(0, 2, 300), draw.uniform(0.3, 1, 300)])
    painted = paint(blank(640, 640), make_truth("a"), make_found("a", rows), NAMES)
    assert (painted == GREY[0]).all(axis=2).mean() > 0.3
    assert has(painted, YELLOW)


def label_at(box, text="bee 0.50"):
    return BoxLabel(text, "0.50", LabelRect(*box), YELLOW, (0, 0, 0))


def overlap(a, b):
    return max(min(a.x1, b.x1) - max(a.x0, b.x0), 0) * max(min(a.y1, b.y1) - max(a.y0, b.y0), 0)


def test_chips_keep_out_of_each_others_way():
    cells = [label_at((x, y, x + 90, y + 70)) for y in range(0, 440, 40) for x in range(0, 600, 80)]
    chips = place_labels(cells, (640, 480), [LabelRect(440, 0, 640, 22)])
    assert len(chips) == len(cells) > 80
    rects = [chip.rect for chip in chips]
    clashes = sum(overlap(a, b) > 0 for number, a in enumerate(rects) for b in rects[:number])
    assert clashes == 0
    assert not any(overlap(rect, LabelRect(440, 0, 640, 22)) for rect in rects)


boxes = st.tuples(st.integers(0, 99), st.integers(0, 79), st.integers(1, 90), st.integers(1, 70))


@settings(max_examples=40, deadline=None)
@given(st.lists(boxes, max_size=12), st.text(max_size=30))
def test_chips_stay_inside_the_image(corners, text):
    labels = [label_at((x, y, min(100, x + w), min(80, y + h)), text) for x, y, w, h in corners]
    for chip in place_labels(labels, (100, 80)):
        assert 0 <= chip.rect.x0 < chip.rect.x1 <= 100
        assert 0 <= chip.rect.y0 < chip.rect.y1 <= 80


def test_the_legend_takes_the_emptiest_corner_or_none():
    entries = [(PURPLE, "truth 3"), (GREEN, "right 2"), (YELLOW, "wrong 1")]
    rect = place_legend(entries, (640, 480), [LabelRect(0, 0, 640, 240), LabelRect(0, 240, 200, 480)])
    assert rect.x1 == 640 and rect.y1 == 480
    assert place_legend(entries, (90, 90), []) is None


def test_file_names_are_safe_and_differ():
    ids = ["a", "A", "x/y", "x_y", "..\\up", ".hidden", "", "a-2", "é", "n" * 500]
    names = file_names(ids)
    assert list(names) == ids
    assert len({name.casefold() for name in names.values()}) == len(ids)
    for name in names.values():
        assert name.endswith(".jpg") and not set(name) & set("/\\") and not name.startswith(".")
        assert len(name.encode()) < 255
    assert names["a"] == "a.jpg" and names["x/y"] == "x_y.jpg"


def test_names_that_the_letters_cannot_write_become_numbers():
    assert drawable_names(("plane", "飞机", "Flügel", "самолёт")) == ("plane", "class 1", "Flügel", "самолёт")


def test_predictions_alone_are_painted_in_the_colours_of_their_classes(make_found):
    rows = [[100, 100, 200, 200, 0, 0.9], [300, 300, 400, 400, 1, 0.5], [500, 100, 600, 200, 1, 0.1]]
    image = blank()
    painted = paint_detections(image, make_found("a", rows), NAMES)
    assert painted.shape == image.shape and (image == GREY[0]).all()
    assert tuple(painted[150, 100]) == tuple(painted[150, 199]) == class_colour(0)
    assert tuple(painted[350, 300]) == class_colour(1)
    assert tuple(painted[150, 500]) == GREY  # below the lowest score that is painted
    assert tuple(painted[150, 150]) == tuple(painted[150, 99]) == GREY
    assert (paint_detections(image, make_found("a"), NAMES) == image).all()


def test_a_box_is_seen_on_an_image_of_its_own_colour(make_found):
    image = np.full((100, 100, 3), class_colour(0), dtype=np.uint8)
    painted = paint_detections(image, make_found("a", [[20, 20, 80, 80, 0, 0.9]]), NAMES)
    assert (painted[50] != image[50]).any(axis=1).sum() >= 2  # a dark line on either side


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (4000, 300)])
def test_predictions_alone_on_every_size(make_found, size):
    found = make_found("a", [[-5, -5, size[0] * 2, size[1] / 2, label, 0.9] for label in range(2)])
    assert paint_detections(blank(*size), found, ("a" * 200, "é")).shape == (size[1], size[0], 3)


def test_class_colours_differ():
    colours = [class_colour(label) for label in range(20)]
    gaps = [
        max(abs(a - b) for a, b in zip(one, other, strict=True)) for one in colours for other in colours if one != other
    ]
    assert len(set(colours)) == 20 and min(gaps) > 15


def test_file_names_fit_a_file_system_and_are_counted_on():
    long = file_names(["鸟" * 120, "鸟" * 119 + "a"])
    assert all(len(name.encode()) <= 210 for name in long.values())
    many = file_names([f"{'x' * 120}{number}" for number in range(20_000)])  # to count from 1 would take minutes
    assert len(set(many.values())) == 20_000


def test_a_pipe_is_not_painted(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    assert not is_painted(tmp_path / "a.jpg")


# Objects with their anchor points


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
