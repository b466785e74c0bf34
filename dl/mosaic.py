"""The modern augmentation: mosaic of four images, random scale, shift, flip and colours.

In theory four images are placed on a canvas with twice the sides of the input, and the canvas is scaled and shifted
onto the input. In practice the plan has, in whole pixels, the visible part of each image and its position, and only
that part is resized and pasted. Boxes follow exactly these pixels. With rotation, shear or perspective, the whole
scaled canvas is made and warped onto the input. Ranges, order and the rule for keeping boxes are those of Ultralytics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from dl.augment import Shape, change_colours, resize_fast
from dl.warp import MIN_SIDE, Matrix, clip_boxes, large_enough, warp_boxes, warp_image, warp_matrix

MOSAIC_GREY = 114  # colour of the padding; Ultralytics' value

SOURCE_STEP = 4  # a visible part begins and ends at multiples of it, so that halving it twice is fast

MAX_CLOSED_SHARE = 1 / 3  # at most this share of all epochs runs without mosaic: docs/experiments.md, section 4


@dataclass(frozen=True)
class ModernRanges:
    """Ranges of the random augmentation; the defaults are Ultralytics'."""

    mosaic: float = 1.0  # probability of four images instead of one
    mosaic_end: int | None = None  # first position without mosaic; None: every epoch has mosaic
    scale: float = 0.5  # size times U(1 - x, 1 + x)
    translate: float = 0.1  # the canvas' centre is at U(.5 - x, .5 + x) of the input
    flip: float = 0.5  # probability
    hue: float = 0.015  # shift by U(-1, 1) * x of the colour circle
    saturation: float = 0.7  # times 1 + U(-1, 1) * x
    value: float = 0.4
    flip_vertical: float = 0.0  # probability of upside down
    rotate: float = 0.0  # by U(-1, 1) * x degrees, about the centre of the canvas
    shear: float = 0.0  # by U(-1, 1) * x degrees, in both directions
    perspective: float = 0.0  # the scale changes by U(-1, 1) * x from the centre of the canvas to its edge

    @property
    def has_warp(self) -> bool:
        """Whether the canvas has to be warped; without, images are only resized and pasted, which is faster."""
        return self.rotate > 0 or self.shear > 0 or self.perspective > 0

    @property
    def always_dropped(self) -> float:
        """Boxes of at most this side length (in pixels of the letterboxed image) are dropped at every scale."""
        return MIN_SIDE / (1 + self.scale)

    def has_mosaic(self, position: float) -> bool:
        """Whether an epoch at this position may have mosaics. The position is the epoch, unless trainMinutes is set."""
        return self.mosaic > 0 and (self.mosaic_end is None or position < self.mosaic_end)


def first_epoch_without_mosaic(max_epoch: int, close_mosaic: int) -> int:
    """Mosaic ends `close_mosaic` epochs before `max_epoch`. In a short run it ends later, so that most epochs have it.

    Epochs are counted from 0, also in a run that starts at a later epoch, like the epochs of the learning rate. A run
    that trainMinutes shortens passes through the same positions in fewer epochs, so mosaic has the same share of it.
    """
    return max_epoch - min(close_mosaic, round(MAX_CLOSED_SHARE * max_epoch))


class PixelRect(NamedTuple):
    """A rectangle given by pixel edges, of an image or of the network input; it may extend beyond the input."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.right)


class Tile(NamedTuple):
    """`source` of the image is resized to the size of `target` and pasted there; only `window` of it is visible."""

    index: int  # of the image in the data set
    source: PixelRect
    target: PixelRect
    window: PixelRect  # inside target, canvas and input; never empty


@dataclass(frozen=True)
class MosaicPlan:
    """The visible tiles, without overlap. Parts of images outside of `canvas` are not visible."""

    input_shape: Shape
    tiles: tuple[Tile, ...]
    canvas: PixelRect  # on the input
    is_flipped: bool
    hue: float  # of the circle; 0 changes nothing
    saturation: float  # gains; 1 changes nothing
    value: float
    is_upside_down: bool = False
    warp: Matrix | None = None  # of the input, before the flips; None: no rotation, shear or perspective


def draw_mosaic(
    rng: np.random.Generator,
    index: int,
    sizes: Int64[np.ndarray, "N 2"],
    input_shape: Shape,
    ranges: ModernRanges,
    has_mosaic: bool = True,
    same_group: Int64[np.ndarray, " _"] | None = None,
) -> MosaicPlan:
    """A random augmentation of image `index`; it depends only on `rng`. `sizes`: height and width of all N images.

    `has_mosaic`: whether the epoch may have mosaics. Partners are chosen from all images, or from the indexes
    `same_group`; the same image may be chosen twice. Every random number is drawn, used or not, so that an image has
    the same colours and flip with and without mosaic. Those of the vertical flip and the warp come last and only where
    they are used, so that they do not change the others.
    """
    is_mosaic = bool(rng.random() < ranges.mosaic) and has_mosaic
    partners = rng.integers(len(sizes), size=3) if same_group is None else rng.choice(same_group, size=3)
    side = np.array(input_shape[::-1], dtype=np.float64)  # from here on: x before y
    joint = rng.uniform(-0.5, 0.5, 2) * side  # the point where four images meet, relative to the canvas' centre
    scale = rng.uniform(1 - ranges.scale, 1 + ranges.scale)
    centre = rng.uniform(0.5 - ranges.translate, 0.5 + ranges.translate, 2) * side
    is_flipped = bool(rng.random() < ranges.flip)
    hue, saturation, value = rng.uniform(-1, 1, 3) * (ranges.hue, ranges.saturation, ranges.value)
    is_upside_down = ranges.flip_vertical > 0 and bool(rng.random() < ranges.flip_vertical)
    extent = 2 * side * scale if is_mosaic else _extent(sizes[index], side, scale)
    warp = _draw_warp(rng, centre, extent, ranges) if ranges.has_warp else None
    canvas = _rect(centre - extent / 2, centre + extent / 2)
    limits = _on_input(canvas, side) if warp is None else canvas  # the warp may turn any part of the canvas into view
    if is_mosaic:
        corner = np.round(centre + joint * scale)
        tiles = _four_tiles(corner, [index, *map(int, partners)], sizes, side, scale, limits)
    else:
        tiles = [_tile(index, sizes[index], canvas, limits)]
    visible = tuple(tile for tile in tiles if tile is not None)
    gains = float(hue), float(1 + saturation), float(1 + value)
    return MosaicPlan(input_shape, visible, canvas, is_flipped, *gains, is_upside_down, warp)


def _draw_warp(rng: np.random.Generator, centre: np.ndarray, extent: np.ndarray, ranges: ModernRanges) -> Matrix:
    """Turns, shears and tilts the canvas of this extent about its centre. Scale and position are in the tiles."""
    angle, shear_x, shear_y, *tilts = rng.uniform(-1, 1, 5)
    tilt_x, tilt_y = np.array(tilts) * ranges.perspective / (extent / 2)
    shear = shear_x * ranges.shear, shear_y * ranges.shear
    return warp_matrix(centre, centre, angle * ranges.rotate, shear, (tilt_x, tilt_y))


def apply_mosaic(
    plan: MosaicPlan,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    boxes: Sequence[Float32[np.ndarray, "_ 4"]],
    labels: Sequence[Int64[np.ndarray, " _"]],
) -> tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "M 4"], Int64[np.ndarray, " M"]]:
    """The network input of the plan and its labels. `images`, `boxes` and `labels` have one entry for each tile.

    Boxes are clipped to the visible part. A box is kept if its sides are above 2 px, its area is more than a tenth of
    its (scaled) area on the canvas, and its aspect ratio is below 100. Colours of the padding change, too, so that the
    network does not learn one grey as padding; at evaluation it is a different grey. No tiles or no boxes: (0, 4) and
    (0,).
    """
    height, width = plan.input_shape
    # Without a warp, tiles are pasted directly onto the input; else onto the whole canvas, which is warped afterwards.
    whole = PixelRect(0, 0, width, height) if plan.warp is None else plan.canvas
    canvas = np.full((whole.bottom - whole.top, whole.right - whole.left, 3), MOSAIC_GREY, dtype=np.uint8)
    out_boxes, out_labels = [np.zeros((0, 4), dtype=np.float32)], [np.zeros(0, dtype=np.int64)]
    for tile, image, image_boxes, image_labels in zip(plan.tiles, images, boxes, labels, strict=True):
        _paste(tile, image, canvas, whole)
        moved, is_valid = _move_boxes(tile, plan, image_boxes)
        out_boxes.append(moved[is_valid])
        out_labels.append(image_labels[is_valid])
    if plan.warp is not None:
        from_canvas = plan.warp @ warp_matrix((0, 0), whole[:2])
        canvas = warp_image(canvas, from_canvas, plan.input_shape, MOSAIC_GREY)
    hues = np.arange(256) + plan.hue * 180
    canvas = change_colours(canvas, hues, plan.saturation, plan.value)
    all_boxes = np.concatenate(out_boxes)
    if plan.is_flipped:
        canvas = cv2.flip(canvas, 1)
        all_boxes[:, [0, 2]] = width - all_boxes[:, [2, 0]]
    if plan.is_upside_down:
        canvas = cv2.flip(canvas, 0)
        all_boxes[:, [1, 3]] = height - all_boxes[:, [3, 1]]
    return canvas, all_boxes, np.concatenate(out_labels)


def _four_tiles(
    corner: np.ndarray, indexes: Sequence[int], sizes: np.ndarray, side: np.ndarray, scale: float, limits: PixelRect
) -> list[Tile | None]:
    """Tiles above left, above right, below left and below right of the corner where they meet."""
    tiles = []
    for index, is_right_or_below in zip(indexes, ((0, 0), (1, 0), (0, 1), (1, 1)), strict=True):
        extent = _extent(sizes[index], side, scale)
        start = np.where(is_right_or_below, corner, corner - extent)
        tiles.append(_tile(index, sizes[index], _rect(start, start + extent), limits))
    return tiles


def _extent(size: np.ndarray, side: np.ndarray, scale: float) -> np.ndarray:
    """Width and height of an image of `size` (height, width) fitted to the input, times `scale`; at least 1 pixel."""
    shape = size[::-1].astype(np.float64)
    return np.maximum(shape * (side / shape).min() * scale, 1)


def _tile(index: int, size: np.ndarray, whole: PixelRect, limits: PixelRect) -> Tile | None:
    """The tile of an image that is resized to `whole` of the input and visible within `limits`; None if invisible."""
    across = _axis_of_tile(int(size[1]), whole.left, whole.right, limits.left, limits.right)
    down = _axis_of_tile(int(size[0]), whole.top, whole.bottom, limits.top, limits.bottom)
    if across is None or down is None:
        return None
    return Tile(index, *(PixelRect(x[0], y[0], x[1], y[1]) for x, y in zip(across, down, strict=True)))


def _axis_of_tile(
    length: int, start: int, stop: int, low: int, high: int
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    """One axis of a tile: source, target and window; None if nothing is visible.

    Source pixels that cover only a part of the outermost visible pixel are included, so the target may be wider than
    the window. In a cropped image, pixels are at most half a pixel away from their position in the whole image.
    """
    first, last = max(low, start), min(high, stop)
    if first >= last:
        return None
    factor = (stop - start) / length
    begin = math.floor((first - start) / factor) // SOURCE_STEP * SOURCE_STEP
    end = min(length, -(-math.ceil((last - start) / factor) // SOURCE_STEP) * SOURCE_STEP)
    target = round(start + begin * factor), round(start + end * factor)
    return (begin, end), target, (first, last)


def _rect(low: np.ndarray, high: np.ndarray) -> PixelRect:
    """Round the edges to whole pixels."""
    return PixelRect(*(round(float(edge)) for edge in (*low, *high)))


def _on_input(rect: PixelRect, side: np.ndarray) -> PixelRect:
    """The part of a rectangle that is on the input."""
    width, height = (int(length) for length in side)
    return PixelRect(max(rect.left, 0), max(rect.top, 0), min(rect.right, width), min(rect.bottom, height))


def _paste(tile: Tile, image: np.ndarray, canvas: np.ndarray, whole: PixelRect) -> None:
    """`whole`: the rectangle of the input that `canvas` covers."""
    source, target, window = tile.source, tile.target, tile.window
    part = image[source.rows, source.columns]
    resized = resize_fast(part, target.right - target.left, target.bottom - target.top)
    rows = slice(window.top - target.top, window.bottom - target.top)
    columns = slice(window.left - target.left, window.right - target.left)
    visible = canvas[window.top - whole.top : window.bottom - whole.top, window.left - whole.left :]
    visible[:, : window.right - window.left] = resized[rows, columns]


def _move_boxes(tile: Tile, plan: MosaicPlan, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of the tile's image on the input (before the flip), and whether each is kept."""
    source, target, window = (np.array(rect, dtype=np.float64) for rect in (tile.source, tile.target, tile.window))
    factor = (target[2:] - target[:2]) / (source[2:] - source[:2])
    corners = (boxes.reshape(-1, 2, 2) - source[:2]) * factor + target[:2]
    canvas = np.array(plan.canvas)
    on_canvas, visible = (corners.clip(limits[:2], limits[2:]).reshape(-1, 4) for limits in (canvas, window))
    if plan.warp is not None:
        on_canvas = warp_boxes(on_canvas, plan.warp)
        visible = clip_boxes(warp_boxes(visible, plan.warp), plan.input_shape)
    return visible.astype(np.float32), large_enough(visible, (on_canvas[:, 2:] - on_canvas[:, :2]).prod(axis=1))
