"""What is done to a sample: one plan of plain numbers, then its execution.

The plan holds every decision, so that an augmentation can be logged, repeated and tested without chance. Boxes follow
pixels exactly: an image resized from w to w' columns moves an edge at x to x * w' / w, with the integers really used.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8

from ops.batch import Letterbox

GREY = 128  # of what no pixel covers; the assignment's value
_MIN_SIDE = 1  # of a box there must be left more than this in width and height

Shape = tuple[int, int]  # height, width


@dataclass(frozen=True)
class AugmentRanges:
    """How far an augmentation may go; the defaults are the assignment's."""

    jitter: float = 0.3  # aspect times U(1 - j, 1 + j) / U(1 - j, 1 + j)
    scale: tuple[float, float] = (0.25, 2.0)  # of the size at which the image just fits the input
    flip: float = 0.5  # probability
    hue: float = 0.1  # gains 1 + U(-1, 1) * value
    saturation: float = 0.7
    value: float = 0.4

    @property
    def always_dropped(self) -> float:
        """A box of this side or less, where the image just fits the input, is dropped however far it is enlarged."""
        return _MIN_SIDE / (self.scale[1] * (1 + self.jitter) / (1 - self.jitter))


@dataclass(frozen=True)
class AugmentPlan:
    """Resize to width x height, place the result at (left, top) of the input, mirror, multiply colours."""

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
    """One augmentation of an image of this height and width, drawn from `rng` alone."""
    height, width = input_shape
    low, high = 1 - ranges.jitter, 1 + ranges.jitter
    aspect = image_shape[1] / image_shape[0] * rng.uniform(low, high) / rng.uniform(low, high)
    fitting_height = min(height, width / aspect)
    scale = rng.uniform(*ranges.scale)
    new_height = max(1, round(fitting_height * scale))
    new_width = max(1, round(fitting_height * aspect * scale))
    left, top = _place(rng, width - new_width), _place(rng, height - new_height)
    is_flipped = bool(rng.random() < ranges.flip)
    gains = 1 + rng.uniform(-1, 1, 3) * (ranges.hue, ranges.saturation, ranges.value)
    return AugmentPlan(input_shape, new_width, new_height, left, top, is_flipped, *map(float, gains))


def _place(rng: np.random.Generator, spare: int) -> int:
    """An offset that wastes nothing: inside when there is room, else cropped without a border."""
    return int(rng.integers(min(0, spare), max(0, spare), endpoint=True))


def apply_plan(
    plan: AugmentPlan,
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float32[np.ndarray, "N 4"],
    labels: Int64[np.ndarray, " N"],
) -> tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "M 4"], Int64[np.ndarray, " M"]]:
    """The network input of the plan and the labels on it; the arguments are left as they are.

    Boxes are clipped to the input; those of which 1 px or less is left in width or height are dropped, as the
    assignment does. Padding stays grey whatever the colours do. No boxes: (0, 4) and (0,).
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
    boxes, is_kept = _follow(plan, image.shape[:2], boxes)
    return canvas, boxes[is_kept], labels[is_kept]


def letterbox(image: UInt8[np.ndarray, "H W 3"], input_shape: Shape) -> tuple[UInt8[np.ndarray, "h w 3"], Letterbox]:
    """The image as large as it fits, centred on grey, with the inverse that takes boxes back to the image."""
    placed = place(image.shape[:2], input_shape)
    columns, rows = round(placed.width * placed.scale_x), round(placed.height * placed.scale_y)
    left, top = int(placed.offset_x), int(placed.offset_y)
    canvas = np.full((*input_shape, 3), GREY, dtype=np.uint8)
    canvas[top : top + rows, left : left + columns] = resize(image, columns, rows)
    return canvas, placed


def place(image_shape: Shape, input_shape: Shape) -> Letterbox:
    """Where `letterbox` puts an image of this height and width."""
    height, width = input_shape
    rows, columns = image_shape
    scale = min(height / rows, width / columns)
    new_height, new_width = max(1, round(rows * scale)), max(1, round(columns * scale))
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return Letterbox(new_width / columns, new_height / rows, float(left), float(top), rows, columns)


def resize(image: UInt8[np.ndarray, "H W 3"], width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image at another size; itself where it has that size."""
    rows, columns = image.shape[:2]
    if (columns, rows) == (width, height):
        return image
    # Averaging over areas keeps small objects that plain interpolation would step over.
    is_smaller = width <= columns and height <= rows
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR)


def change_colours(
    image: UInt8[np.ndarray, "H W 3"], hues: Shaped[np.ndarray, "256"], saturation: float, value: float
) -> UInt8[np.ndarray, "H W 3"]:
    """The image with hue h of OpenCV's byte images (0 to 179, a circle) at `hues[h]`, the rest times the gains."""
    levels = np.arange(256)
    tables = (hues % 180, (levels * saturation).clip(0, 255), (levels * value).clip(0, 255))
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    lookup = np.stack(tables, axis=-1).astype(np.uint8)[None]  # (1, 256, 3)
    return cv2.cvtColor(cv2.LUT(hsv, lookup), cv2.COLOR_HSV2RGB)


def _follow(plan: AugmentPlan, image_shape: tuple[int, ...], boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes on the input and which of them are large enough to keep."""
    height, width = plan.input_shape
    scale = np.array([plan.width / image_shape[1], plan.height / image_shape[0]] * 2)
    moved = boxes * scale + np.array([plan.left, plan.top] * 2)
    if plan.is_flipped:
        moved = np.stack([width - moved[:, 2], moved[:, 1], width - moved[:, 0], moved[:, 3]], axis=1)
    moved = moved.clip(0, np.array([width, height] * 2)).astype(np.float32)
    is_kept = np.all(moved[:, 2:] - moved[:, :2] > _MIN_SIDE, axis=1)
    return moved, np.asarray(is_kept)
