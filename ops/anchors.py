"""Anchor points, and the conversion between raw maps and boxes.

Legend: B images, A anchor points of all maps together (8400 at 640 x 640), C classes, R bins per side (regMax).
A raw map is (B, 4R + C, h, w). The box channels come first: R for each of left, top, right, bottom.
A distance is measured from an anchor point to a side of its box, in strides of the point's map.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ops.device import without_autocast

INSIDE_MARGIN = 1e-9  # pixels; an anchor point on the border of a box is outside, as in Ultralytics
COUNTED_SIDE = 16.0  # pixels; `pair_limits` counts shorter sides as this long
STRIDES = (8, 16, 32)  # width and height of a cell of each map, in pixels of the network input


class Anchors(NamedTuple):
    """Centres and strides of the cells of all maps, map after map, row by row."""

    points: Float[Tensor, "A 2"]  # x, y in pixels of the network input
    strides: Float[Tensor, " A"]  # pixels


class FlatMaps(NamedTuple):
    """The raw maps, flattened: the output of the head at every anchor point."""

    distributions: Float[Tensor, "B A 4R"]
    logits: Float[Tensor, "B A C"]


@lru_cache(maxsize=64)
def make_anchors(
    shapes: tuple[tuple[int, int], ...],
    strides: tuple[int, ...] = STRIDES,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Anchors:
    """The anchor points of maps with these (height, width). They are cached, so that no step builds them again."""
    # A tensor that is created in inference mode cannot be used in a loss later, and the cache would keep it.
    with torch.inference_mode(False):
        points: list[Tensor] = []
        steps: list[Tensor] = []
        for (height, width), stride in zip(shapes, strides, strict=True):
            # The anchor point of a cell is its centre: (column + 0.5, row + 0.5) * stride.
            x = (torch.arange(width, device=device, dtype=dtype) + 0.5) * stride
            y = (torch.arange(height, device=device, dtype=dtype) + 0.5) * stride
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            points.append(torch.stack((grid_x, grid_y), dim=-1).reshape(-1, 2))
            steps.append(torch.full((height * width,), float(stride), device=device, dtype=dtype))
        return Anchors(torch.cat(points), torch.cat(steps))


def anchors_of(raw_maps: Sequence[Tensor], strides: tuple[int, ...] = STRIDES) -> Anchors:
    """The anchor points of these raw maps, on their device, in float32 or float64."""
    shapes = tuple((raw.shape[2], raw.shape[3]) for raw in raw_maps)
    return make_anchors(shapes, tuple(strides), raw_maps[0].device, full_precision(raw_maps[0]).dtype)


def points_inside(
    points: Float[Tensor, "A 2"], boxes: Float[Tensor, "*G 4"], min_side: float = 0.0
) -> Bool[Tensor, "*G A"]:
    """Does each anchor point lie strictly inside each xyxy box? No box: an empty result.

    `min_side`: sides shorter than this many pixels count as this long, so that small boxes contain anchor points, too.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    if min_side > 0:
        centre, half = (low + high) / 2, ((high - low) / 2).clamp(min=min_side / 2)
        low, high = centre - half, centre + half
    low, high = low + INSIDE_MARGIN, high - INSIDE_MARGIN
    x, y = points.to(boxes.dtype).unbind(-1)  # (A,) against (G, 1)
    # Comparisons give bytes; in place, since (G, A) is large.
    is_inside = x > low[..., :1]
    for is_right in (x < high[..., :1], y > low[..., 1:], y < high[..., 1:]):
        is_inside &= is_right
    return is_inside


def pair_limits(
    boxes: Float[Tensor, "B M 4"], input_shape: tuple[int, int], strides: tuple[int, ...] = STRIDES
) -> tuple[int, int]:
    """At least the number of pairs of a box and an anchor point inside it, of all boxes and of one box.

    Computed on the CPU from the sizes of the boxes, so that the assigner need not ask a GPU. `boxes` in pixels, also
    outside the input of height and width `input_shape`. It holds for every `min_side` up to `COUNTED_SIDE`.
    """
    # NaN, which no point is inside of, counts as 0, and infinity as the largest number.
    sides = (boxes[..., 2:] - boxes[..., :2]).nan_to_num(0).clamp(min=COUNTED_SIDE)
    counts = torch.zeros(boxes.shape[:2])
    for stride in strides:
        # Centres lie a stride apart: a side of n strides has at most n + 1 of them, and at most all of the map.
        cells = sides.new_tensor([input_shape[1] // stride, input_shape[0] // stride])
        counts += ((sides / stride).floor() + 1).minimum(cells).prod(dim=-1)
    return int(counts.sum()), int(counts.max()) if counts.numel() else 0


def flatten_maps(raw_maps: Sequence[Tensor], reg_max: int) -> FlatMaps:
    """Raw maps [(B, 4R + C, h, w), ...] -> distributions (B, A, 4R) and logits (B, A, C), in float32 or float64."""
    distributions: list[Tensor] = []
    logits: list[Tensor] = []
    for raw in raw_maps:
        # flatten(2) joins rows and columns, in the order of `make_anchors`; transpose puts the channels last, where
        # channels-last maps have them in memory, too.
        rows = full_precision(raw).flatten(2).transpose(1, 2)
        box_channels, class_channels = torch.split(rows, [4 * reg_max, rows.shape[2] - 4 * reg_max], dim=2)
        distributions.append(box_channels)
        logits.append(class_channels)
    return FlatMaps(torch.cat(distributions, dim=1), torch.cat(logits, dim=1))


def expected_distances(distributions: Float[Tensor, "*A four_R"]) -> Float[Tensor, "*A 4"]:
    """Logits over R bins per side -> expected distance of each side, in strides.

    distance = sum over i of i * softmax(logits)_i (general distribution of Li et al. 2020, arXiv 2006.04388).
    """
    with without_autocast(distributions.device):  # autocast would round the product to half precision
        # The expectation, not the most likely bin: it has a gradient, and it lies between the bins.
        bins = torch.unflatten(full_precision(distributions), -1, (4, -1)).softmax(dim=-1)
        return bins @ torch.arange(bins.shape[-1], device=bins.device, dtype=bins.dtype)


def distances_to_boxes(points: Float[Tensor, "A 2"], distances: Float[Tensor, "*B A 4"]) -> Float[Tensor, "*B A 4"]:
    """Distances to left, top, right, bottom -> boxes, all in the unit of the anchor points."""
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)


def boxes_to_distances(points: Float[Tensor, "A 2"], boxes: Float[Tensor, "*B A 4"]) -> Float[Tensor, "*B A 4"]:
    """Boxes -> distances to left, top, right, bottom, in the unit of the anchor points; negative outside the box."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)


def decode_boxes(
    distributions: Float[Tensor, "B A four_R"],
    points: Float[Tensor, "A 2"],
    strides: Float[Tensor, " A"],
    distances: Callable[[Tensor], Tensor] = expected_distances,
) -> Float[Tensor, "B A 4"]:
    """Distributions -> boxes in pixels of the network input. `distances`: how the head decodes its box channels."""
    # Distances are in strides of each map; times the stride they are pixels, the unit of the anchor points.
    return distances_to_boxes(points, distances(distributions) * strides[:, None])


def full_precision(value: Tensor) -> Tensor:
    """Convert half precision to float32; leave other types as they are.

    Between 512 and 1024 a float16 number can only be a multiple of 0.5, too coarse for a coordinate.
    """
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
