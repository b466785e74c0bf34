"""Average precision against definitions written out in loops, and answers known by hand.

That COCO's equals pycocotools' and Ultralytics' its own is in tests/parity.
"""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from parity.detection_sets import NAMES, SPECIAL_SETS, random_set

from eval.metrics import (
    ClassAp,
    assignment_ap,
    average_precision,
    coco_ap,
    right_at_each_threshold,
    ultralytics_ap,
    voc07_ap,
)


def test_the_random_sets_are_worth_their_name():
    sets = [random_set(seed) for seed in range(20)]
    figures = [coco_ap(*one, NAMES).map50 for one in sets]
    assert len({round(value, 6) for value in figures if value is not None}) > 15
    assert any(one.difficult.any() for annotations, _ in sets for one in annotations)
    assert any(len(one.labels) == 0 for annotations, _ in sets for one in annotations)
    assert any(len(one.scores) == 0 for _, detections in sets for one in detections)
    assert any(one.labels.bincount().max() > 100 for _, detections in sets for one in detections if len(one.labels))
    assert any(one.has_ties for one in sets)
    assert not all(one.has_ties for one in sets)


@pytest.mark.parametrize("style", ["coco", "voc07", "ultralytics", "assignment"])
def test_no_predictions_is_zero_and_no_truth_is_none(make_truth, make_found, style):
    truth = [make_truth("a", [[0, 0, 10, 10, 1, 0]]), make_truth("b")]
    nothing = [make_found("a"), make_found("b")]
    result = average_precision(style, truth, nothing, NAMES)
    assert result.per_class["bee"] == ClassAp(0.0, 0.0, 1)
    assert result.per_class["ant"] == ClassAp(None, None, 0)
    assert (result.map50, result.map50_95) == (0.0, 0.0)  # the classes without truth are in no mean

    guesses = [make_found("a", [[0, 0, 10, 10, 1, 0.9]]), make_found("b")]
    empty = average_precision(style, [make_truth("a"), make_truth("b")], guesses, NAMES)
    assert (empty.map50, empty.map50_95) == (None, None)
    assert average_precision(style, [], [], NAMES).map50 is None


def test_coco_ignores_difficult_objects(make_truth, make_found):
    truth = [make_truth("a", [[0, 0, 100, 100, 0, 0], [200, 200, 300, 300, 0, 1], [0, 0, 50, 50, 1, 1]])]
    found = [make_found("a", [[200, 200, 300, 300, 0, 0.9], [210, 210, 290, 290, 0, 0.8], [0, 0, 100, 100, 0, 0.7]])]
    result = coco_ap(truth, found, NAMES)
    assert result.per_class["ant"] == ClassAp(1.0, pytest.approx(1.0), 1)
    assert result.per_class["bee"] == ClassAp(None, None, 0)


@pytest.mark.parametrize("measure", [coco_ap, voc07_ap, ultralytics_ap, assignment_ap])
def test_other_images_than_asked_for_are_an_error(make_truth, make_found, measure):
    truth = [make_truth("a"), make_truth("b")]
    with pytest.raises(ValueError, match="images without detections: b"):
        measure(truth, [make_found("a")], NAMES)
    with pytest.raises(ValueError, match="images without ground truth: c"):
        measure(truth, [make_found("a"), make_found("b"), make_found("c")], NAMES)
    with pytest.raises(ValueError, match="images that occur twice: a in the detections"):
        measure(truth, [make_found("a"), make_found("a"), make_found("b")], NAMES)


def test_order_of_the_detections_list_does_not_matter():
    annotations, detections = random_set(3)
    assert coco_ap(annotations, detections[::-1], NAMES) == coco_ap(annotations, detections, NAMES)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def slow_voc07(annotations, detections, label, threshold):
    """VOC 2007's AP in loops and fractions; None without ground truth."""
    truths, guesses, count = {}, [], 0
    for annotation, found in zip(annotations, detections, strict=True):
        rows = zip(annotation.boxes.tolist(), annotation.labels, annotation.difficult, strict=True)
        truths[annotation.image_id] = [[box, bool(hard), False] for box, one, hard in rows if one == label]
        count += sum(1 for _, hard, _ in truths[annotation.image_id] if not hard)
        for box, score, one in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
            if one == label:
                guesses.append((score, found.image_id, box))
    if count == 0:
        return None
    curve, hits, misses = [], 0, 0
    for _, image_id, box in sorted(guesses, key=lambda guess: -guess[0]):
        best = max(truths[image_id], key=lambda truth: iou(box, truth[0]), default=None)
        if best is not None and iou(box, best[0]) >= threshold:
            if best[1]:
                continue
            hits, misses = (hits, misses + 1) if best[2] else (hits + 1, misses)
            best[2] = True
        else:
            misses += 1
        curve.append((Fraction(hits, count), Fraction(hits, hits + misses)))
    levels = [Fraction(tenth, 10) for tenth in range(11)]
    return float(sum(max((p for r, p in curve if r >= level), default=Fraction(0)) for level in levels) / 11)


@pytest.mark.parametrize("seed", range(12))
def test_voc07_equals_the_textbook(seed):
    annotations, detections = random_set(seed)
    result = voc07_ap(annotations, detections, NAMES)
    expected = [slow_voc07(annotations, detections, label, 0.5) for label in range(len(NAMES))]
    assert [one.ap50 for one in result.per_class.values()] == [
        None if value is None else pytest.approx(value, abs=1e-12) for value in expected
    ]
    present = [label for label in range(len(NAMES)) if expected[label] is not None]
    assert present
    assert result.map50 == pytest.approx(np.mean([expected[label] for label in present]), abs=1e-12)
    levels = [round(0.5 + 0.05 * step, 2) for step in range(10)]
    for label in present[:2]:
        every = [slow_voc07(annotations, detections, label, level) for level in levels]
        assert result.per_class[NAMES[label]].ap50_95 == pytest.approx(np.mean(every), abs=1e-12)


def test_voc07_reaches_three_of_ten(make_truth, make_found):
    boxes = [[50.0 * i, 0, 50.0 * i + 40, 40] for i in range(10)]
    truth = [make_truth("a", [[*box, 0, 0] for box in boxes])]
    found = [make_found("a", [[*box, 0, 0.9] for box in boxes[:3]])]
    # recall .3 at precision 1 reaches the levels 0, .1, .2 and .3
    assert voc07_ap(truth, found, NAMES).map50 == pytest.approx(4 / 11)


def test_voc07_calls_the_second_on_a_truth_wrong(make_truth, make_found):
    truth = [make_truth("a", [[0, 0, 100, 100, 0, 0], [200, 0, 300, 100, 0, 0]])]
    twice = [make_found("a", [[0, 0, 100, 100, 0, 0.9], [0, 0, 100, 98, 0, 0.8], [200, 0, 300, 100, 0, 0.7]])]
    assert voc07_ap(truth, twice, NAMES).map50 == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def slow_ultralytics(annotations, detections, label, threshold):
    """Ultralytics' AP in loops; None without ground truth. Sets where scores are shared are not for this one."""
    count = sum(int((one.labels == label).sum()) for one in annotations)
    guesses = []
    for annotation, found in zip(annotations, detections, strict=True):
        rows = zip(annotation.boxes.tolist(), annotation.labels, strict=True)
        free = [box for box, one in rows if one == label]
        rows = zip(found.scores.tolist(), found.boxes.tolist(), found.labels.tolist(), strict=True)
        for score, box, one in sorted(rows, key=lambda row: -row[0]):
            if one == label:
                best = max(free, key=lambda truth, box=box: iou(box, truth), default=None)
                is_right = best is not None and iou(box, best) >= threshold
                if is_right:
                    free.remove(best)
                guesses.append((score, is_right))
    if count == 0:
        return None
    curve, hits = [(0.0, 1.0)], 0
    for number, (_, is_right) in enumerate(sorted(guesses, key=lambda guess: -guess[0]), start=1):
        hits += is_right
        curve.append((hits / count, hits / number))
    best_later = [(recall, max(p for _, p in curve[place:])) for place, (recall, _) in enumerate(curve)]
    if not guesses:
        return 0.0
    heights = [height_at(best_later, percent / 100) for percent in range(101)]
    return sum((low + high) / 2 / 100 for low, high in pairwise(heights))


def height_at(curve, recall):
    """On straight lines between the points, the last of those that share a recall; 0 from the highest recall on."""
    if recall >= curve[-1][0] - 1e-12:
        return 0.0
    left = max(place for place, (reached, _) in enumerate(curve) if reached <= recall + 1e-12)
    (x0, y0), (x1, y1) = curve[left], curve[left + 1]
    return y0 + (y1 - y0) * (recall - x0) / (x1 - x0)


@pytest.mark.parametrize("seed", range(24))
def test_ultralytics_equals_its_definition_in_loops(seed):
    case = random_set(seed)
    if case.has_ties:
        case = case.with_scores_apart()
    result = ultralytics_ap(*case, NAMES)
    for label, name in enumerate(NAMES):
        expected = [slow_ultralytics(*case, label, 0.5 + 0.05 * step) for step in range(10)]
        found = result.per_class[name]
        if expected[0] is None:
            assert found == ClassAp(None, None, 0)
        else:
            assert found.ap50 == pytest.approx(expected[0], abs=1e-9)
            assert found.ap50_95 == pytest.approx(np.mean(expected), abs=1e-9)


def test_ultralytics_gives_a_flawless_detector_995(make_truth, make_found):
    """The last of its 101 recalls finds the curve on the ground."""
    boxes = [[50.0 * i, 0, 50.0 * i + 40, 40] for i in range(7)]
    truth = [make_truth("a", [[*box, 0, 0] for box in boxes])]
    found = [make_found("a", [[*box, 0, 0.9 - 0.1 * i] for i, box in enumerate(boxes)])]
    assert ultralytics_ap(truth, found, NAMES).per_class["ant"] == ClassAp(
        pytest.approx(0.995), pytest.approx(0.995), 7
    )


def test_ultralytics_knows_no_difficult_objects(make_truth, make_found):
    truth = [make_truth("a", [[0, 0, 100, 100, 0, 0], [200, 200, 300, 300, 0, 1]])]
    found = [make_found("a", [[0, 0, 100, 100, 0, 0.9]])]
    # recalls 0 to .49 at precision 1, then the ground: 49 trapezoids and a half one
    assert ultralytics_ap(truth, found, NAMES).per_class["ant"] == ClassAp(
        pytest.approx(0.495), pytest.approx(0.495), 2
    )


def test_ultralytics_looks_at_every_detection(make_truth, make_found):
    wrong = [[300.0, 300, 310, 310, 0, 0.9]] * 150
    truth = [make_truth("a", [[0, 0, 100, 100, 0, 0]])]
    found = [make_found("a", [*wrong, [0, 0, 100, 100, 0, 0.1]])]
    assert ultralytics_ap(truth, found, NAMES).map50 > 0
    assert coco_ap(truth, found, NAMES).map50 == 0


def test_ultralytics_pairs_by_score_and_the_second_takes_what_is_left():
    overlaps = np.array([[0.85, 0.8], [0.98, 0.66], [0.97, 0.1]], dtype=np.float32)
    right = right_at_each_threshold(overlaps)
    assert right.sum(axis=0).tolist() == [2, 2, 2, 2, 1, 1, 1, 1, 1, 1]
    assert right[0].tolist() == [True] * 8 + [False] * 2  # .85 in single precision is .85, not less
    assert right[1].tolist() == [True] * 4 + [False] * 4 + [True] * 2
    assert not right[2].any()


@pytest.mark.parametrize("name", SPECIAL_SETS)
def test_ultralytics_stays_between_nothing_and_995(name):
    result = ultralytics_ap(*SPECIAL_SETS[name], NAMES)
    values = [value for one in result.per_class.values() for value in one[:2] if value is not None]
    assert all(0 <= value <= 0.995 + 1e-9 for value in values)


class TestAssignment:
    def test_duplicates_count_as_hits(self, make_truth, make_found):
        truth = [make_truth("a", [[0, 0, 100, 100, 0, 0]])]
        # each overlaps the truth by .6, and the other by .2 only, so suppression leaves both
        found = [make_found("a", [[0, 0, 100, 60, 0, 0.9], [0, 40, 100, 100, 0, 0.8]])]
        assert assignment_ap(truth, found, NAMES).map50 == pytest.approx(2.0)
        assert voc07_ap(truth, found, NAMES).map50 == pytest.approx(1.0)

    def test_nothing_is_sorted_over_images(self, make_truth, make_found):
        truth = [make_truth("a"), make_truth("b", [[0, 0, 100, 100, 0, 0]])]
        found = [make_found("a", [[0, 0, 50, 50, 0, 0.3]]), make_found("b", [[0, 0, 100, 100, 0, 0.9]])]
        # the miss comes first: precision 1, 0, 1/2 at recall 0, 0, 1
        assert assignment_ap(truth, found, NAMES).map50 == pytest.approx(0.25)
        assert assignment_ap(truth[::-1], found, NAMES).map50 == pytest.approx(1.0)

    def test_selection(self, make_truth, make_found):
        truth = [make_truth("a", [[0, 0, 100, 100, 0, 0]])]
        low = [make_found("a", [[0, 0, 100, 100, 0, 0.2]])]
        assert assignment_ap(truth, low, NAMES).map50 == 0.0
        other_class_on_top = [make_found("a", [[0, 0, 100, 100, 1, 0.9], [0, 0, 100, 100, 0, 0.8]])]
        assert assignment_ap(truth, other_class_on_top, NAMES).map50 == 0.0
        elsewhere = [[10.0 * i, 300, 10.0 * i + 5, 305, 0, 0.9] for i in range(50)]
        fifty_first = [make_found("a", [*elsewhere, [0, 0, 100, 100, 0, 0.8]])]
        assert assignment_ap(truth, fifty_first, NAMES).map50 == 0.0
        fiftieth = [make_found("a", [*elsewhere[1:], [0, 0, 100, 100, 0, 0.8]])]
        assert assignment_ap(truth, fiftieth, NAMES).map50 == pytest.approx(0.01)  # (0 + 1/50) / 2

    def test_min_iou_and_difficult(self, make_truth, make_found):
        truth = [make_truth("a", [[0, 0, 100, 100, 0, 0], [300, 300, 400, 400, 0, 1]])]
        found = [make_found("a", [[0, 0, 100, 60, 0, 0.9]])]
        assert assignment_ap(truth, found, NAMES).per_class["ant"].n_gt == 2
        assert assignment_ap(truth, found, NAMES, 0.6).map50 == pytest.approx(0.5)
        assert assignment_ap(truth, found, NAMES, 0.61).map50 == 0.0
        assert assignment_ap(truth, found, NAMES).map50_95 == pytest.approx(0.5 * 3 / 10)  # .5, .55 and .6
