"""Why an object was found or missed: against the loss itself, a slow count of points, and made-up cases."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from debug.explain import (
    FOUND,
    LOW_SCORE,
    NO_POINT,
    NOT_ASSIGNED,
    POOR_BOX,
    SUPPRESSED,
    WRONG_CLASS,
    ErrorAnalysis,
    Limits,
    Predictions,
    assign_points,
    explain,
    object_table,
    paint_explanation,
)
from dl.annotations import Annotation
from eval.painter import match_for_painting
from eval.predictor import Detections, Predictor
from model import YoloModel
from ops.anchors import make_anchors, points_inside
from ops.batch import Batch, Letterbox
from train.loss import DetectionLoss
from train.tal import TaskAlignedAssigner

NAMES, LIMITS = ("red", "blue"), Limits(paint_conf=0.2, min_iou=0.5)
SAME = Letterbox(1.0, 1.0, 0.0, 0.0, 64, 64)
CORNERS = [[8.0, 8, 40, 40], [30, 30, 62, 60], [0, 50, 3, 53]]


def annotation_of(boxes, labels) -> Annotation:
    boxes, labels = np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(labels, dtype=np.int64)
    path = Path("image.png")
    return Annotation("image", path, path, 64, 64, boxes, labels, np.zeros(len(labels), dtype=bool))


def batch_of(annotation: Annotation, letterbox: Letterbox = SAME) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 64, 64), generator=generator, dtype=torch.uint8)
    boxes = torch.from_numpy(letterbox.apply(annotation.boxes))[None]
    labels = torch.from_numpy(annotation.labels)[None]
    return Batch(images, boxes, labels, torch.ones_like(labels, dtype=torch.bool), ("image",), (letterbox,))


@pytest.fixture(scope="module")
def network() -> YoloModel:
    torch.manual_seed(0)
    return YoloModel("nano", 2).eval()


def explained(network, annotation, letterbox=SAME, limits=LIMITS):
    loss = DetectionLoss(2, 16)
    batch = batch_of(annotation, letterbox)
    predictor = Predictor(network, score_threshold=0.0)
    return explain(predictor, loss, batch, annotation, limits, NAMES), loss(network(batch.images.float() / 255), batch)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_objects_and_background_add_up_to_the_loss(network, count):
    annotation = annotation_of(CORNERS[:count], [0, 1, 0][:count])
    explanation, out = explained(network, annotation)
    every = [item.loss for item in explanation.objects] + [explanation.background]
    for name in ("box", "cls", "dfl"):
        assert sum(getattr(parts, name) for parts in every) == pytest.approx(out.parts[name].item(), rel=1e-5, abs=1e-6)
    assert explanation.total == pytest.approx(out.total.item(), rel=1e-5)
    assert len(explanation.objects) == count
    assert explanation.background.box == explanation.background.dfl == 0


def test_points_are_those_that_were_assigned_level_by_level(network):
    annotation = annotation_of(CORNERS, [0, 1, 0])
    explanation, _ = explained(network, annotation)
    batch, loss = batch_of(annotation), DetectionLoss(2, 16)
    given = assign_points(loss, network(batch.images.float() / 255), batch)
    fg, owners = given.assignment.fg_mask[0].tolist(), given.assignment.target_gt_idx[0].tolist()
    sizes = (64, 16, 4)  # maps of 8, 4 and 2 cells a side
    for number, item in enumerate(explanation.objects):
        expected, start = [], 0
        for size in sizes:
            mine = [fg[i] and owners[i] == number for i in range(start, start + size)]
            expected.append(sum(mine))
            start += size
        assert list(item.points) == expected
        assert int(given.count[0, number]) == sum(expected)
    assert explanation.objects[2].error == NO_POINT
    assert "no anchor point lies inside it" in explanation.objects[2].details
    inside = points_inside(explanation.assigned.anchors.points, batch.boxes[0]).sum(dim=-1).tolist()
    assert inside[2] == 0
    assert inside[0] == sum(
        8 < stride * (x + 0.5) < 40 and 8 < stride * (y + 0.5) < 40
        for stride in (8, 16, 32)
        for x in range(64 // stride)
        for y in range(64 // stride)
    )


def test_points_inside_are_those_that_the_assigner_can_choose():
    """With perfect boxes at every point and a large enough topk, it chooses exactly these."""
    points, _ = make_anchors(((8, 8), (4, 4), (2, 2)))
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(40, 2, generator=generator) * 50
    boxes = torch.cat((low, low + torch.rand(40, 2, generator=generator) * 20 + 0.1), dim=1)
    for min_side in (0.0, 16.0):
        assigner = TaskAlignedAssigner(topk=len(points), num_classes=1, min_side=min_side)
        ones = torch.ones(40, len(points), 1)
        repeated = boxes[:, None].expand(-1, len(points), -1)
        zeros = torch.zeros(40, 1, 1, dtype=torch.long)
        chosen = assigner(ones, repeated, points, zeros, boxes[:, None], torch.ones(40, 1, 1, dtype=torch.bool)).fg_mask
        assert torch.equal(points_inside(points, boxes, min_side), chosen)
    assert points_inside(points, torch.zeros(0, 4)).shape == (0, 84)


# Why objects were missed, from made-up boxes and scores


class Unused(nn.Module):
    """Predictors need a module; this module is never called."""

    def forward(self, images: Tensor) -> list[Tensor]:
        raise AssertionError


def analysis_of(truth, labels, boxes, scores, nms_iou=0.7, most=300) -> ErrorAnalysis:
    """Detections as the predictor selects them."""
    from ops.nms import select_detections

    boxes, scores = torch.tensor(boxes), torch.tensor(scores)
    found = select_detections(boxes, scores, 0.001, nms_iou, most)
    detections = Detections("image", *found)
    predictor = Predictor(Unused(), iou_threshold=nms_iou, max_detections=most)
    return ErrorAnalysis(predictor, Predictions(boxes, scores, detections), annotation_of(truth, labels), LIMITS, NAMES)


ONE, BESIDE = [10.0, 10, 30, 30], [40.0, 40, 60, 60]
HALF = [10.0, 10, 30, 18]  # overlaps .4 with ONE


@pytest.mark.parametrize(
    ("boxes", "scores", "error", "words"),
    [
        ([ONE], [[0.9, 0.1]], FOUND, "score 0.90, IoU 1.00"),
        ([ONE], [[0.1, 0.05]], LOW_SCORE, "score 0.10 of the boxes that fit; paintConf is 0.2"),
        ([HALF], [[0.05, 0.0]], LOW_SCORE, "score 0.05 near it, where the best box has IoU 0.40"),
        ([BESIDE], [[0.9, 0.0]], LOW_SCORE, "score 0.90 near it, where the best box has IoU 0.00"),
        ([ONE], [[0.1, 0.8]], WRONG_CLASS, "detected as blue with score 0.80; score of its own class: 0.10"),
        ([HALF], [[0.9, 0.0]], POOR_BOX, "has IoU 0.40 with it; minIou is 0.5"),
    ],
)
def test_one_object(boxes, scores, error, words):
    found = analysis_of([ONE], [0], boxes, scores).classify_error(0, num_inside=10, num_assigned=10)
    assert (found[0], words in found[1]) == (error, True), found


def test_an_object_without_points():
    blind = analysis_of([ONE], [0], [BESIDE], [[0.9, 0.0]])
    assert blind.classify_error(0, num_inside=0, num_assigned=0)[0] == NO_POINT
    error, details = blind.classify_error(0, num_inside=4, num_assigned=0)
    assert (error, "4 anchor points lie inside it" in details) == (NOT_ASSIGNED, True)
    assert analysis_of([ONE], [0], [ONE], [[0.9, 0.0]]).classify_error(0, num_inside=0, num_assigned=0)[0] == FOUND


def test_an_object_suppressed_by_the_detection_of_another_object():
    """Two of a class, nearly on top of each other: the second's box overlaps .83 with the detection of the first."""
    close = [10.0, 10, 30, 34]
    both = analysis_of([ONE, close], [0, 0], [ONE, close], [[0.9, 0.0], [0.8, 0.0]])
    assert both.classify_error(0, 10, 10)[0] == FOUND
    error, details = both.classify_error(1, 10, 10)
    assert error == SUPPRESSED
    assert "its box (score 0.80, IoU 1.00) has IoU 0.83 with the detection of object 1 (score 0.90)" in details
    apart = analysis_of([ONE, close], [0, 0], [ONE, close], [[0.9, 0.0], [0.8, 0.0]], nms_iou=0.9)
    assert [apart.classify_error(number, 10, 10)[0] for number in (0, 1)] == [FOUND, FOUND]


def test_a_detection_is_matched_to_one_object_only():
    """One box between two objects that fits both."""
    between = analysis_of([ONE, [10.0, 10, 30, 34]], [0, 0], [[10.0, 10, 30, 31]], [[0.9, 0.0]])
    assert between.classify_error(0, 10, 10)[0] == FOUND
    error, details = between.classify_error(1, 10, 10)
    assert (error, details) == (SUPPRESSED, "its box (score 0.90, IoU 0.88) is matched to object 1")


def test_an_object_beyond_the_number_of_detections():
    crowd = analysis_of([ONE, BESIDE], [0, 0], [ONE, BESIDE], [[0.9, 0.0], [0.8, 0.0]], most=1)
    error, details = crowd.classify_error(1, 10, 10)
    assert (error, "is not among the 1 best (maxDetections)" in details) == (SUPPRESSED, True)


def test_matches_equal_those_of_the_painter():
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        low = torch.rand(6, 2, generator=generator) * 30
        truth = torch.cat((low, low + 8 + torch.rand(6, 2, generator=generator) * 20), dim=1)
        boxes = truth[torch.randint(0, 6, (12,), generator=generator)] + torch.randn(12, 4, generator=generator)
        scores, labels = torch.rand(12, 2, generator=generator), torch.randint(0, 2, (6,), generator=generator)
        made = analysis_of(truth.tolist(), labels.tolist(), boxes.tolist(), scores.tolist())
        verdict = match_for_painting(
            annotation_of(truth.tolist(), labels.tolist()), made.shown, LIMITS.min_iou, LIMITS.paint_conf
        )
        assert [owner >= 0 for owner in made.owner] == verdict.is_right.tolist()
        assert sorted(owner for owner in made.owner if owner >= 0) == np.flatnonzero(verdict.is_found).tolist()
        assert len(made.wrong().scores) == int((~verdict.is_right).sum())


# What is shown


def test_the_table_has_a_row_for_each_object_and_adds_up(network):
    explanation, out = explained(network, annotation_of(CORNERS, [0, 1, 0]))
    lines = object_table(explanation, NAMES, (8, 16, 32)).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["object", "1 red", "2 blue", "3 red", "background", "all"]
    assert f"{out.parts['cls'].item():.3f}" in lines[-1] and lines[-1].endswith("100.0 %")
    assert "no anchor point: no anchor point lies inside it" in lines[3]
    shares = [float(line.split(" %")[0].split()[-1]) for line in lines[1:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    empty = object_table(explained(network, annotation_of([], []))[0], NAMES, (8, 16, 32)).splitlines()
    assert [line.split()[0] for line in empty] == ["object", "background", "all"]


def test_the_picture_shows_points_where_they_are_on_the_image(network):
    """A letterbox that doubles and shifts: 24 in the network input is 8 on the image."""
    letterbox = Letterbox(2.0, 2.0, 8.0, 0.0, 32, 24)
    annotation = replace(annotation_of([[4.0, 4, 20, 24]], [0]), height=32, width=24)
    explanation, _ = explained(network, annotation, letterbox)
    assert sum(explanation.objects[0].points) > 0
    image = np.zeros((32, 24, 3), dtype=np.uint8)
    painted = paint_explanation(image, explanation, annotation, NAMES)
    scale = round(640 / 32)
    assert painted.shape == (32 * scale, 24 * scale, 3)
    points, strides = explanation.assigned.anchors
    mine = explanation.assigned.owner[0] == 0
    for (x, y), stride in zip(points[mine].tolist(), strides[mine].tolist(), strict=True):
        column, row = (x - 8) / 2 * scale, y / 2 * scale
        around = painted[round(row) - 1 : round(row) + 2, round(column) - 1 : round(column) + 2]
        assert around.any(), (x, y, stride)
    assert not image.any(), "the image itself stays as it is"
