"""The teacher's detections as labels: of its own classes, where these are not labelled, and of other objects."""

import torch
from torch import Tensor

from ops.batch import Batch
from train.teacher import PseudoLabels, TeacherClasses

R = 4
STRIDES = (8, 16, 32)


def maps_that_see(objects: list[tuple[int, tuple[int, int], int, float]], classes: int, count: int) -> list[Tensor]:
    """Raw maps of 64 pixel images: at cell (x, y) of the finest map an object of 8 pixels to each side."""
    maps = [torch.zeros(count, 4 * R + classes, 64 // s, 64 // s) for s in STRIDES]
    for raw in maps:
        raw[:, 4 * R :] = -20
    for image, (x, y), label, score in objects:
        cell = maps[0][image, :, y, x]
        cell[: 4 * R] = -50
        cell[1 : 4 * R : R] = 50  # one stride to every side
        cell[4 * R + label] = torch.logit(torch.tensor(score))
    return maps


def batch_of(labelled: Tensor | None, boxes: list[list[float]], labels: list[int]) -> Batch:
    """Two images; the boxes are on the first."""
    count = len(labels)
    all_boxes = torch.zeros(2, count, 4)
    all_labels, valid = torch.zeros(2, count, dtype=torch.long), torch.zeros(2, count, dtype=torch.bool)
    for row, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        all_boxes[0, row], all_labels[0, row], valid[0, row] = torch.tensor(box), label, True
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    return Batch(images, all_boxes, all_labels, valid, ("a", "b"), labelled=labelled)


def pseudo() -> PseudoLabels:
    """The teacher's columns 0 and 1 are the student's classes 2 and 0; class 1 is new."""
    return PseudoLabels(TeacherClasses(("c", "a"), (2, 0), (0, 1)), 0.5, R, STRIDES)


NEW_ONLY = torch.tensor([[False, True, False], [False, True, False]])


def test_objects_of_classes_without_labels_get_them():
    seen = maps_that_see([(0, (2, 2), 0, 0.9), (0, (5, 5), 1, 0.8), (1, (3, 1), 1, 0.7), (1, (6, 6), 0, 0.4)], 2, 2)
    out = pseudo()(batch_of(NEW_ONLY, [[40.0, 0.0, 60.0, 20.0]], [1]), seen)
    assert out.labels[0][out.valid[0]].tolist() == [1, 2, 0]
    assert out.boxes[0].tolist() == [[40, 0, 60, 20], [12, 12, 28, 28], [36, 36, 52, 52]]
    assert out.labels[1][out.valid[1]].tolist() == [0]  # .4 is too unsure
    assert out.boxes[1][0].tolist() == [20, 4, 36, 20]
    assert out.valid.sum(dim=1).tolist() == [3, 1]


def test_a_labelled_object_gets_no_second_label():
    """The teacher takes the new object for one of its own."""
    seen = maps_that_see([(0, (2, 2), 0, 0.9)], 2, 2)
    out = pseudo()(batch_of(NEW_ONLY, [[13.0, 12.0, 29.0, 28.0]], [1]), seen)
    assert out.labels[0][out.valid[0]].tolist() == [1]


def test_where_everything_is_labelled_nothing_changes():
    seen = maps_that_see([(0, (2, 2), 0, 0.9), (1, (2, 2), 0, 0.9)], 2, 2)
    batch = batch_of(None, [[40.0, 0.0, 60.0, 20.0]], [1])
    assert pseudo()(batch, seen) is batch
    mixed = torch.tensor([[True, True, True], [False, True, False]])
    out = pseudo()(batch_of(mixed, [[40.0, 0.0, 60.0, 20.0]], [1]), seen)
    assert out.valid.sum(dim=1).tolist() == [1, 1]
    assert out.labels[1][out.valid[1]].tolist() == [2]


def test_images_on_which_nobody_sees_anything():
    out = pseudo()(batch_of(NEW_ONLY, [], []), maps_that_see([], 2, 2))
    assert out.boxes.shape == (2, 0, 4)
    assert not out.valid.any()


def test_boxes_end_at_the_edge_of_the_image():
    out = pseudo()(batch_of(NEW_ONLY, [], []), maps_that_see([(0, (0, 0), 0, 0.9)], 2, 2))
    assert out.boxes[0][0].tolist() == [0, 0, 12, 12]
