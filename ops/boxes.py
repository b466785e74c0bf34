"""Box arithmetic. A box is xyxy: left, top, right, bottom, in one unit of length; width = right - left, without +1.

Legend: N, M boxes; leading dimensions of the elementwise functions broadcast.
Overlaps are computed in float32 or float64: float16 cannot hold an area above 65504 square pixels.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ops.anchors import full_precision
from ops.safe import safe_divide

EPS = 1e-7  # prevents a division by zero for empty boxes; the value of the reference implementation (Ultralytics)


def cxcywh_to_xyxy(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """Centre, width, height -> corners. Empty input gives empty output."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def pairwise_iou(a: Float[Tensor, "N 4"], b: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Intersection over union of every box of `a` with every box of `b`; 0 where both boxes have no area."""
    # (N, 1, 4) and (1, M, 4): every operation below broadcasts to (N, M)
    a, b = full_precision(a)[:, None, :], full_precision(b)[None, :, :]
    inter = _intersection(a, b)
    union = _area(a) + _area(b) - inter
    return safe_divide(inter, union, least=EPS)


def ciou(a: Float[Tensor, "*#batch 4"], b: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "*_"]:
    """Complete IoU of boxes at the same place in `a` and `b`, elementwise with broadcasting. At most 1.

    CIoU = IoU - d^2 / c^2 - alpha * v (Zheng et al. 2020, arXiv 1911.08287, equations 9-11): d is the distance of the
    centres, c the diagonal of the smallest box around both, and v measures how much the aspect ratios differ. Value and
    gradient of empty boxes are finite. EPS is added where the reference implementation adds it, so that both give the
    same values up to rounding.
    """
    a, b = full_precision(a), full_precision(b)
    # EPS is added to the heights only, as in the reference: the aspect ratio below divides by the height.
    width_a, height_a = a[..., 2] - a[..., 0], a[..., 3] - a[..., 1] + EPS
    width_b, height_b = b[..., 2] - b[..., 0], b[..., 3] - b[..., 1] + EPS
    inter = _intersection(a, b)
    iou = inter / (width_a * height_a + width_b * height_b - inter + EPS)

    # IoU of separate boxes is 0 everywhere and has no gradient. The distance term still pulls the centres together.
    enclosing_width = torch.maximum(a[..., 2], b[..., 2]) - torch.minimum(a[..., 0], b[..., 0])
    enclosing_height = torch.maximum(a[..., 3], b[..., 3]) - torch.minimum(a[..., 1], b[..., 1])
    diagonal2 = enclosing_width.pow(2) + enclosing_height.pow(2) + EPS
    # The sum of both sides is twice the centre, so the square is four times the squared distance: hence / 4.
    shift_x = b[..., 0] + b[..., 2] - a[..., 0] - a[..., 2]
    shift_y = b[..., 1] + b[..., 3] - a[..., 1] - a[..., 3]
    distance2 = (shift_x.pow(2) + shift_y.pow(2)) / 4

    # v = 4 / pi^2 * (arctan(w_b / h_b) - arctan(w_a / h_a))^2, equation 9; alpha = v / (1 - IoU + v), equation 11.
    aspect = (4 / math.pi**2) * (torch.atan(width_b / height_b) - torch.atan(width_a / height_a)).pow(2)
    with torch.no_grad():  # alpha is a weight: the paper sends no gradient through it
        alpha = aspect / (1 - iou + aspect + EPS)
    return iou - (distance2 / diagonal2 + aspect * alpha)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    width = torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])
    height = torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])
    # Each side by itself: for boxes that are apart in both directions, two negative sides would give an area.
    return width.clamp(min=0) * height.clamp(min=0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
