"""Average precision against pycocotools, a VOC 2007 written out in loops, and answers known by hand."""

import contextlib
import io
from fractions import Fraction

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eval.metrics import ClassAp, assignment_ap, average_precision, coco_ap, voc07_ap

NAMES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def random_set(make_truth, make_found):
    """seed -> annotations and detections: difficult objects, duplicates, ties, empty images, wrong classes."""

    def make(seed):
        draw = np.random.default_rng(seed)
        truth_rows = [draw.integers(0, 12) if draw.random() > 0.2 else 0 for _ in range(draw.integers(1, 12))]
        annotations, detections = [], []
        for number, count in enumerate(truth_rows):
            low = draw.uniform(0, 300, (count, 2))
            boxes = np.concatenate([low, low + draw.uniform(10, 150, (count, 2))], axis=1)
            labels = draw.integers(0, 3, count)  # class 3 is never true
            truth = np.column_stack([boxes, labels, draw.random(count) < 0.25])
            annotations.append(make_truth(f"image{number}", truth))
            detections.append(make_found(f"image{number}", _guess(draw, boxes, labels, crowded=seed % 5 == 0)))
        return annotations, detections

    return make


def _guess(draw, boxes, labels, crowded):
    if draw.random() < 0.15:
        return []
    copies = draw.integers(0, 30 if crowded else 4, len(boxes))  # 30: more than 100 detections an image and class
    near, near_labels = np.repeat(boxes, copies, axis=0), np.repeat(labels, copies)
    near = near + draw.normal(0, 6, near.shape)
    far = draw.uniform(0, 300, (120 if crowded else 5, 2))
    far = np.concatenate([far, far + draw.uniform(5, 90, far.shape)], axis=1)
    rows = np.concatenate([near, far])
    rows[:, 2:] = np.maximum(rows[:, 2:], rows[:, :2] + 1)
    guessed = np.concatenate([near_labels, draw.integers(0, 4, len(far))])
    wrong = draw.random(len(guessed)) < 0.1
    guessed[wrong] = draw.integers(0, 4, int(wrong.sum()))
    scores = draw.random(len(rows))
    if draw.random() < 0.5:
        scores = scores.round(1)  # ties
    return np.column_stack([rows, guessed, scores])


def reference_coco(annotations, detections, num_classes):
    """map50, map50_95 and [(ap50, ap50_95)] by pycocotools; -1 where it has no figure."""

    def xywh(box):
        x0, y0, x1, y1 = (float(side) for side in box)
        return [x0, y0, x1 - x0, y1 - y0]

    truth, results = [], []
    for image, (annotation, found) in enumerate(zip(annotations, detections, strict=True)):
        for box, label, difficult in zip(annotation.boxes, annotation.labels, annotation.difficult, strict=True):
            row = {"id": len(truth) + 1, "image_id": image, "category_id": int(label), "bbox": xywh(box)}
            truth.append({**row, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": int(difficult)})
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
            results.append({"image_id": image, "category_id": int(label), "bbox": xywh(box), "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image, "width": 640, "height": 480} for image in range(len(annotations))],
            "categories": [{"id": label, "name": str(label)} for label in range(num_classes)],
            "annotations": truth,
        }
        coco.createIndex()
        if results:
            found = coco.loadRes(results)
        else:  # loadRes cannot take none
            found = COCO()
            found.dataset = {**coco.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # all areas, 100 detections
    per_class = [(precision[0, :, label].mean(), precision[:, :, label].mean()) for label in range(num_classes)]
    return evaluation.stats[1], evaluation.stats[0], per_class


@pytest.mark.parametrize("seed", range(20))
def test_coco_equals_pycocotools(random_set, seed):
    annotations, detections = random_set(seed)
    result = coco_ap(annotations, detections, NAMES)
    map50, map50_95, per_class = reference_coco(annotations, detections, len(NAMES))
    assert (-1 if result.map50 is None else result.map50) == pytest.approx(map50, abs=1e-9)
    assert (-1 if result.map50_95 is None else result.map50_95) == pytest.approx(map50_95, abs=1e-9)
    for name, expected in zip(NAMES, per_class, strict=True):
        mine = [-1 if value is None else value for value in result.per_class[name][:2]]
        assert mine == pytest.approx(expected, abs=1e-9)


def test_the_random_sets_are_worth_their_name(random_set):
    sets = [random_set(seed) for seed in range(20)]
    figures = [coco_ap(*one, NAMES).map50 for one in sets]
    assert len({round(value, 6) for value in figures if value is not None}) > 15
    assert any(one.difficult.any() for annotations, _ in sets for one in annotations)
    assert any(len(one.labels) == 0 for annotations, _ in sets for one in annotations)
    assert any(len(one.scores) == 0 for _, detections in sets for one in detections)
    assert any(one.labels.bincount().max() > 100 for _, detections in sets for one in detections if len(one.labels))
    assert any(len(set(one.scores.tolist())) < len(one.scores) for _, detections in sets for one in detections)


@pytest.mark.parametrize("style", ["coco", "voc07", "assignment"])
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


@pytest.mark.parametrize("measure", [coco_ap, voc07_ap, assignment_ap])
def test_other_images_than_asked_for_are_an_error(make_truth, make_found, measure):
    truth = [make_truth("a"), make_truth("b")]
    with pytest.raises(ValueError, match="never evaluated: b"):
        measure(truth, [make_found("a")], NAMES)
    with pytest.raises(ValueError, match="evaluated unasked: c"):
        measure(truth, [make_found("a"), make_found("b"), make_found("c")], NAMES)
    with pytest.raises(ValueError, match="images twice: a in the detections"):
        measure(truth, [make_found("a"), make_found("a"), make_found("b")], NAMES)


def test_order_of_the_detections_list_does_not_matter(random_set):
    annotations, detections = random_set(3)
    assert coco_ap(annotations, detections[::-1], NAMES) == coco_ap(annotations, detections, NAMES)


def slow_voc07(annotations, detections, label, threshold):
    """VOC 2007's AP in loops and fractions; None without ground truth."""

    def iou(a, b):
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        if width <= 0 or height <= 0:
            return 0.0
        return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)

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
def test_voc07_equals_the_textbook(random_set, seed):
    annotations, detections = random_set(seed)
    result = voc07_ap(annotations, detections, NAMES)
    expected = [slow_voc07(annotations, detections, label, 0.5) for label in range(len(NAMES))]
    assert [one.ap50 for one in result.per_class.values()] == [
        None if value is None else pytest.approx(value, abs=1e-12) for value in expected
    ]
    present = [value for value in expected if value is not None]
    if present:
        assert result.map50 == pytest.approx(np.mean(present), abs=1e-12)
        levels = [round(0.5 + 0.05 * step, 2) for step in range(10)]
        for label, name in enumerate(NAMES[:2]):
            if expected[label] is not None:
                every = [slow_voc07(annotations, detections, label, level) for level in levels]
                assert result.per_class[name].ap50_95 == pytest.approx(np.mean(every), abs=1e-12)


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
