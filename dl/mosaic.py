"""The modern augmentation: four images joined into one, scaled, shifted, mirrored, in other colours.

What is described is a canvas of twice the input's sides on which the images lie, and a random scaling and shift of
that canvas onto the input. What is done is less: the plan holds, in whole pixels, which part of each image can be seen
and where, and only that part is resized and pasted. Boxes follow these very pixels. Ranges, order and the rule by which
boxes are kept are those of Ultralytics' training, whose rotation, shear and perspective are 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from dl.augment import Shape, change_colours, resize

MOSAIC_GREY = 114  # of what no image covers; the peer's value

CLOSED_SHARE = 1 / 3  # of all epochs, at most, run without mosaic: docs/experiments.md, section 4

# Of a box there must be left: sides above 2 px, a tenth of its area, and no shape like a line.
_MIN_SIDE, _MIN_AREA, _MAX_ASPECT = 2, 0.1, 100


@dataclass(frozen=True)
class ModernRanges:
    """How far the augmentation may go; the defaults are the peer's."""

    mosaic: float = 1.0  # probability of four images instead of one
    mosaic_end: int | None = None  # first epoch without mosaic; None: it never ends
    scale: float = 0.5  # size times U(1 - x, 1 + x)
    translate: float = 0.1  # the canvas' centre lies at U(.5 - x, .5 + x) of the input
    flip: float = 0.5  # probability
    hue: float = 0.015  # shift by U(-1, 1) * x of the colour circle
    saturation: float = 0.7  # times 1 + U(-1, 1) * x
    value: float = 0.4

    @property
    def always_dropped(self) -> float:
        """A box of this side or less, where the image just fits the input, is dropped however far it is enlarged."""
        return _MIN_SIDE / (1 + self.scale)

    def has_mosaic(self, epoch: int) -> bool:
        """May four images be joined in this epoch?"""
        return self.mosaic > 0 and (self.mosaic_end is None or epoch < self.mosaic_end)


def first_epoch_without_mosaic(max_epoch: int, close_mosaic: int) -> int:
    """Mosaic ends `close_mosaic` epochs before `max_epoch`; in a short run later, so that it has most of the epochs.

    Epochs count from 0, also in a run that starts at a later one, as those of the learning rate do.
    """
    return max_epoch - min(close_mosaic, round(CLOSED_SHARE * max_epoch))


class Rect(NamedTuple):
    """Pixel edges; of an image, or of the input, which it may leave."""

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
    """`source` of the image is resized to the size of `target` and put there; only `window` of it shows."""

    index: int  # of the image in the data set
    source: Rect
    target: Rect
    window: Rect  # inside target, canvas and input, never empty


@dataclass(frozen=True)
class MosaicPlan:
    """Tiles that can be seen, none overlaps another; what lies outside `canvas` was lost when it was laid out."""

    input_shape: Shape
    tiles: tuple[Tile, ...]
    canvas: Rect  # on the input
    is_flipped: bool
    hue: float  # of the circle; 0 changes nothing
    saturation: float  # gains; 1 changes nothing
    value: float


def draw_mosaic(
    rng: np.random.Generator,
    index: int,
    sizes: Int64[np.ndarray, "N 2"],
    input_shape: Shape,
    ranges: ModernRanges,
    epoch: int = 0,
    alike: Int64[np.ndarray, " _"] | None = None,
) -> MosaicPlan:
    """The augmentation of image `index`, drawn from `rng` alone; `sizes` are height and width of all N images.

    The partners are drawn from all images, or from those numbered in `alike`; the same one may come twice. Every number
    is drawn whether it is used or not, so that an image keeps its colours and its mirroring when mosaic is closed.
    """
    is_mosaic = bool(rng.random() < ranges.mosaic) and ranges.has_mosaic(epoch)
    partners = rng.integers(len(sizes), size=3) if alike is None else rng.choice(alike, size=3)
    side = np.array(input_shape[::-1], dtype=np.float64)  # x before y from here on
    joint = rng.uniform(-0.5, 0.5, 2) * side  # where four images meet, seen from the canvas' centre
    scale = rng.uniform(1 - ranges.scale, 1 + ranges.scale)
    centre = rng.uniform(0.5 - ranges.translate, 0.5 + ranges.translate, 2) * side
    is_flipped = bool(rng.random() < ranges.flip)
    hue, saturation, value = rng.uniform(-1, 1, 3) * (ranges.hue, ranges.saturation, ranges.value)
    if is_mosaic:
        corner = np.round(centre + joint * scale)
        canvas = _rect(centre - side * scale, centre + side * scale)
        tiles = _four(corner, [index, *map(int, partners)], sizes, side, scale, canvas)
    else:
        extent = _extent(sizes[index], side, scale)
        canvas = _rect(centre - extent / 2, centre + extent / 2)
        tiles = [_tile(index, sizes[index], canvas, _within(canvas, side))]
    seen = tuple(tile for tile in tiles if tile is not None)
    return MosaicPlan(input_shape, seen, canvas, is_flipped, float(hue), float(1 + saturation), float(1 + value))


def apply_mosaic(
    plan: MosaicPlan,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    boxes: Sequence[Float32[np.ndarray, "_ 4"]],
    labels: Sequence[Int64[np.ndarray, " _"]],
) -> tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "M 4"], Int64[np.ndarray, " M"]]:
    """The network input of the plan and the labels on it; one image with its boxes and labels for each tile.

    Boxes are clipped to what is seen and kept with sides above 2 px, more than a tenth of the (scaled) area they had on
    the canvas, and an aspect below 100. Colours change on padding, too, so that no shade of grey means "padding": at
    evaluation it has another. No tiles or no boxes: (0, 4) and (0,).
    """
    height, width = plan.input_shape
    picture = np.full((height, width, 3), MOSAIC_GREY, dtype=np.uint8)
    moved, kept = [np.zeros((0, 4), dtype=np.float32)], [np.zeros(0, dtype=np.int64)]
    for tile, image, of_image, of_boxes in zip(plan.tiles, images, boxes, labels, strict=True):
        _paste(tile, image, picture)
        on_input, is_kept = _follow(tile, plan.canvas, of_image)
        moved.append(on_input[is_kept])
        kept.append(of_boxes[is_kept])
    hues = np.arange(256) + plan.hue * 180
    picture = change_colours(picture, hues, plan.saturation, plan.value)
    all_boxes = np.concatenate(moved)
    if plan.is_flipped:
        picture = cv2.flip(picture, 1)
        all_boxes[:, [0, 2]] = width - all_boxes[:, [2, 0]]
    return picture, all_boxes, np.concatenate(kept)


def _four(
    corner: np.ndarray, indexes: Sequence[int], sizes: np.ndarray, side: np.ndarray, scale: float, canvas: Rect
) -> list[Tile | None]:
    """Above left, above right, below left, below right of the corner that all of them touch."""
    limits = _within(canvas, side)
    tiles = []
    for index, is_right_or_below in zip(indexes, ((0, 0), (1, 0), (0, 1), (1, 1)), strict=True):
        extent = _extent(sizes[index], side, scale)
        start = np.where(is_right_or_below, corner, corner - extent)
        tiles.append(_tile(index, sizes[index], _rect(start, start + extent), limits))
    return tiles


def _extent(size: np.ndarray, side: np.ndarray, scale: float) -> np.ndarray:
    """Width and height of an image (height, width) that fits the input, times `scale`; at least a pixel each."""
    shape = size[::-1].astype(np.float64)
    return np.maximum(shape * (side / shape).min() * scale, 1)


def _tile(index: int, size: np.ndarray, whole: Rect, limits: Rect) -> Tile | None:
    """The image resized to `whole` of the input and seen within `limits`; None where nothing is seen."""
    across = _span(int(size[1]), whole.left, whole.right, limits.left, limits.right)
    down = _span(int(size[0]), whole.top, whole.bottom, limits.top, limits.bottom)
    if across is None or down is None:
        return None
    return Tile(index, *(Rect(x[0], y[0], x[1], y[1]) for x, y in zip(across, down, strict=True)))


def _span(
    length: int, start: int, stop: int, low: int, high: int
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    """One axis of a tile: the image's pixels that are needed, where they go, and what of that is seen.

    Pixels that only share in the outermost one seen are taken along whole, hence a target that is wider than the
    window. Where the image is cut, its pixels land at most half a pixel from where the uncut image has them.
    """
    first, last = max(low, start), min(high, stop)
    if first >= last:
        return None
    factor = (stop - start) / length
    begin, end = math.floor((first - start) / factor), min(length, math.ceil((last - start) / factor))
    target = round(start + begin * factor), round(start + end * factor)
    return (begin, end), target, (first, last)


def _rect(low: np.ndarray, high: np.ndarray) -> Rect:
    """The nearest whole edges."""
    return Rect(*(round(float(edge)) for edge in (*low, *high)))


def _within(rect: Rect, side: np.ndarray) -> Rect:
    """The part of a rectangle that lies on the input."""
    width, height = (int(length) for length in side)
    return Rect(max(rect.left, 0), max(rect.top, 0), min(rect.right, width), min(rect.bottom, height))


def _paste(tile: Tile, image: np.ndarray, picture: np.ndarray) -> None:
    source, target, window = tile.source, tile.target, tile.window
    part = image[source.rows, source.columns]
    resized = resize(part, target.right - target.left, target.bottom - target.top)
    rows = slice(window.top - target.top, window.bottom - target.top)
    columns = slice(window.left - target.left, window.right - target.left)
    picture[window.rows, window.columns] = resized[rows, columns]


def _follow(tile: Tile, canvas: Rect, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of the tile's image on the input, before it is mirrored, and which of them are worth keeping."""
    source, target, window = (np.array(rect, dtype=np.float64) for rect in (tile.source, tile.target, tile.window))
    factor = (target[2:] - target[:2]) / (source[2:] - source[:2])
    placed = (boxes - np.tile(source[:2], 2)) * np.tile(factor, 2) + np.tile(target[:2], 2)
    laid_out, seen = _clipped(placed, np.array(canvas)), _clipped(placed, window)
    sides = seen[:, 2:] - seen[:, :2]
    is_large = (sides > _MIN_SIDE).all(axis=1)
    is_enough = sides.prod(axis=1) > _MIN_AREA * (laid_out[:, 2:] - laid_out[:, :2]).prod(axis=1)
    is_no_line = sides.max(axis=1) < _MAX_ASPECT * sides.min(axis=1)
    return seen.astype(np.float32), is_large & is_enough & is_no_line


def _clipped(boxes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    return boxes.clip(np.tile(limits[:2], 2), np.tile(limits[2:], 2))
