"""Which anchor points the assigner gives to each ground-truth box.

Legend: B images, M most boxes on one image, A anchor points.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from ops.anchors import Anchors, anchors_of, decode_boxes, flatten_maps
from ops.batch import Batch
from train.loss import DetectionLoss
from train.tal import Assignment


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
