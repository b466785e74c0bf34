"""Objects that are too small to be learned: smaller than a pixel, or without an anchor point inside.

Legend: G objects.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from config.errors import UserError
from dl.annotations import Annotation
from dl.augment import letterbox_placement
from ops.anchors import STRIDES
from ops.text import counted

log = logging.getLogger("mars")

REFERENCE_SIDE = 16.0  # talMinSide in later releases of Ultralytics
MOST_SMALL = 0.01  # share of objects that may be too small without a warning
_LARGER = "use a larger inputShape, or cut the images into parts"


def have_points(boxes: Float[Tensor, "G 4"], input_shape: tuple[int, int], min_side: float = 0.0) -> Bool[Tensor, " G"]:
    """Does any anchor point lie inside the box? Equal to `ops.anchors.points_inside(...).any(-1)`, for many boxes.

    Only the anchor point of each map that is nearest to the centre has to be looked at.
    """
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half = half.clamp(min=min_side / 2)
    found = torch.zeros(len(boxes), dtype=torch.bool)
    for stride in STRIDES:
        last = torch.tensor([input_shape[1] // stride - 1, input_shape[0] // stride - 1])
        nearest = ((centre / stride).floor().clamp(min=0).minimum(last) + 0.5) * stride
        found |= ((centre - nearest).abs() < half).all(dim=-1)
    return found


class SmallObjects(NamedTuple):
    """Numbers of objects of a split, each in the size that it has when its image just fits the network input."""

    total: int
    below_pixel: int  # less than a pixel wide or high; augmentation drops nearly all of them
    without_point: int  # larger, but no anchor point lies inside

    @property
    def share(self) -> float:
        """Share of the objects that are too small; 0 without objects."""
        return (self.below_pixel + self.without_point) / self.total if self.total else 0.0

    def text(self, input_shape: tuple[int, int]) -> str:
        """How many are too small, why, and what to change."""
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
    """Count the objects of these annotations. Each image counts once, though an epoch may contain it several times."""
    boxes = _boxes_on_input(annotations, input_shape)
    is_below = _shorter_sides(boxes) < 1
    is_without = ~is_below & ~have_points(boxes, input_shape, min_side)
    return SmallObjects(len(boxes), int(is_below.sum()), int(is_without.sum()))


def report_small_objects(
    annotations: Sequence[Annotation], input_shape: tuple[int, int], min_side: float, always_dropped: float
) -> None:
    """Warn about objects that are too small to be learned well.

    `always_dropped`: the augmentation drops every object whose shorter side is at most this many pixels; 0 without
    augmentation. Raises `UserError` if that is true of all objects.
    """
    sides = _shorter_sides(_boxes_on_input(annotations, input_shape))
    if len(sides) and (sides <= always_dropped).all():
        height, width = input_shape
        raise UserError(
            f"nothing can be learned: at inputShape={height},{width} no training object has both sides above "
            f"{always_dropped:.2f} pixels, and the augmentation drops them all, even at its largest scale: {_LARGER}"
        )
    small = small_objects(annotations, input_shape, min_side)
    if small.share > MOST_SMALL:
        log.warning("%s", small.text(input_shape))


def _boxes_on_input(annotations: Sequence[Annotation], input_shape: tuple[int, int]) -> Float[Tensor, "G 4"]:
    """The boxes in pixels of the network input, when each image just fits it."""
    images = {annotation.image_id: annotation for annotation in annotations}.values()
    placed = [letterbox_placement((image.height, image.width), input_shape).apply(image.boxes) for image in images]
    return torch.from_numpy(np.concatenate([np.zeros((0, 4), dtype=np.float32), *placed]))


def _shorter_sides(boxes: Float[Tensor, "G 4"]) -> Float[Tensor, " G"]:
    return (boxes[:, 2:] - boxes[:, :2]).amin(dim=-1)
