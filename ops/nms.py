"""From all boxes and scores of one image to its detections: threshold, class-aware suppression, the best few.

Legend: A anchor points, C classes, K detections kept.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms


class Selection(NamedTuple):
    """Detections of one image, best first. None found: shapes (0, 4), (0,) and (0,)."""

    boxes: Tensor  # (K, 4) in the coordinates that went in
    scores: Tensor  # (K,)
    labels: Tensor  # (K,) int64


def select_detections(
    boxes: Float[Tensor, "A 4"],
    scores: Float[Tensor, "A C"],
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    max_candidates: int = 30_000,
    class_agnostic: bool = False,
) -> Selection:
    """The detections of one image, best first, at most `max_detections`.

    Multi-label: every class above the threshold makes its point a candidate of its own, so that one box may be reported
    as two classes; that is how COCO figures are made. Of two candidates of one class (of any, when `class_agnostic`)
    that overlap by more than `iou_threshold`, the one with the lower score goes.

    `boxes` are xyxy, `scores` probabilities; nothing above the threshold gives an empty selection. NaN is not above any
    threshold and would vanish here without a word, so callers look for it first (`eval.predictor` does).
    """
    points, labels = torch.where(scores > score_threshold)
    candidates = scores[points, labels]
    if candidates.numel() > max_candidates:
        candidates, best = candidates.topk(max_candidates)
        points, labels = points[best], labels[best]
    chosen = boxes[points]
    keep = _suppress(chosen, candidates, torch.zeros_like(labels) if class_agnostic else labels, iou_threshold)
    keep = keep[:max_detections]
    return Selection(chosen[keep], candidates[keep], labels[keep])


def _suppress(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], groups: Int64[Tensor, " N"], iou_threshold: float
) -> Int64[Tensor, " K"]:
    """Indexes of the boxes that stay, best first.

    torchvision parts the groups by moving each one right and down by the largest coordinate. That needs coordinates
    that are not negative (a box left of the image would land on the group before), and in float32 it costs thousandths
    of a pixel at 80 classes: hence the shift to zero and float64.
    """
    if boxes.shape[0] == 0:
        return groups
    shifted = boxes.double()
    return batched_nms(shifted - shifted.min(), scores.double(), groups, iou_threshold)
