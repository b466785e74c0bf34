"""Which points answer for which ground truth, and how many could.

Legend: B images, M most boxes on one image, A points, G objects.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ops.anchors import anchors_of, decode_boxes, flatten_maps
from ops.batch import Batch
from train.loss import DetectionLoss
from train.tal import Assignment


class Given(NamedTuple):
    """The assignment of a batch, seen from its ground truths."""

    assignment: Assignment
    owner: Int64[Tensor, "B A"]  # number of the box that the point answers for, -1 in the background
    count: Int64[Tensor, "B M"]  # points that answer for each box, 0 for padding


def points_given(loss: DetectionLoss, raw_maps: Sequence[Tensor], batch: Batch) -> Given:
    """What the loss's assigner makes of these raw maps. No boxes: count (B, 0), every owner -1."""
    points, strides = anchors_of(raw_maps, loss.strides)
    distributions, logits = flatten_maps([raw.detach() for raw in raw_maps], loss.reg_max)
    assignment = loss.assigner(
        logits.sigmoid(),
        decode_boxes(distributions, points, strides),
        points,
        batch.labels[..., None],
        batch.boxes,
        batch.valid[..., None],
    )
    owner = assignment.target_gt_idx.masked_fill(~assignment.fg_mask, -1)
    numbers = torch.arange(batch.labels.shape[1], device=owner.device)
    return Given(assignment, owner, (owner[:, None] == numbers[:, None]).sum(dim=-1))


def are_inside(
    points: Float[Tensor, "A 2"], boxes: Float[Tensor, "*G 4"], min_side: float = 0.0
) -> Bool[Tensor, "*G A"]:
    """Does the point lie strictly inside the box? Sides shorter than `min_side` count as this long, as in the assigner.

    A box with no point inside can be given none, whatever the network says.
    """
    centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    distance = (points - centre[..., None, :]).abs()
    return (distance < half.clamp(min=min_side / 2)[..., None, :]).all(dim=-1)
