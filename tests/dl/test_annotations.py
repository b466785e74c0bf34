import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl.annotations import RawAnnotation, RawObject, clean_annotation


def cleaned(tmp_path, objects, size=(40, 30), class_list=("cat", "dog")):
    voc = RawAnnotation(size, tuple(RawObject(*entry) for entry in objects))
    return clean_annotation(voc, "i", tmp_path / "i.jpg", tmp_path / "i.xml", size, class_list)


def test_clean_without_objects(tmp_path):
    annotation, tally = cleaned(tmp_path, [])
    assert annotation.boxes.shape == (0, 4)
    assert annotation.labels.shape == annotation.difficult.shape == (0,)
    assert (tally.clipped, tally.dropped.total(), tally.ignored.total()) == (0, 0, 0)
    assert annotation.image_id == "i"


def test_clean_keeps_coordinates_as_written(tmp_path):
    objects = [("dog", (1, 1, 40, 30), True), ("cat", (0, 0, 0.25, 7.5), False)]
    annotation, tally = cleaned(tmp_path, objects)
    assert annotation.boxes.tolist() == [[1, 1, 40, 30], [0, 0, 0.25, 7.5]]
    assert annotation.labels.tolist() == [1, 0]
    assert annotation.difficult.tolist() == [True, False]
    assert (annotation.boxes.dtype, annotation.labels.dtype) == (np.float32, np.int64)
    assert (tally.clipped, tally.dropped.total()) == (0, 0)


def test_clean_clips_drops_and_ignores_and_counts_each(tmp_path):
    objects = [
        ("cat", (-3, 5, 50, 20), False),  # clipped
        ("cat", (10, 10, 10, 20), False),  # no width
        ("cat", (20, 10, 10, 20), False),  # inverted
        ("cat", (50, 5, 60, 9), False),  # wholly outside
        ("cow", (1, 2, 3, 4), False),  # not in the list
        ("cow", (9, 9, 1, 1), False),
        ("dog", (2, 3, 4, 5), False),
    ]
    annotation, tally = cleaned(tmp_path, objects)
    assert annotation.boxes.tolist() == [[0, 5, 40, 20], [2, 3, 4, 5]]
    assert annotation.labels.tolist() == [0, 1]
    assert (tally.clipped, dict(tally.ignored)) == (1, {"cow": 2})
    assert tally.dropped == {"without area": 1, "with swapped corners": 1, "outside the image": 1}


@pytest.mark.parametrize(
    ("box", "why"),
    [
        ((30, 5, 10, 20), "with swapped corners"),
        ((10, 20, 30, 5), "with swapped corners"),
        ((60, 20, 50, 5), "with swapped corners"),
        ((10, 5, 10, 20), "without area"),
        ((10, 5, 10, 5), "without area"),
        ((10, 5, 10 + 1e-9, 20), "without area"),
        ((41, 5, 60, 20), "outside the image"),
        ((-9, -9, -1, -1), "outside the image"),
        ((5, 30, 20, 40), "outside the image"),
        ((0.25, 0.25, 0.75, 0.5), "within the first pixel"),
        ((0, 0, 1, 1), "within the first pixel"),
        ((0, 0, 1, 1.5), None),
        ((39, 29, 40, 30), None),
    ],
)
def test_why_a_box_is_dropped(tmp_path, box, why):
    annotation, tally = cleaned(tmp_path, [("cat", box, False), ("dog", (2, 3, 4, 5), False)])
    assert tally.dropped == ({why: 1} if why else {})
    assert annotation.labels.tolist() == ([1] if why else [0, 1])


def test_a_picture_of_one_pixel_may_have_an_object(tmp_path):
    assert len(cleaned(tmp_path, [("cat", (0, 0, 1, 1), False)], size=(1, 1))[0].boxes) == 1


def test_an_object_that_is_written_twice_counts_once(tmp_path):
    box, other = (2, 3, 4, 5), (2, 3, 4, 6)
    objects = [("cat", box, True), ("dog", box, True), ("cat", other, False), ("cat", box, False), ("dog", box, True)]
    annotation, tally = cleaned(tmp_path, objects)
    assert annotation.boxes.tolist() == [[2, 3, 4, 5], [2, 3, 4, 5], [2, 3, 4, 6]]
    assert annotation.labels.tolist() == [0, 1, 0]
    assert annotation.difficult.tolist() == [False, True, False], "difficult when all of them are"
    assert tally.duplicates == 2


COORDINATE = st.floats(-100, 100) | st.integers(-10, 50).map(float)


@given(boxes=st.lists(st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE), max_size=8))
def test_cleaned_boxes_always_have_area_inside_the_image(tmp_path_factory, boxes):
    annotation, tally = cleaned(tmp_path_factory.getbasetemp(), [("cat", box, False) for box in boxes])
    assert len(annotation.boxes) + tally.dropped.total() + tally.duplicates == len(boxes)
    assert (annotation.boxes[:, 2:] > annotation.boxes[:, :2]).all()
    assert (annotation.boxes >= 0).all()
    assert (annotation.boxes <= [40, 30, 40, 30]).all()
