"""Task-aligned assignment: which anchor points are trained to predict which object (TOOD, arXiv 2108.07755).

Legend: B images, A anchor points, M most boxes on one image (may be 0), C classes.
Boxes and anchor points are in pixels of the network input; scores are probabilities.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ops.anchors import full_precision, points_inside
from ops.boxes import ciou
from ops.probe import probe


class Assignment(NamedTuple):
    """The target of every anchor point. Background has zero scores, and box 0 of its image as a placeholder."""

    target_labels: Int[Tensor, "B A"]
    target_bboxes: Float[Tensor, "B A 4"]
    target_scores: Float[Tensor, "B A C"]
    fg_mask: Bool[Tensor, "B A"]
    target_gt_idx: Int[Tensor, "B A"]


class TaskAlignedAssigner:
    """Each box is assigned the `topk` anchor points inside it with the highest alignment metric (TOOD, eq. 5):

        metric = score^alpha * CIoU^beta

    An anchor point that several boxes choose goes to the box it overlaps most. Its target score is its metric, scaled
    so that the best anchor point of a box has the box's highest CIoU as its target (TOOD, eq. 6).
    Nothing has a gradient, and nothing waits for the device.
    """

    def __init__(
        self,
        topk: int = 10,
        num_classes: int = 80,
        alpha: float = 0.5,
        beta: float = 6.0,
        eps: float = 1e-9,
        min_side: float = 0.0,
    ):
        """`min_side`: sides of boxes shorter than this many pixels count as this long when anchor points are chosen.

        0 is the behaviour of the paper and of Ultralytics up to 2024. Its later releases use 16.
        """
        self.topk, self.num_classes, self.alpha, self.beta = topk, num_classes, alpha, beta
        self.eps, self.min_side = eps, min_side

    @torch.no_grad()
    def __call__(
        self,
        pd_scores: Float[Tensor, "B A C"],
        pd_bboxes: Float[Tensor, "B A 4"],
        anc_points: Float[Tensor, "A 2"],
        gt_labels: Shaped[Tensor, "B M 1"],
        gt_bboxes: Float[Tensor, "B M 4"],
        mask_gt: Shaped[Tensor, "B M 1"],
    ) -> Assignment:
        """`mask_gt`: 1 for boxes, 0 for padding. Labels may be long or float, the mask bool or float.

        Without any box (M = 0, or only padding): zero scores, and a boolean foreground mask that is all False.
        """
        # beta = 6 turns an overlap of 0.1 into 1e-6, which bfloat16 and float16 cannot resolve.
        scores, boxes = full_precision(pd_scores), full_precision(pd_bboxes)
        gt_bboxes = gt_bboxes.to(boxes.dtype)
        if gt_bboxes.shape[1] == 0:
            return self._empty(scores, boxes)
        # The guard reports labels outside the class list. As an index such a label would kill a GPU process.
        labels, is_real = gt_labels[..., 0].long().clamp(0, scores.shape[-1] - 1), mask_gt[..., 0].bool()

        # Candidates are inside the box: only there all four distances are positive, as the head can predict them.
        is_inside = points_inside(anc_points, gt_bboxes, self.min_side) & is_real[..., None]
        metric, overlaps = self._metric(scores, boxes, labels, gt_bboxes, is_inside)
        is_chosen = self._choose(metric) & is_inside
        is_owner = self._resolve_conflicts(is_chosen, overlaps, is_inside)
        point_scores = self._target_scores(metric, overlaps, is_owner)
        return self._targets(labels, gt_bboxes, is_owner, point_scores)

    def _metric(self, scores: Tensor, boxes: Tensor, labels: Tensor, gt_bboxes: Tensor, is_inside: Tensor):
        """(B, M, A) each: alignment metric and CIoU >= 0, both zero at anchor points outside the box."""
        # t = s^alpha * u^beta: s is the score of the box's own class, u its overlap with the prediction (TOOD, eq. 5).
        own_class = labels[:, None, :].expand(-1, scores.shape[1], -1)  # (B, A, M)
        own_scores = probe("tal.score", scores.gather(2, own_class).transpose(1, 2))
        overlaps = ciou(gt_bboxes[:, :, None, :], boxes[:, None, :, :]).clamp(min=0)
        # Masked before the power: pow(0, alpha) of an excluded point stays 0, and NaN outside the box has no effect.
        overlaps = probe("tal.overlap", overlaps.masked_fill(~is_inside, 0))
        metric = own_scores.masked_fill(~is_inside, 0).pow(self.alpha) * overlaps.pow(self.beta)
        return probe("tal.metric", metric), overlaps

    def _choose(self, metric: Tensor) -> Tensor:
        """(B, M, A): is the anchor point among the `topk` best of the box?"""
        # topk of all A anchor points: those outside have metric 0 and are removed by the caller, so a small box may get
        # fewer than `topk` anchor points.
        best = metric.topk(min(self.topk, metric.shape[-1]), dim=-1).indices
        return torch.zeros_like(metric, dtype=torch.bool).scatter_(-1, best, True)

    def _resolve_conflicts(self, is_chosen: Tensor, overlaps: Tensor, is_inside: Tensor) -> Tensor:
        """(B, M, A) with at most one box per anchor point: the box it overlaps most, of all boxes that contain it."""
        # An anchor point predicts a single box, so it cannot be a target for two.
        # Only contested anchor points change. All others keep the one box that chose them, or none.
        is_contested = is_chosen.sum(dim=1, keepdim=True) > 1
        # As in Ultralytics, a box that contains the point may win although the point was not among its best.
        winner = overlaps.masked_fill(~is_inside, -1).argmax(dim=1, keepdim=True)
        is_winner = torch.zeros_like(is_chosen).scatter_(1, winner, True)
        return torch.where(is_contested, is_winner, is_chosen)

    def _target_scores(self, metric: Tensor, overlaps: Tensor, is_owner: Tensor) -> Tensor:
        """(B, A): the target scores, before the class is known. Maxima are over the anchor points that a box keeps."""
        metric, overlaps = metric * is_owner, overlaps * is_owner
        best_metric = metric.amax(dim=-1, keepdim=True)
        best_overlap = overlaps.amax(dim=-1, keepdim=True)
        # The target is the quality of the prediction, not 1: a class score then also tells how precise its box is, and
        # suppression keeps the most precise box.
        # metric / best metric is 1 at the best anchor point, so that its target is the best overlap.
        return probe("tal.share", (metric * best_overlap / (best_metric + self.eps)).amax(dim=1))

    def _targets(self, labels: Tensor, gt_bboxes: Tensor, is_owner: Tensor, point_scores: Tensor) -> Assignment:
        # argmax of an all-False column is 0: background points get box 0, whose score below is zero.
        fg_mask = is_owner.any(dim=1)
        gt_idx = is_owner.long().argmax(dim=1)  # (B, A)
        target_labels = labels.gather(1, gt_idx)
        target_bboxes = gt_bboxes.gather(1, gt_idx[..., None].expand(-1, -1, 4))
        target_scores = point_scores.new_zeros(*point_scores.shape, self.num_classes)
        target_scores.scatter_(2, target_labels[..., None], (point_scores * fg_mask)[..., None])
        return Assignment(target_labels, target_bboxes, probe("tal.target", target_scores), fg_mask, gt_idx)

    def _empty(self, scores: Tensor, boxes: Tensor) -> Assignment:
        shape = scores.shape[:2]
        zeros = torch.zeros(shape, dtype=torch.long, device=scores.device)
        return Assignment(
            target_labels=zeros,
            target_bboxes=torch.zeros_like(boxes),
            target_scores=scores.new_zeros(*shape, self.num_classes),
            fg_mask=torch.zeros_like(zeros, dtype=torch.bool),
            target_gt_idx=zeros.clone(),
        )
