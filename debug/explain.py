"""Explains one image: for every object its anchor points, its share of the loss, and why it was found or missed.

Legend: B images, M most boxes on one image, A anchor points, C classes, G objects, K detections. The network is in eval
mode, as for detection.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dl.annotations import Annotation
from eval.label_layout import drawable_names
from eval.matching import best_first, class_overlaps, match_greedily
from eval.painter import GREEN, PURPLE, YELLOW, MarkedObject, paint_objects
from eval.predictor import Detections, Predictor
from ops.anchors import Anchors, anchors_of, decode_boxes, flatten_maps, points_inside
from ops.batch import Batch, Letterbox, network_input
from ops.boxes import pairwise_iou
from ops.probe import listening
from ops.text import align_columns
from train.loss import DetectionLoss
from train.tal import Assignment

FOUND, NO_POINT, NOT_ASSIGNED, LOW_SCORE, WRONG_CLASS, POOR_BOX, SUPPRESSED = (
    "found", "no anchor point", "not assigned", "low score", "wrong class", "poor box", "suppressed",
)  # fmt: skip
_NEAR_IOU = 0.1  # with an object, from which a box counts as near it
_SAME_IOU = 0.9999  # from which two boxes are the same


class PointAssignment(NamedTuple):
    """The assignment of a batch, from the side of the ground-truth boxes."""

    assignment: Assignment
    owner: Int64[Tensor, "B A"]  # index of the box that the anchor point is assigned to, -1 for background
    count: Int64[Tensor, "B M"]  # anchor points of each box, 0 for padding
    anchors: Anchors


def assign_points(loss: DetectionLoss, raw_maps: Sequence[Tensor], batch: Batch) -> PointAssignment:
    """Run the loss's assigner on these raw maps. Without boxes: count (B, 0), every owner -1."""
    anchors = anchors_of(raw_maps, loss.strides)
    distributions, logits = flatten_maps([raw.detach() for raw in raw_maps], loss.reg_max)
    assignment = loss.assigner(
        logits.sigmoid(),
        decode_boxes(distributions, *anchors),
        anchors.points,
        batch.labels[..., None],
        batch.boxes,
        batch.valid[..., None],
    )
    owner = assignment.target_gt_idx.masked_fill(~assignment.fg_mask, -1)
    numbers = torch.arange(batch.labels.shape[1], device=owner.device)
    return PointAssignment(assignment, owner, (owner[:, None] == numbers[:, None]).sum(dim=-1), anchors)


class Limits(NamedTuple):
    """The score from which a detection counts, and the IoU from which it matches an object."""

    paint_conf: float
    min_iou: float


class Predictions(NamedTuple):
    """What the network predicts at every anchor point, and what is left of it after non-maximum suppression."""

    boxes: Float[Tensor, "A 4"]
    scores: Float[Tensor, "A C"]
    detections: Detections


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
    assigned = assign_points(loss, raw_maps, batch)
    anchors = assigned.anchors
    distributions, logits = flatten_maps(raw_maps, loss.reg_max)
    boxes = letterbox.undo(decode_boxes(distributions, *anchors, loss.distances)[0].cpu())
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
    return Explanation(tuple(objects), background, analysis.wrong(), assigned, letterbox)


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
    letterbox, (points, strides) = explanation.letterbox, explanation.assigned.anchors
    # As boxes without width and height. Anchor points in the grey border get places outside of the image.
    points = letterbox.undo(points.cpu().repeat(1, 2), clip=False)[:, :2].numpy()
    strides = (strides.cpu() / letterbox.scale_x).numpy()
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
    target, owner = assigned.assignment.target_scores[0], assigned.owner[0]
    is_object, gains = owner >= 0, {part.name: part.weight for part in loss.parts}
    columns = torch.zeros(len(owner), 3, dtype=torch.float64)  # box, cls, dfl of each anchor point
    columns[:, 1] = F.binary_cross_entropy_with_logits(logits[0], target, reduction="none").sum(dim=-1) * gains["cls"]
    weight, num_objects = target.sum(dim=-1)[is_object], int(is_object.sum())
    columns[is_object, 0] = ((1 - probes["loss.ciou"][:num_objects]) * weight * gains["box"]).double()
    if "dfl" in gains:
        columns[is_object, 2] = (probes["loss.dfl"][:num_objects] * weight * gains["dfl"]).double()
    columns /= probes["loss.normaliser"]
    numbers = range(batch.labels.shape[1])
    losses = [LossParts(*columns[owner == number].sum(dim=0).tolist()) for number in numbers]
    background = LossParts(*columns[owner < 0].sum(dim=0).tolist())
    return losses, background, probes["tal.best_metric"][0].tolist() if numbers else []


class ErrorAnalysis:
    """Matches detections to objects as the painter does, and finds the reason why other objects were missed."""

    def __init__(
        self,
        predictor: Predictor,
        predictions: Predictions,
        annotation: Annotation,
        limits: Limits,
        class_names: Sequence[str],
    ):
        self.predictor, self.limits, self.class_names = predictor, limits, class_names
        self.boxes, self.scores, detections = predictions
        self.shown = best_first(detections, limits.paint_conf)
        self.labels, truths = annotation.labels.tolist(), torch.from_numpy(annotation.boxes).float()
        self.overlaps = pairwise_iou(truths, self.boxes)  # (G, A)
        self.shown_overlaps = pairwise_iou(truths, self.shown.boxes)  # (G, K)
        self.owner = match_greedily(class_overlaps(self.shown, annotation), limits.min_iou).tolist()  # object or -1

    def wrong(self) -> Detections:
        """The detections that match no object."""
        keep = torch.tensor([owner < 0 for owner in self.owner], dtype=torch.bool)
        return Detections(self.shown.image_id, *(part[keep] for part in self.shown[1:]))

    def classify_error(self, number: int, num_inside: int, num_assigned: int) -> tuple[str, str]:
        """FOUND, or the kind of error, and the details in words.

        `num_inside`: anchor points inside object `number`; `num_assigned`: those that the assigner gave to it.
        """
        if number in self.owner:
            index = self.owner.index(number)
            return FOUND, f"score {self.shown.scores[index]:.2f}, IoU {self.shown_overlaps[number, index]:.2f}"
        if num_inside == 0:
            return NO_POINT, "no anchor point lies inside it: use a larger inputShape, or set talMinSide"
        limits, own_scores, overlaps = self.limits, self.scores[:, self.labels[number]], self.overlaps[number]
        fits = overlaps >= limits.min_iou
        if (own_scores[fits] >= limits.paint_conf).any():
            return SUPPRESSED, self._why_suppressed(number, fits & (own_scores >= limits.paint_conf))
        if (self.scores[fits] >= limits.paint_conf).any():
            scores = self.scores * fits[:, None]
            point, label = divmod(int(scores.argmax()), scores.shape[1])
            found = f"{self.class_names[label]} with score {scores[point, label]:.2f}"
            return WRONG_CLASS, f"detected as {found}; score of its own class: {own_scores[fits].max():.2f}"
        if num_assigned == 0:
            return NOT_ASSIGNED, (
                f"{num_inside} anchor points lie inside it, but none is assigned to it: they are assigned to other "
                "objects, or no predicted box there overlaps with it"
            )
        is_near = overlaps >= _NEAR_IOU
        is_sure = is_near & (own_scores >= limits.paint_conf)
        if is_sure.any():
            best = overlaps[is_sure].max()
            return POOR_BOX, f"the best box of its class has IoU {best:.2f} with it; minIou is {limits.min_iou:g}"
        if fits.any():
            score = own_scores[fits].max()
            return LOW_SCORE, f"score {score:.2f} of the boxes that fit; paintConf is {limits.paint_conf:g}"
        score = own_scores[is_near].max() if is_near.any() else own_scores[int(overlaps.argmax())]
        near = f"score {score:.2f} near it, where the best box has IoU {overlaps.max():.2f}"
        return LOW_SCORE, f"{near}; paintConf is {limits.paint_conf:g}"

    def _why_suppressed(self, number: int, is_candidate: Bool[Tensor, " A"]) -> str:
        """What took the place of the object's best box: the candidate with the largest IoU."""
        point = int((self.overlaps[number] * is_candidate).argmax())
        score = self.scores[point, self.labels[number]]
        box = f"its box (score {score:.2f}, IoU {self.overlaps[number, point]:.2f})"
        is_rival = self.shown.scores >= score.item()
        if not self.predictor.class_agnostic:
            is_rival &= self.shown.labels == self.labels[number]
        overlaps = pairwise_iou(self.boxes[point][None], self.shown.boxes)[0] * is_rival
        if not len(overlaps) or overlaps.max() <= 0:
            return f"{box} is not among the {self.predictor.max_detections} best (maxDetections)"
        rival = int(overlaps.argmax())
        matched = f"object {self.owner[rival] + 1}" if self.owner[rival] >= 0 else "no object"
        is_same = bool(overlaps[rival] > _SAME_IOU) and self.shown.scores[rival] == score
        if is_same or overlaps[rival] <= self.predictor.iou_threshold:
            return f"{box} is matched to {matched}"
        detection = f"the detection of {matched} (score {self.shown.scores[rival]:.2f})"
        return f"{box} has IoU {overlaps[rival]:.2f} with {detection}, which is above nmsIou"
