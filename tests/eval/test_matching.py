"""Greedy matching against a definition in plain loops, and image pairs that do not fit."""

import numpy as np
import pytest
from parity.detection_sets import random_set

from eval.matching import best_first, class_overlaps, match_greedily, pair_up


def match_slowly(overlaps, min_iou):
    """Row after row: the free column with the largest overlap, the first of equal ones, if it is large enough."""
    free, matched = list(range(len(overlaps[0]) if len(overlaps) else 0)), []
    for row in overlaps:
        best = None
        for column in free:
            if best is None or row[column] > row[best]:
                best = column
        if best is None or row[best] < min_iou or row[best] == 0:
            matched.append(-1)
        else:
            matched.append(best)
            free.remove(best)
    return matched


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("min_iou", [0.0, 0.3, 0.5, 0.75])
def test_equals_the_loops(min_iou, dtype):
    """Overlaps on a coarse grid, so that many are equal to each other and to the threshold."""
    random = np.random.default_rng(0)
    num_matched = 0
    for _ in range(200):
        shape = random.integers(0, 9, 2)
        overlaps = (random.integers(0, 9, shape) / 8 * (random.random(shape) < 0.7)).astype(dtype)
        found = match_greedily(overlaps, min_iou).tolist()
        assert found == match_slowly(overlaps.tolist(), min_iou)
        num_matched += sum(truth >= 0 for truth in found)
    assert num_matched > 200


def test_each_object_once_and_the_second_detection_takes_what_is_left():
    overlaps = np.array([[0.85, 0.8], [0.98, 0.66], [0.97, 0.1]], dtype=np.float32)
    assert match_greedily(overlaps, 0.5).tolist() == [0, 1, -1]
    assert match_greedily(overlaps, 0.7).tolist() == [0, -1, -1]
    assert match_greedily(overlaps, 0.85).tolist() == [0, -1, -1], ".85 in single precision is .85, not less"
    assert match_greedily(overlaps, 0.9).tolist() == [-1, 0, -1]


def test_of_equal_overlaps_the_first_object_is_taken():
    assert match_greedily(np.array([[0.6, 0.6], [0.6, 0.6], [0.6, 0.6]]), 0.5).tolist() == [0, 1, -1]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_to_match(shape):
    assert match_greedily(np.zeros(shape), 0.5).tolist() == [-1] * shape[0]


def test_boxes_that_do_not_touch_never_match():
    assert match_greedily(np.zeros((2, 2)), 0.0).tolist() == [-1, -1]


def test_best_first_keeps_the_order_of_equal_scores(make_found):
    rows = [[0, 0, 1, 1, label, score] for label, score in enumerate([0.5, 0.25, 0.75, 0.5, 0.125])]
    found = best_first(make_found("a", rows), 0.25)
    assert (found.labels.tolist(), found.scores.tolist()) == ([2, 0, 3, 1], [0.75, 0.5, 0.5, 0.25])
    assert len(best_first(make_found("a"), 0.25).scores) == 0


def test_overlaps_of_other_classes_are_zero(make_truth, make_found):
    truth = make_truth("a", [[0, 0, 10, 10, 0, 0], [0, 0, 10, 20, 1, 0]])
    found = make_found("a", [[0, 0, 10, 10, 0, 0.9], [0, 0, 10, 10, 1, 0.8], [0, 0, 10, 10, 2, 0.7]])
    assert class_overlaps(found, truth).tolist() == [[1, 0], [0, 0.5], [0, 0]]
    assert class_overlaps(make_found("a"), truth).shape == (0, 2)
    assert class_overlaps(found, make_truth("a")).shape == (3, 0)


def test_images_are_paired_in_the_order_of_the_ground_truth():
    annotations, detections = random_set(3)
    pairs = pair_up(annotations, detections[::-1])
    assert [annotation.image_id for annotation, _ in pairs] == [annotation.image_id for annotation in annotations]
    assert all(annotation.image_id == found.image_id for annotation, found in pairs)


def test_a_long_list_of_images_is_cut(make_truth, make_found):
    with pytest.raises(ValueError, match=r"images without detections: a, b, .*, j and 2 more; images without ground"):
        pair_up([make_truth(name) for name in "abcdefghijkl"], [])
