"""Task-aligned assignment: which points answer for which object (TOOD, Feng et al. 2021, arXiv 2108.07755).

Legend: B images, A points, M most boxes on one image (may be 0), C classes.
Boxes and points are in pixels of the network input; scores are probabilities.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ops.anchors import full_precision
from ops.boxes import ciou
from ops.probe import probe

INSIDE_MARGIN = 1e-9  # a point on the border is outside


class Assignment(NamedTuple):
    """What every point should say. Points in the background carry zero scores and box 0 of their image."""

    target_labels: Int[Tensor, "B A"]
    target_bboxes: Float[Tensor, "B A 4"]
    target_scores: Float[Tensor, "B A C"]
    fg_mask: Bool[Tensor, "B A"]
    target_gt_idx: Int[Tensor, "B A"]


class TaskAlignedAssigner:
    """Every box takes the `topk` points inside it whose score and overlap agree best with it.

    metric = score^alpha * CIoU^beta. A point wanted by several boxes goes to the one it overlaps most. The target score
    of a point is its metric, scaled so that the best point of a box gets that box's best overlap.
    Nothing here carries a gradient, and nothing asks the device for a number.
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
        """`min_side`: in the search for points inside a box, sides shorter than this many pixels count as this long.

        0 is the behaviour of the paper and of Ultralytics up to 2024; its later releases enlarge sides below 16 pixels.
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
        """Assign. `mask_gt` tells real boxes from padding; labels may be long or float, the mask bool or float.

        No box anywhere (M = 0, or nothing but padding): zero scores and a foreground that is False and boolean.
        """
        scores, boxes = full_precision(pd_scores), full_precision(pd_bboxes)
        gt_bboxes = gt_bboxes.to(boxes.dtype)
        if gt_bboxes.shape[1] == 0:
            return self._nothing(scores, boxes)
        # the guard tells of labels that are no class; as indexes they would kill a GPU's process
        labels, is_real = gt_labels[..., 0].long().clamp(0, scores.shape[-1] - 1), mask_gt[..., 0].bool()

        is_inside = self._points_inside(anc_points, gt_bboxes) & is_real[..., None]
        metric, overlaps = self._metric(scores, boxes, labels, gt_bboxes, is_inside)
        is_chosen = self._choose(metric) & is_inside
        is_owner = self._resolve_conflicts(is_chosen, overlaps, is_inside)
        share = self._soft_share(metric, overlaps, is_owner)
        return self._targets(labels, gt_bboxes, is_owner, share)

    def _points_inside(self, points: Tensor, gt_bboxes: Tensor) -> Tensor:
        """(B, M, A): does the point lie strictly inside the box?"""
        low, high = gt_bboxes[..., :2], gt_bboxes[..., 2:]
        if self.min_side > 0:
            centre, half = (low + high) / 2, ((high - low) / 2).clamp(min=self.min_side / 2)
            low, high = centre - half, centre + half
        points = points.to(gt_bboxes.dtype)
        x, y = points[:, 0], points[:, 1]  # (A,) against (B, M, 1)
        is_inside = (x - low[..., :1] > INSIDE_MARGIN) & (high[..., :1] - x > INSIDE_MARGIN)
        return is_inside & (y - low[..., 1:] > INSIDE_MARGIN) & (high[..., 1:] - y > INSIDE_MARGIN)

    def _metric(self, scores: Tensor, boxes: Tensor, labels: Tensor, gt_bboxes: Tensor, is_inside: Tensor):
        """(B, M, A) twice: alignment and clamped CIoU, both zero at points outside the box."""
        own_class = labels[:, None, :].expand(-1, scores.shape[1], -1)  # (B, A, M)
        own_scores = probe("tal.score", scores.gather(2, own_class).transpose(1, 2))
        overlaps = ciou(gt_bboxes[:, :, None, :], boxes[:, None, :, :]).clamp(min=0)
        overlaps = probe("tal.overlap", overlaps.masked_fill(~is_inside, 0))
        metric = own_scores.masked_fill(~is_inside, 0).pow(self.alpha) * overlaps.pow(self.beta)
        return probe("tal.metric", metric), overlaps

    def _choose(self, metric: Tensor) -> Tensor:
        """(B, M, A): is the point among the box's best `topk`?"""
        best = metric.topk(min(self.topk, metric.shape[-1]), dim=-1).indices
        return torch.zeros_like(metric, dtype=torch.bool).scatter_(-1, best, True)

    def _resolve_conflicts(self, is_chosen: Tensor, overlaps: Tensor, is_inside: Tensor) -> Tensor:
        """(B, M, A) with at most one box a point: the one it overlaps most among all real boxes that contain it."""
        is_contested = is_chosen.sum(dim=1, keepdim=True) > 1
        winner = overlaps.masked_fill(~is_inside, -1).argmax(dim=1, keepdim=True)
        is_winner = torch.zeros_like(is_chosen).scatter_(1, winner, True)
        return torch.where(is_contested, is_winner, is_chosen)

    def _soft_share(self, metric: Tensor, overlaps: Tensor, is_owner: Tensor) -> Tensor:
        """(B, A): the target score of each point; both maxima are over the points a box keeps after conflicts."""
        metric, overlaps = metric * is_owner, overlaps * is_owner
        best_metric = metric.amax(dim=-1, keepdim=True)
        best_overlap = overlaps.amax(dim=-1, keepdim=True)
        return probe("tal.share", (metric * best_overlap / (best_metric + self.eps)).amax(dim=1))

    def _targets(self, labels: Tensor, gt_bboxes: Tensor, is_owner: Tensor, share: Tensor) -> Assignment:
        fg_mask = is_owner.any(dim=1)
        gt_idx = is_owner.long().argmax(dim=1)  # (B, A)
        target_labels = labels.gather(1, gt_idx)
        target_bboxes = gt_bboxes.gather(1, gt_idx[..., None].expand(-1, -1, 4))
        target_scores = share.new_zeros(*share.shape, self.num_classes)
        target_scores.scatter_(2, target_labels[..., None], (share * fg_mask)[..., None])
        return Assignment(target_labels, target_bboxes, probe("tal.target", target_scores), fg_mask, gt_idx)

    def _nothing(self, scores: Tensor, boxes: Tensor) -> Assignment:
        shape = scores.shape[:2]
        whole = torch.zeros(shape, dtype=torch.long, device=scores.device)
        return Assignment(
            target_labels=whole,
            target_bboxes=torch.zeros_like(boxes),
            target_scores=scores.new_zeros(*shape, self.num_classes),
            fg_mask=torch.zeros_like(whole, dtype=torch.bool),
            target_gt_idx=whole.clone(),
        )
