"""Task-aligned assignment: which anchor points are trained to predict which object (TOOD, arXiv 2108.07755).

Legend: B images, A anchor points, M most boxes on one image (may be 0), C classes, P pairs of a box and an anchor point
inside it. Boxes and anchor points are in pixels of the network input; scores are probabilities.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped
from torch import Tensor

from ops.anchors import COUNTED_SIDE, full_precision, points_inside
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
    Nothing has a gradient. Only pairs of a box and an anchor point inside it are computed: most points are in no box.
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
        pair_limits: tuple[int, int] | None = None,
    ) -> Assignment:
        """`mask_gt`: 1 for boxes, 0 for padding. Labels may be long or float, the mask bool or float.

        `pair_limits`: from `ops.anchors.pair_limits`. None: the pairs are counted, and the host waits for a GPU.
        Without any box (M = 0, or only padding): zero scores, and a foreground mask that is all False.
        """
        # beta = 6 turns an overlap of 0.1 into 1e-6, which bfloat16 and float16 cannot resolve.
        scores, boxes = full_precision(pd_scores), full_precision(pd_bboxes)
        gt_bboxes = gt_bboxes.to(boxes.dtype)
        if gt_bboxes.shape[1] == 0:
            return self._empty(scores, boxes)
        # The guard reports labels outside the class list. As an index such a label would kill a GPU process.
        labels, is_real = gt_labels[..., 0].long().clamp(0, scores.shape[-1] - 1), mask_gt[..., 0].bool()

        # Candidates are inside the box: only there all four distances are positive, as the head can predict them.
        if self.min_side > COUNTED_SIDE:
            pair_limits = None  # they hold for smaller sides only
        pairs = _Pairs(points_inside(anc_points, gt_bboxes, self.min_side) & is_real[..., None], pair_limits)
        metric, overlaps = self._metric(pairs, scores, boxes, labels, gt_bboxes)
        is_owner = self._resolve_conflicts(pairs, self._choose(pairs, metric), overlaps)
        point_scores = self._target_scores(pairs, metric, overlaps, is_owner)
        return self._targets(pairs, is_owner, point_scores, labels, gt_bboxes)

    def _metric(self, pairs: "_Pairs", scores: Tensor, boxes: Tensor, labels: Tensor, gt_bboxes: Tensor):
        """(P,) each: alignment metric and CIoU >= 0."""
        # t = s^alpha * u^beta: s is the score of the box's own class, u its overlap with the prediction (TOOD, eq. 5).
        own_scores = probe("tal.score", scores.flatten(0, 1)[pairs.points, pairs.of_box(labels)])
        overlaps = probe("tal.overlap", ciou(pairs.of_box(gt_bboxes), pairs.of_point(boxes)).clamp(min=0))
        return probe("tal.metric", own_scores.pow(self.alpha) * overlaps.pow(self.beta)), overlaps

    def _choose(self, pairs: "_Pairs", metric: Tensor) -> Tensor:
        """(P,): is the anchor point among the `topk` best of the box, with a metric above zero?"""
        # A row for each box, as long as the longest: sorting all pairs by box and metric takes several times as long.
        table = metric.new_full((pairs.num_boxes + 1, pairs.most), -1).index_put_((pairs.box, pairs.place), metric)
        best = table.topk(min(self.topk, pairs.most), dim=1).indices
        is_best = torch.zeros_like(table, dtype=torch.bool).scatter_(1, best, True)[pairs.box, pairs.place]
        return is_best & (metric != 0)  # not > 0: NaN must reach the loss

    def _resolve_conflicts(self, pairs: "_Pairs", is_chosen: Tensor, overlaps: Tensor) -> Tensor:
        """(P,): the chosen pairs, with at most one box per anchor point: the box it overlaps most, of all around it."""
        # An anchor point predicts a single box, so it cannot be a target for two.
        # Only contested anchor points change. All others keep the one box that chose them, or none.
        num_choices = pairs.of_point(pairs.per_point(is_chosen.long(), "sum"))
        # As in Ultralytics, a box that contains the point may win although the point was not among its best.
        is_largest = overlaps == pairs.of_point(pairs.per_point(overlaps, "amax"))
        # Two boxes with the same overlap: the first wins. Counted backwards, it has the larger number.
        number = torch.where(is_largest, pairs.num_boxes - pairs.box, 0)
        is_winner = is_largest & (number == pairs.of_point(pairs.per_point(number, "amax")))
        return torch.where(num_choices > 1, is_winner, is_chosen)

    def _target_scores(self, pairs: "_Pairs", metric: Tensor, overlaps: Tensor, is_owner: Tensor) -> Tensor:
        """(P,): the target scores, before the class is known. Maxima are over the anchor points that a box keeps."""
        metric, overlaps = metric * is_owner, overlaps * is_owner
        best_metric = probe("tal.best_metric", pairs.per_box(metric))
        best_overlap = probe("tal.best_overlap", pairs.per_box(overlaps))
        # The target is the quality of the prediction, not 1: a class score then also tells how precise its box is, and
        # suppression keeps the most precise box.
        # metric / best metric is 1 at the best anchor point, so that its target is the best overlap.
        shares = metric * pairs.of_box(best_overlap) / (pairs.of_box(best_metric) + self.eps)
        return probe("tal.share", shares)

    def _targets(
        self, pairs: "_Pairs", is_owner: Tensor, point_scores: Tensor, labels: Tensor, gt_bboxes: Tensor
    ) -> Assignment:
        # At most one pair of each anchor point is left, so a sum is its value; background points get box 0, score 0.
        fg_mask = pairs.per_point(is_owner.long(), "sum").bool()
        gt_idx = pairs.per_point(pairs.box % labels.shape[1] * is_owner, "sum")
        target_labels = labels.gather(1, gt_idx)
        target_bboxes = gt_bboxes.gather(1, gt_idx[..., None].expand(-1, -1, 4))
        target_scores = point_scores.new_zeros(*fg_mask.shape, self.num_classes)
        target_scores.scatter_(2, target_labels[..., None], pairs.per_point(point_scores, "sum")[..., None])
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


class _Pairs:
    """The P pairs of a box and an anchor point inside it, ordered by box. Both are numbered through the batch.

    Padding has a box and an anchor point behind the last ones; whatever is computed for it is dropped.
    """

    def __init__(self, is_inside: Bool[Tensor, "B M A"], limits: tuple[int, int] | None):
        self.num_images, boxes_per_image, points_per_image = is_inside.shape
        self.num_boxes, self.num_points = self.num_images * boxes_per_image, self.num_images * points_per_image
        index = true_indices(is_inside.flatten(), limits and limits[0])
        self.box = index // points_per_image  # (P,)
        self.point = self.box // boxes_per_image * points_per_image + index % points_per_image  # (P,)
        probe("tal.images", self.box // boxes_per_image)
        # The same with padding moved to the last ones, to read tables that have no place for it.
        self.boxes, self.points = self.box.clamp(max=self.num_boxes - 1), self.point.clamp(max=self.num_points - 1)
        first = torch.searchsorted(self.box, torch.arange(self.num_boxes + 1, device=index.device))
        self.most = limits[1] if limits else max(int(first.diff().max()), 1)  # pairs of one box
        # The place of each pair among those of its box. Padding may have too many for one row of a table.
        self.place = (torch.arange(len(index), device=index.device) - first[self.box]).clamp(max=self.most - 1)  # (P,)

    def of_box(self, table: Shaped[Tensor, "B M *_"]) -> Shaped[Tensor, "P *_"]:
        """The row of each pair's box."""
        return table.flatten(0, 1)[self.boxes]

    def of_point(self, table: Shaped[Tensor, "B A *_"]) -> Shaped[Tensor, "P *_"]:
        """The row of each pair's anchor point."""
        return table.flatten(0, 1)[self.points]

    def per_box(self, values: Shaped[Tensor, " P"]) -> Shaped[Tensor, "B M"]:
        """The largest value of the pairs of each box, 0 without any. `values`: not below 0."""
        return self._reduce(self.box, values, "amax", self.num_boxes)

    def per_point(self, values: Shaped[Tensor, " P"], reduce: str) -> Shaped[Tensor, "B A"]:
        """Sum or largest value of the pairs of each anchor point, 0 without any. `values`: not below 0."""
        return self._reduce(self.point, values, reduce, self.num_points)

    def _reduce(self, index: Tensor, values: Tensor, reduce: str, length: int) -> Tensor:
        table = values.new_zeros(length + 1).scatter_reduce_(0, index, values, reduce)
        return table[:length].view(self.num_images, -1)


def true_indices(mask: Bool[Tensor, " N"], size: int | None = None) -> Int64[Tensor, " size"]:
    """Indices of the true elements in their order, padded with N to `size`, which they must not exceed.

    `size` None: exactly the true elements; the host waits for a GPU to count them.
    """
    if size is None:
        return mask.nonzero()[:, 0]
    # Not nonzero_static, which CUDA has only since torch 2.7. False elements write to the place behind the last.
    numbers = torch.arange(len(mask), device=mask.device)
    places = torch.where(mask, mask.cumsum(dim=0) - 1, size)
    return numbers.new_full((size + 1,), len(mask)).scatter_(0, places, numbers)[:size]
