"""ops.nms against a twin of nested loops, and the cases a fast version gets wrong."""

import pytest
import torch

from ops.nms import select_detections


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0.0) * max(height, 0.0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return inter / (area - inter) if area > inter else 0.0


def slow_select(boxes, scores, score_threshold, iou_threshold, max_detections, class_agnostic):
    """Rows (box, score, label): every class a candidate, the best first, kept unless a kept one is too close."""
    candidates = [
        (scores[point][label], point, label)
        for point in range(len(boxes))
        for label in range(len(scores[0]))
        if scores[point][label] > score_threshold
    ]
    kept = []
    for score, point, label in sorted(candidates, key=lambda one: -one[0]):
        rivals = [other for other in kept if class_agnostic or other[2] == label]
        if all(iou(boxes[point], boxes[other[1]]) <= iou_threshold for other in rivals):
            kept.append((score, point, label))
    return [(boxes[point], score, label) for score, point, label in kept[:max_detections]]


def random_scene(seed, points=60, classes=4):
    draw = torch.Generator().manual_seed(seed)
    low = torch.rand(points, 2, generator=draw) * 80 - 20  # some left of and above the image
    boxes = torch.cat((low, low + 5 + 40 * torch.rand(points, 2, generator=draw)), dim=1)
    scores = torch.rand(points, classes, generator=draw)
    return boxes, scores


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_equals_the_slow_twin(seed, class_agnostic):
    boxes, scores = random_scene(seed)
    found = select_detections(boxes, scores, 0.4, 0.5, 40, class_agnostic=class_agnostic)
    expected = slow_select(boxes.double().tolist(), scores.tolist(), 0.4, 0.5, 40, class_agnostic)
    assert len(expected) > (5 if class_agnostic else 20)  # a scene in which nothing is left proves nothing
    assert found.labels.tolist() == [label for _, _, label in expected]
    assert found.scores.tolist() == [score for _, score, _ in expected]
    assert torch.equal(found.boxes.double(), torch.tensor([box for box, _, _ in expected], dtype=torch.float64))


def test_one_box_may_be_two_classes_unless_agnostic():
    boxes, scores = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.9, 0.8, 0.1]])
    assert select_detections(boxes, scores, 0.5, 0.7, 10).labels.tolist() == [0, 1]
    assert select_detections(boxes, scores, 0.5, 0.7, 10, class_agnostic=True).labels.tolist() == [0]


def test_classes_do_not_meet_through_negative_coordinates():
    # moved right and down by the largest coordinate + 1 = 21, the second box would lie exactly on the first
    boxes = torch.tensor([[10.0, 10, 20, 20], [-11.0, -11, -1, -1]])
    scores = torch.tensor([[0.9, 0.0], [0.0, 0.8]])
    assert select_detections(boxes, scores, 0.5, 0.5, 10).labels.tolist() == [0, 1]


def test_boxes_far_out_and_many_classes_keep_their_precision():
    # an overlap of .6 on boxes of five pixels, in class 79 of an image 8000 pixels wide
    boxes = torch.tensor([[7990.0, 7990, 7995, 7995], [7990.0, 7990, 7995, 7993.01]])
    scores = torch.zeros(2, 80)
    scores[:, 79] = torch.tensor([0.9, 0.8])
    assert len(select_detections(boxes, scores, 0.5, 0.601, 10).scores) == 1
    assert len(select_detections(boxes, scores, 0.5, 0.603, 10).scores) == 2


@pytest.mark.parametrize("points", [0, 5])
def test_nothing_found_has_shapes(points):
    found = select_detections(torch.zeros(points, 4), torch.zeros(points, 3), 0.1, 0.5, 10)
    assert [tuple(part.shape) for part in found] == [(0, 4), (0,), (0,)]
    assert found.labels.dtype == torch.int64


def test_limits_keep_the_best():
    boxes = torch.arange(20.0)[:, None] * 100 + torch.tensor([0.0, 0, 10, 10])
    scores = torch.linspace(0.1, 0.9, 20)[:, None]
    best = scores[:, 0].flip(0)
    assert torch.equal(select_detections(boxes, scores, 0.0, 0.5, 7).scores, best[:7])
    assert torch.equal(select_detections(boxes, scores, 0.0, 0.5, 300, max_candidates=5).scores, best[:5])


def test_threshold_is_exclusive():
    boxes, scores = torch.tensor([[0.0, 0, 1, 1], [5.0, 5, 6, 6]]), torch.tensor([[0.5], [0.5001]])
    assert select_detections(boxes, scores, 0.5, 0.5, 10).scores.tolist() == pytest.approx([0.5001])
