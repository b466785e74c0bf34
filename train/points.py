"""Which points answer for which ground truth, how many could, and which objects are too small for any.

Legend: B images, M most boxes on one image, A points, G objects.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from config.errors import UserError
from dl.annotations import Annotation
from dl.augment import letterbox_placement
from ops.anchors import STRIDES, anchors_of, decode_boxes, flatten_maps
from ops.batch import Batch
from ops.text import counted
from train.loss import DetectionLoss
from train.tal import Assignment

log = logging.getLogger("mars")

REFERENCE_SIDE = 16.0  # talMinSide of the field's later releases
_LARGER = "use a larger inputShape, or cut the images into parts"
FEW_SMALL = 0.01  # share of objects that are too small, up to which nothing is reported


class PointAssignment(NamedTuple):
    """The assignment of a batch, seen from its ground truths."""

    assignment: Assignment
    owner: Int64[Tensor, "B A"]  # number of the box that the point answers for, -1 in the background
    count: Int64[Tensor, "B M"]  # points that answer for each box, 0 for padding


def points_given(loss: DetectionLoss, raw_maps: Sequence[Tensor], batch: Batch) -> PointAssignment:
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
    return PointAssignment(assignment, owner, (owner[:, None] == numbers[:, None]).sum(dim=-1))


def are_inside(
    points: Float[Tensor, "A 2"], boxes: Float[Tensor, "*G 4"], min_side: float = 0.0
) -> Bool[Tensor, "*G A"]:
    """Does the point lie strictly inside the box? Sides shorter than `min_side` count as this long, as in the assigner.

    A box with no point inside can be given none, whatever the network says.
    """
    centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    distance = (points - centre[..., None, :]).abs()
    return (distance < half.clamp(min=min_side / 2)[..., None, :]).all(dim=-1)


def have_points(boxes: Float[Tensor, "G 4"], input_shape: tuple[int, int], min_side: float = 0.0) -> Bool[Tensor, " G"]:
    """Does any anchor point lie inside the box, as `are_inside` has it? The nearest point of each map decides it."""
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half = half.clamp(min=min_side / 2)
    found = torch.zeros(len(boxes), dtype=torch.bool)
    for stride in STRIDES:
        last = torch.tensor([input_shape[1] // stride - 1, input_shape[0] // stride - 1])
        nearest = ((centre / stride).floor().clamp(min=0).minimum(last) + 0.5) * stride
        found |= ((centre - nearest).abs() < half).all(dim=-1)
    return found


class SmallObjects(NamedTuple):
    """Objects of a split, as large as they are on the network input when an image just fits it."""

    total: int
    below_pixel: int  # less than a pixel wide or high: nearly always dropped by augmentation, where there is any
    without_point: int  # of the others, those that no anchor point lies inside

    @property
    def share(self) -> float:
        """Of all objects, those that are too small; 0 without any object."""
        return (self.below_pixel + self.without_point) / self.total if self.total else 0.0

    def text(self, input_shape: tuple[int, int]) -> str:
        """How many are too small, why, and the way out."""
        height, width = input_shape
        counts = {
            "less than a pixel wide or high": self.below_pixel,
            "without an anchor point inside": self.without_point,
        }
        reasons = [f"{counted(count, 'object')} {reason}" for reason, count in counts.items() if count]
        return (
            f"{self.below_pixel + self.without_point} of {self.total} training objects are too small to be learned "
            f"well at inputShape={height},{width} ({', '.join(reasons)}): {_LARGER}"
            f"{f', or set talMinSide={REFERENCE_SIDE:g}' if self.without_point else ''}"
        )


def small_objects(
    annotations: Sequence[Annotation], input_shape: tuple[int, int], min_side: float = 0.0
) -> SmallObjects:
    """Count them from the annotations alone; each image once, though an epoch may show it several times."""
    boxes = _placed_boxes(annotations, input_shape)
    is_below = _shorter_sides(boxes) < 1
    is_without = ~is_below & ~have_points(boxes, input_shape, min_side)
    return SmallObjects(len(boxes), int(is_below.sum()), int(is_without.sum()))


def _placed_boxes(annotations: Sequence[Annotation], input_shape: tuple[int, int]) -> Float[Tensor, "G 4"]:
    """Where the objects lie on the network input when an image just fits it; each image once."""
    images = {annotation.image_id: annotation for annotation in annotations}.values()
    placed = [letterbox_placement((image.height, image.width), input_shape).apply(image.boxes) for image in images]
    return torch.from_numpy(np.concatenate([np.zeros((0, 4), dtype=np.float32), *placed]))


def _shorter_sides(boxes: Float[Tensor, "G 4"]) -> Float[Tensor, " G"]:
    return (boxes[:, 2:] - boxes[:, :2]).amin(dim=-1)


def report_small_objects(
    annotations: Sequence[Annotation], input_shape: tuple[int, int], min_side: float, always_dropped: float
) -> None:
    """Warn of objects that are too small to be learned well.

    `always_dropped`: the side in pixels up to which the augmentation drops every object; 0 without augmentation. Raises
    `UserError` when that is so for all objects.
    """
    sides = _shorter_sides(_placed_boxes(annotations, input_shape))
    if len(sides) and (sides <= always_dropped).all():
        height, width = input_shape
        raise UserError(
            f"nothing can be learned: at inputShape={height},{width} no training object has both sides above "
            f"{always_dropped:.2f} pixels, and the augmentation drops them all, even at its largest scale: {_LARGER}"
        )
    small = small_objects(annotations, input_shape, min_side)
    if small.share > FEW_SMALL:
        log.warning("%s", small.text(input_shape))
