"""Why an object was found or missed: what the network said around it, and what became of that.

Legend: A points, C classes, G objects, K detections. Boxes are in pixels of the image as read.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dl.annotations import Annotation
from eval.matching import best_first, class_overlaps, match_greedily
from eval.predictor import Detections, Predictor
from ops.boxes import pairwise_iou

FOUND, NO_POINT, LOW_SCORE, WRONG_CLASS, POOR_BOX, SUPPRESSED = (
    "found", "no point", "low score", "wrong class", "poor box", "suppressed",
)  # fmt: skip
_NEAR, _EQUAL = 0.1, 0.9999  # overlap from which a box is one of this object's, and from which it is the same box


class Limits(NamedTuple):
    """From which score a detection counts as one, and from which overlap as this object's."""

    paint_conf: float
    min_iou: float


class ErrorAnalysis:
    """Pairs detections with objects as the painter does, and looks for what became of the others."""

    def __init__(
        self,
        predictor: Predictor,
        boxes: Float[Tensor, "A 4"],
        scores: Float[Tensor, "A C"],
        detections: Detections,
        annotation: Annotation,
        limits: Limits,
        class_names: Sequence[str],
    ):
        self.class_names = class_names
        self.predictor, self.boxes, self.scores, self.limits = predictor, boxes, scores, limits
        self.shown = best_first(detections, limits.paint_conf)
        self.labels, self.truths = annotation.labels.tolist(), torch.from_numpy(annotation.boxes).float()
        self.overlaps = pairwise_iou(self.truths, boxes)  # (G, A)
        self.found_overlaps = pairwise_iou(self.truths, self.shown.boxes)  # (G, K)
        self.owner = match_greedily(class_overlaps(self.shown, annotation), limits.min_iou).tolist()  # object or -1

    def wrong(self) -> Detections:
        """The detections that stand for no object."""
        keep = torch.tensor([owner < 0 for owner in self.owner], dtype=torch.bool)
        return Detections(self.shown.image_id, *(part[keep] for part in self.shown[1:]))

    def fate_of(self, number: int, inside: int, given: int) -> tuple[str, str]:
        """FOUND or why the object was missed, and more words about it."""
        if number in self.owner:
            taken = self.owner.index(number)
            score, overlap = self.shown.scores[taken].item(), self.found_overlaps[number, taken].item()
            return FOUND, f"score {score:.2f}, IoU {overlap:.2f}"
        if inside == 0:
            return NO_POINT, "no point of the grid lies inside it; a larger inputShape, or talMinSide, gives it one"
        own, overlaps = self.scores[:, self.labels[number]], self.overlaps[number]
        fits = overlaps >= self.limits.min_iou
        if (own[fits] >= self.limits.paint_conf).any():
            return SUPPRESSED, self._who_suppressed(number, fits, own)
        if (self.scores[fits] >= self.limits.paint_conf).any():
            return WRONG_CLASS, self._seen_as(fits, own)
        if given == 0:
            return NO_POINT, f"{inside} lie inside it, but other objects took them, or no box there overlaps with it"
        return self._weakness(own, overlaps, fits)

    def _who_suppressed(self, number: int, fits: Tensor, own: Tensor) -> str:
        """The best of its boxes that are sure enough is not in the result as its own: what took its place?"""
        is_sure = fits & (own >= self.limits.paint_conf)
        point = int((self.overlaps[number] * is_sure).argmax())
        score, overlap = own[point].item(), self.overlaps[number, point].item()
        mine = f"its box of score {score:.2f}, IoU {overlap:.2f},"
        beside = pairwise_iou(self.boxes[point][None], self.shown.boxes)[0]
        is_rival = self.shown.scores >= score
        if not self.predictor.class_agnostic:
            is_rival &= self.shown.labels == self.labels[number]
        rivals = beside * is_rival
        if not len(rivals) or rivals.max() <= 0:
            return f"{mine} is not among the best {self.predictor.max_detections} (maxDetections)"
        rival = int(rivals.argmax())
        whose = f"object {self.owner[rival] + 1}" if self.owner[rival] >= 0 else "no object"
        is_itself = bool(rivals[rival] > _EQUAL) and self.shown.scores[rival] == own[point]
        if is_itself or rivals[rival] <= self.predictor.nms_iou:
            return f"{mine} counts for {whose}"
        overlap, best = rivals[rival].item(), self.shown.scores[rival].item()
        return f"{mine} overlaps {overlap:.2f} with the detection of score {best:.2f} for {whose} (nmsIou)"

    def _seen_as(self, fits: Tensor, own: Tensor) -> str:
        others = self.scores * fits[:, None]
        best = int(others.argmax())
        point, label = divmod(best, others.shape[1])
        return (
            f"seen as {self.class_names[label]} with score {others[point, label]:.2f}, as itself {own[fits].max():.2f}"
        )

    def _weakness(self, own: Tensor, overlaps: Tensor, fits: Tensor) -> tuple[str, str]:
        near, limits = overlaps >= _NEAR, self.limits
        sure = near & (own >= limits.paint_conf)
        if sure.any():
            best = overlaps[sure].max()
            return POOR_BOX, f"the best box of its class overlaps {best:.2f} with it, minIou is {limits.min_iou:g}"
        if fits.any():
            score = own[fits].max()
            return LOW_SCORE, f"{score:.2f} at the boxes that fit, paintConf is {limits.paint_conf:g}"
        score = own[near].max() if near.any() else own[int(overlaps.argmax())]
        best = overlaps.max()
        return (
            LOW_SCORE,
            f"{score:.2f} near it, where the best box overlaps {best:.2f}, paintConf is {limits.paint_conf:g}",
        )
