"""From all boxes and scores of one image to its detections: threshold, non-maximum suppression, limit on the number.

Legend: A anchor points, C classes, N candidates, K detections that remain.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms  # pyright: ignore[reportMissingTypeStubs]


class Selection(NamedTuple):
    """Detections of one image, highest score first. Without detections: shapes (0, 4), (0,) and (0,)."""

    boxes: Tensor  # (K, 4) in the coordinates of the input
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
    """The detections of one image, highest score first, at most `max_detections`.

    Multi-label: each class above the threshold makes a candidate of its own, so that one box can be reported as two
    classes. Published COCO results are computed this way. If two candidates of one class (of any two classes when
    `class_agnostic`) overlap by more than `iou_threshold`, the one with the lower score is removed.

    `boxes` are xyxy, `scores` probabilities. No score above the threshold gives an empty selection. NaN is not above
    any threshold and would disappear without a warning, so callers check for it first, as `eval.predictor` does.
    """
    # torch.where lists the candidates anchor point by anchor point; the order decides between equal scores.
    points, labels = torch.where(scores > score_threshold)
    candidates = scores[points, labels]
    if candidates.numel() > max_candidates:
        # Suppression compares all pairs: without a limit its time and memory grow with the square of the candidates.
        candidates, best = candidates.topk(max_candidates)
        points, labels = points[best], labels[best]
    chosen = boxes[points]
    # With one group for all classes, suppression is class-agnostic.
    keep = _suppress(chosen, candidates, torch.zeros_like(labels) if class_agnostic else labels, iou_threshold)
    keep = keep[:max_detections]
    return Selection(chosen[keep], candidates[keep], labels[keep])


def _suppress(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], groups: Int64[Tensor, " N"], iou_threshold: float
) -> Int64[Tensor, " K"]:
    """Indexes of the boxes that remain, highest score first."""
    if boxes.shape[0] == 0:
        return groups
    # torchvision separates the groups: it moves group g right and down by g times the largest coordinate. A box with
    # negative coordinates would then overlap the group before, hence the shift to zero. In float32 the offset of 80
    # classes rounds coordinates to thousandths of a pixel, hence float64.
    shifted = boxes.double()
    return batched_nms(shifted - shifted.min(), scores.double(), groups, iou_threshold)
