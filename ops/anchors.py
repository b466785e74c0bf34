"""Anchor points, and the way from a raw map to boxes and back.

Legend: B images, A points of all maps together (8400 at 640 x 640), C classes, R bins a side (regMax).
Raw maps are (B, 4R + C, h, w): the box channels come first, R for each of left, top, right, bottom.
A distance is measured from a point to a side of its box, in strides of the point's map.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ops.precision import without_autocast

STRIDES = (8, 16, 32)  # pixels of the network input a cell of each map covers


class Anchors(NamedTuple):
    """Where the cells of all maps look: their centres and strides, map after map, row by row."""

    points: Float[Tensor, "A 2"]  # x, y in pixels of the network input
    strides: Float[Tensor, " A"]  # pixels


class FlatMaps(NamedTuple):
    """Raw maps, flattened: what the head says at every point."""

    distributions: Float[Tensor, "B A 4R"]
    logits: Float[Tensor, "B A C"]


@lru_cache(maxsize=64)
def make_anchors(
    shapes: tuple[tuple[int, int], ...],
    strides: tuple[int, ...] = STRIDES,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Anchors:
    """The points of maps with these (height, width), kept between steps so that none is rebuilt or copied again."""
    with torch.inference_mode(False):  # a tensor made and cached under inference mode could not enter a loss later
        points, steps = [], []
        for (height, width), stride in zip(shapes, strides, strict=True):
            x = (torch.arange(width, device=device, dtype=dtype) + 0.5) * stride
            y = (torch.arange(height, device=device, dtype=dtype) + 0.5) * stride
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            points.append(torch.stack((grid_x, grid_y), dim=-1).reshape(-1, 2))
            steps.append(torch.full((height * width,), float(stride), device=device, dtype=dtype))
        return Anchors(torch.cat(points), torch.cat(steps))


def anchors_of(raw_maps: Sequence[Tensor], strides: tuple[int, ...] = STRIDES) -> Anchors:
    """The points that belong to these raw maps, on their device, in float32 or better."""
    shapes = tuple((raw.shape[2], raw.shape[3]) for raw in raw_maps)
    return make_anchors(shapes, tuple(strides), raw_maps[0].device, full_precision(raw_maps[0]).dtype)


def flatten_maps(raw_maps: Sequence[Tensor], reg_max: int) -> FlatMaps:
    """Raw maps [(B, 4R + C, h, w), ...] -> distributions (B, A, 4R) and logits (B, A, C), in float32 or better."""
    rows = torch.cat([full_precision(raw).flatten(2) for raw in raw_maps], dim=2).transpose(1, 2)
    distributions, logits = rows.split((4 * reg_max, rows.shape[2] - 4 * reg_max), dim=2)
    return FlatMaps(distributions, logits)


def expected_distances(distributions: Float[Tensor, "*A four_R"]) -> Float[Tensor, "*A 4"]:
    """Logits over R bins a side -> expected distance of each side, in strides (Li et al. 2020, arXiv 2006.04388)."""
    with without_autocast(distributions.device):  # autocast would round the product to half precision
        bins = full_precision(distributions).unflatten(-1, (4, -1)).softmax(dim=-1)
        return bins @ torch.arange(bins.shape[-1], device=bins.device, dtype=bins.dtype)


def distances_to_boxes(points: Float[Tensor, "A 2"], distances: Float[Tensor, "*B A 4"]) -> Float[Tensor, "*B A 4"]:
    """Distances to left, top, right, bottom -> boxes, all in the unit of the points."""
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)


def boxes_to_distances(points: Float[Tensor, "A 2"], boxes: Float[Tensor, "*B A 4"]) -> Float[Tensor, "*B A 4"]:
    """Boxes -> distances to left, top, right, bottom, in the unit of the points; negative from outside."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)


def decode_boxes(
    distributions: Float[Tensor, "B A four_R"], points: Float[Tensor, "A 2"], strides: Float[Tensor, " A"]
) -> Float[Tensor, "B A 4"]:
    """Distributions -> boxes in pixels of the network input."""
    distances = expected_distances(distributions) * strides[:, None]
    return distances_to_boxes(points, distances)


def full_precision(value: Tensor) -> Tensor:
    """Half precision becomes float32 (a float16 above 512 moves in steps of half a pixel); the rest stays as it is."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
