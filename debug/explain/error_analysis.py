"""Why an object was found or missed, from the boxes and scores that the network predicted around it.

Legend: A anchor points, C classes, G objects, K detections. Boxes are in pixels of the image as read.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dl.annotations import Annotation
from eval.matching import best_first, class_overlaps, match_greedily
from eval.predictor import Detections, Predictor
from ops.boxes import pairwise_iou

FOUND, NO_POINT, NOT_ASSIGNED, LOW_SCORE, WRONG_CLASS, POOR_BOX, SUPPRESSED = (
    "found", "no anchor point", "not assigned", "low score", "wrong class", "poor box", "suppressed",
)  # fmt: skip
_NEAR_IOU = 0.1  # with an object, from which a box counts as near it
_SAME_IOU = 0.9999  # from which two boxes are the same


class Limits(NamedTuple):
    """The score from which a detection counts, and the IoU from which it matches an object."""

    paint_conf: float
    min_iou: float


class Predictions(NamedTuple):
    """What the network predicts at every anchor point, and what is left of it after non-maximum suppression."""

    boxes: Float[Tensor, "A 4"]
    scores: Float[Tensor, "A C"]
    detections: Detections


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
                "objects, or no "
                "predicted box there overlaps with it"
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
