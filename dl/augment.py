"""The assignment's augmentation and the letterbox: a plan of plain numbers, then its execution.

The plan has every decision, so that an augmentation can be logged, repeated and tested without randomness. Boxes
follow the pixels exactly: if an image is resized from w to w' columns (integers), an edge at x moves to x * w' / w.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8

from ops.batch import Letterbox

GREY = 128  # colour of the padding; the assignment's value
_MIN_SIDE = 1  # boxes with at most this remaining width or height are dropped

Shape = tuple[int, int]  # height, width


@dataclass(frozen=True)
class AugmentRanges:
    """Ranges of the random augmentation; the defaults are the assignment's."""

    jitter: float = 0.3  # aspect ratio times U(1 - j, 1 + j) / U(1 - j, 1 + j)
    scale: tuple[float, float] = (0.25, 2.0)  # relative to the largest size that fits the input
    flip: float = 0.5  # probability
    hue: float = 0.1  # gains 1 + U(-1, 1) * value
    saturation: float = 0.7
    value: float = 0.4

    @property
    def always_dropped(self) -> float:
        """Boxes of at most this side length (in pixels of the letterboxed image) are dropped at every scale."""
        return _MIN_SIDE / (self.scale[1] * (1 + self.jitter) / (1 - self.jitter))


@dataclass(frozen=True)
class AugmentPlan:
    """Resize to width x height, place the result at (left, top) of the input, flip, multiply colours."""

    input_shape: Shape
    width: int
    height: int
    left: int  # negative: cropped
    top: int
    is_flipped: bool
    hue: float  # gains; 1 changes nothing
    saturation: float
    value: float


def draw_plan(rng: np.random.Generator, image_shape: Shape, input_shape: Shape, ranges: AugmentRanges) -> AugmentPlan:
    """A random augmentation for an image of this height and width; it depends only on `rng`."""
    height, width = input_shape
    low, high = 1 - ranges.jitter, 1 + ranges.jitter
    aspect = image_shape[1] / image_shape[0] * rng.uniform(low, high) / rng.uniform(low, high)
    fitting_height = min(height, width / aspect)
    scale = rng.uniform(*ranges.scale)
    new_height = max(1, round(fitting_height * scale))
    new_width = max(1, round(fitting_height * aspect * scale))
    left, top = _draw_offset(rng, width - new_width), _draw_offset(rng, height - new_height)
    is_flipped = bool(rng.random() < ranges.flip)
    gains = 1 + rng.uniform(-1, 1, 3) * (ranges.hue, ranges.saturation, ranges.value)
    return AugmentPlan(input_shape, new_width, new_height, left, top, is_flipped, *map(float, gains))


def _draw_offset(rng: np.random.Generator, spare: int) -> int:
    """A random offset. A smaller image (spare > 0) stays completely inside; a larger image leaves no padding."""
    return int(rng.integers(min(0, spare), max(0, spare), endpoint=True))


def apply_plan(
    plan: AugmentPlan,
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float32[np.ndarray, "N 4"],
    labels: Int64[np.ndarray, " N"],
) -> tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "M 4"], Int64[np.ndarray, " M"]]:
    """The network input of the plan and its labels; the arguments are not changed.

    Boxes are clipped to the input. Boxes with at most 1 px of remaining width or height are dropped, as in the
    assignment. Colour changes do not affect the padding. No boxes: (0, 4) and (0,).
    """
    height, width = plan.input_shape
    columns = slice(max(0, plan.left), min(width, plan.left + plan.width))
    rows = slice(max(0, plan.top), min(height, plan.top + plan.height))
    resized = resize(image, plan.width, plan.height)
    visible = resized[
        rows.start - plan.top : rows.stop - plan.top, columns.start - plan.left : columns.stop - plan.left
    ]
    canvas = np.full((height, width, 3), GREY, dtype=np.uint8)
    canvas[rows, columns] = change_colours(visible, np.arange(256) * plan.hue, plan.saturation, plan.value)
    if plan.is_flipped:
        canvas = cv2.flip(canvas, 1)
    boxes, is_large = _move_boxes(plan, image.shape[:2], boxes)
    return canvas, boxes[is_large], labels[is_large]


def letterbox(image: UInt8[np.ndarray, "H W 3"], input_shape: Shape) -> tuple[UInt8[np.ndarray, "h w 3"], Letterbox]:
    """The image in the largest size that fits, centred on grey; and the inverse that maps boxes back to the image."""
    placement = letterbox_placement(image.shape[:2], input_shape)
    columns, rows = round(placement.width * placement.scale_x), round(placement.height * placement.scale_y)
    left, top = int(placement.offset_x), int(placement.offset_y)
    canvas = np.full((*input_shape, 3), GREY, dtype=np.uint8)
    canvas[top : top + rows, left : left + columns] = resize(image, columns, rows)
    return canvas, placement


def letterbox_placement(image_shape: Shape, input_shape: Shape) -> Letterbox:
    """The position and scale of an image of this height and width in `letterbox`."""
    height, width = input_shape
    rows, columns = image_shape
    scale = min(height / rows, width / columns)
    new_height, new_width = max(1, round(rows * scale)), max(1, round(columns * scale))
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return Letterbox(new_width / columns, new_height / rows, float(left), float(top), rows, columns)


def resize(image: UInt8[np.ndarray, "H W 3"], width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    """Resize an image; the same array is returned if the size is already right."""
    rows, columns = image.shape[:2]
    if (columns, rows) == (width, height):
        return image
    # For smaller sizes use the area average: linear interpolation would skip pixels, and with them small objects.
    is_smaller = width <= columns and height <= rows
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR)


def resize_fast(image: UInt8[np.ndarray, "H W 3"], width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    """Like `resize`, but several times faster for smaller sizes.

    The image is halved as long as it stays large enough, then interpolated linearly. From at most twice the size,
    linear interpolation uses every pixel, so none is skipped. Halving is fast for even sides.
    """
    while image.shape[1] >= 2 * width and image.shape[0] >= 2 * height:
        half = (image.shape[1] + 1) // 2, (image.shape[0] + 1) // 2
        image = cv2.resize(image, half, interpolation=cv2.INTER_AREA)
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def change_colours(
    image: UInt8[np.ndarray, "H W 3"], hues: Shaped[np.ndarray, "256"], saturation: float, value: float
) -> UInt8[np.ndarray, "H W 3"]:
    """Replace hue h (0 to 179, periodic, as in OpenCV's byte images) by `hues[h]`; multiply saturation and value."""
    levels = np.arange(256)
    tables = (hues % 180, (levels * saturation).clip(0, 255), (levels * value).clip(0, 255))
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    lookup = np.stack(tables, axis=-1).astype(np.uint8)[None]  # (1, 256, 3)
    return cv2.cvtColor(cv2.LUT(hsv, lookup), cv2.COLOR_HSV2RGB)


def _move_boxes(plan: AugmentPlan, image_shape: tuple[int, ...], boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes on the network input, and whether each is large enough to keep."""
    height, width = plan.input_shape
    scale = np.array([plan.width / image_shape[1], plan.height / image_shape[0]] * 2)
    moved = boxes * scale + np.array([plan.left, plan.top] * 2)
    if plan.is_flipped:
        moved = np.stack([width - moved[:, 2], moved[:, 1], width - moved[:, 0], moved[:, 3]], axis=1)
    moved = moved.clip(0, np.array([width, height] * 2)).astype(np.float32)
    is_large = np.all(moved[:, 2:] - moved[:, :2] > _MIN_SIDE, axis=1)
    return moved, np.asarray(is_large)
