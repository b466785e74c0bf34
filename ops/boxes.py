"""Box arithmetic. A box is xyxy: left, top, right, bottom, in one unit of length; widths are right - left, no +1.

Legend: N, M boxes; leading dimensions of the elementwise functions broadcast.
Overlaps are computed in float32 or better: in float16 an area ends at 65504 square pixels.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ops.anchors import full_precision
from ops.safe import safe_divide

EPS = 1e-7  # keeps empty boxes out of divisions; the size the reference implementation uses


def xyxy_to_cxcywh(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """Corners -> centre, width, height. No boxes give no boxes."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def cxcywh_to_xyxy(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """Centre, width, height -> corners. No boxes give no boxes."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def pairwise_iou(a: Float[Tensor, "N 4"], b: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Intersection over union of every box of `a` with every box of `b`; 0 where both are empty."""
    a, b = full_precision(a)[:, None, :], full_precision(b)[None, :, :]
    inter = _intersection(a, b)
    union = _area(a) + _area(b) - inter
    return safe_divide(inter, union, least=EPS)


def ciou(a: Float[Tensor, "*#batch 4"], b: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "*_"]:
    """Complete IoU of boxes that stand at the same place in `a` and `b`, elementwise with broadcasting: at most 1.

    IoU less the squared distance of the centres over the squared diagonal of the enclosing box, less the difference of
    aspect ratios weighted by alpha, which carries no gradient (Zheng et al. 2020, arXiv 1911.08287, equations 9-11).
    Empty boxes stay finite in value and gradient. EPS stands where the reference implementation has it, so that the
    two agree to rounding.
    """
    a, b = full_precision(a), full_precision(b)
    width_a, height_a = a[..., 2] - a[..., 0], a[..., 3] - a[..., 1] + EPS
    width_b, height_b = b[..., 2] - b[..., 0], b[..., 3] - b[..., 1] + EPS
    inter = _intersection(a, b)
    iou = inter / (width_a * height_a + width_b * height_b - inter + EPS)

    enclosing_width = torch.maximum(a[..., 2], b[..., 2]) - torch.minimum(a[..., 0], b[..., 0])
    enclosing_height = torch.maximum(a[..., 3], b[..., 3]) - torch.minimum(a[..., 1], b[..., 1])
    diagonal2 = enclosing_width.pow(2) + enclosing_height.pow(2) + EPS
    shift_x = b[..., 0] + b[..., 2] - a[..., 0] - a[..., 2]  # twice the distance of the centres
    shift_y = b[..., 1] + b[..., 3] - a[..., 1] - a[..., 3]
    distance2 = (shift_x.pow(2) + shift_y.pow(2)) / 4

    aspect = (4 / math.pi**2) * (torch.atan(width_b / height_b) - torch.atan(width_a / height_a)).pow(2)
    with torch.no_grad():
        alpha = aspect / (1 - iou + aspect + EPS)
    return iou - (distance2 / diagonal2 + aspect * alpha)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    width = torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])
    height = torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])
    return width.clamp(min=0) * height.clamp(min=0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
