"""Explains one image: for every object its anchor points, its share of the loss, and why it was found or missed.

Legend: A anchor points, C classes, G objects, K detections. The network is in eval mode, as for detection.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from debug.assignment import PointAssignment, assign_points
from debug.explain.error_analysis import FOUND, ErrorAnalysis, Limits, Predictions
from dl.annotations import Annotation
from eval.label_layout import drawable_names
from eval.painter import GREEN, PURPLE, YELLOW, MarkedObject, paint_objects
from eval.predictor import Detections, Predictor
from ops.anchors import Anchors, anchors_of, decode_boxes, flatten_maps, points_inside
from ops.batch import Batch, Letterbox, network_input
from ops.probe import listening
from ops.text import align_columns
from train.loss import DetectionLoss


class LossParts(NamedTuple):
    """A share of the parts of the loss, each with its gain."""

    box: float
    cls: float
    dfl: float

    @property
    def total(self) -> float:
        return sum(self)


class ExplainedObject(NamedTuple):
    """One object of the annotation."""

    label: int
    size: tuple[float, float]  # width and height in pixels of the image
    points: tuple[int, ...]  # anchor points assigned to it, on each map
    metric: float  # the best alignment metric of these, 0 without any
    loss: LossParts
    error: str  # FOUND, or why it was missed
    details: str  # about the error


class Explanation(NamedTuple):
    """All objects in the order of the annotation, the loss of the background, and the detections of no object."""

    objects: tuple[ExplainedObject, ...]
    background: LossParts
    wrong: Detections  # with at least the score that is painted
    assigned: PointAssignment
    letterbox: Letterbox
    anchors: Anchors

    @property
    def total(self) -> float:
        """The loss of the image."""
        return self.background.total + sum(explained.loss.total for explained in self.objects)


@torch.no_grad()
def explain(
    predictor: Predictor,
    loss: DetectionLoss,
    batch: Batch,
    annotation: Annotation,
    limits: Limits,
    class_names: Sequence[str],
) -> Explanation:
    """`batch`: this one image, letterboxed, with all of its objects, possibly none."""
    letterbox = batch.letterboxes[0]
    assert letterbox is not None and len(batch) == 1
    (detections,) = predictor(batch)
    batch = batch.to(predictor.device)
    raw_maps = predictor.model.eval()(network_input(batch.images))
    anchors = anchors_of(raw_maps, loss.strides)
    distributions, logits = flatten_maps(raw_maps, loss.reg_max)
    boxes = letterbox.undo(decode_boxes(distributions, *anchors)[0].cpu())
    assigned = assign_points(loss, raw_maps, batch)
    losses, background, metrics = _share_loss(loss, raw_maps, logits, batch, assigned)
    predictions = Predictions(boxes, logits[0].sigmoid().cpu(), detections)
    analysis = ErrorAnalysis(predictor, predictions, annotation, limits, class_names)
    num_inside = points_inside(anchors.points, batch.boxes[0], loss.assigner.min_side).sum(dim=-1).tolist()
    sides = (annotation.boxes[:, 2:] - annotation.boxes[:, :2]).tolist()
    objects = []
    for number, label in enumerate(annotation.labels.tolist()):
        strides = anchors.strides[assigned.owner[0] == number]
        points = tuple(int((strides == stride).sum()) for stride in loss.strides)
        error, details = analysis.classify_error(number, num_inside[number], sum(points))
        width, height = sides[number]
        objects.append(ExplainedObject(label, (width, height), points, metrics[number], losses[number], error, details))
    return Explanation(tuple(objects), background, analysis.wrong(), assigned, letterbox, anchors)


def object_table(explanation: Explanation, class_names: Sequence[str], strides: Sequence[int]) -> str:
    """A row for each object, one for the background and one for the sum; the share is that of the image's loss."""
    head = ["object", "pixels", "points", "/".join(map(str, strides)), "metric", "box", "cls", "dfl", "share"]
    total = explanation.total or 1.0

    def figures(parts: LossParts) -> list[str]:
        return [*(f"{value:.3f}" for value in parts), f"{100 * parts.total / total:.1f} %"]

    rows = [
        [
            f"{number} {class_names[explained.label]}",
            f"{explained.size[0]:.0f} x {explained.size[1]:.0f}",
            str(sum(explained.points)),
            "/".join(map(str, explained.points)),
            f"{explained.metric:.3f}",
            *figures(explained.loss),
        ]
        for number, explained in enumerate(explanation.objects, start=1)
    ]
    losses = [explained.loss for explained in explanation.objects] + [explanation.background]
    rows.append(["background", "", "", "", "", *figures(explanation.background)])
    rows.append(["all", "", "", "", "", *figures(LossParts(*map(sum, zip(*losses, strict=True))))])
    reasons = ["", *(f"{explained.error}: {explained.details}" for explained in explanation.objects), "", ""]
    lines = align_columns([head, *rows])
    return "\n".join(f"{line}  {reason}".rstrip() for line, reason in zip(lines, reasons, strict=True))


def paint_explanation(
    image: np.ndarray, explanation: Explanation, annotation: Annotation, class_names: Sequence[str]
) -> np.ndarray:
    """Objects with number and anchor points: found green, missed purple with the reason; wrong detections yellow."""
    names, marked = drawable_names(tuple(class_names)), []
    wrong = explanation.wrong
    no_points = np.zeros((0, 2), dtype=np.float32)
    for box, score, label in zip(wrong.boxes.tolist(), wrong.scores.tolist(), wrong.labels.tolist(), strict=True):
        marked.append(MarkedObject(tuple(box), f"{names[label]} {score:.2f}", YELLOW, no_points, no_points[:, 0]))
    letterbox, anchors = explanation.letterbox, explanation.anchors
    points = anchors.points.cpu()
    # From the network input to the image; anchor points in the grey border get places outside of the image.
    points = points - points.new_tensor([letterbox.offset_x, letterbox.offset_y])
    points = (points / points.new_tensor([letterbox.scale_x, letterbox.scale_y])).numpy()
    strides = (anchors.strides.cpu() / letterbox.scale_x).numpy()
    owner = explanation.assigned.owner[0].cpu().numpy()
    for number, (explained, box) in enumerate(zip(explanation.objects, annotation.boxes.tolist(), strict=True)):
        is_own, is_found = owner == number, explained.error == FOUND
        text = f"{number + 1} {names[explained.label]}" + ("" if is_found else f" {explained.error}")
        colour = GREEN if is_found else PURPLE
        marked.append(MarkedObject(tuple(box), text, colour, points[is_own], strides[is_own]))
    num_found = sum(explained.error == FOUND for explained in explanation.objects)
    legend = [
        (GREEN, f"found {num_found}"),
        (PURPLE, f"missed {len(explanation.objects) - num_found}"),
        (YELLOW, f"wrong {len(wrong.scores)}"),
    ]
    return paint_objects(image, marked, legend)


def _share_loss(
    loss: DetectionLoss, raw_maps: Sequence[Tensor], logits: Tensor, batch: Batch, assigned: PointAssignment
) -> tuple[list[LossParts], LossParts, list[float]]:
    """The loss of each object, that of the background, and the best alignment metric of each object.

    The values come from the probes inside the loss. The class loss of an anchor point, for all classes, belongs to the
    object that the point is assigned to.
    """
    probes: dict[str, Tensor] = {}
    with listening(lambda name, value: probes.__setitem__(name, value)):
        loss(raw_maps, batch)
    target = assigned.assignment.target_scores[0]
    weight = target.sum(dim=-1)
    cls = F.binary_cross_entropy_with_logits(logits[0], target, reduction="none").sum(dim=-1)
    columns = torch.stack(
        (
            (1 - probes["loss.ciou"][0]) * weight * loss.box_gain,
            cls * loss.cls_gain,
            probes["loss.dfl"][0] * weight * loss.dfl_gain,
        ),
        dim=-1,
    )  # (A, 3)
    columns, owner = (columns / probes["loss.normaliser"]).double(), assigned.owner[0]
    numbers = range(batch.labels.shape[1])
    losses = [LossParts(*columns[owner == number].sum(dim=0).tolist()) for number in numbers]
    background = LossParts(*columns[owner < 0].sum(dim=0).tolist())
    metrics = [float((probes["tal.metric"][0, number] * (owner == number)).max()) for number in numbers]
    return losses, background, metrics
