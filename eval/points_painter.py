"""Objects on an image, each with the points of the grid that answer for it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from eval.label_layout import BoxLabel, Colour, PixelRect, draw_labels, draw_legend, place_labels, place_legend

RED = (255, 64, 48)  # an object without a point
_EDGE, _PALE = (16, 16, 20), (255, 255, 255)
_SMALLEST_SIDE = 640  # of what is painted: smaller images are enlarged, so that points and letters can be told apart


class MarkedObject(NamedTuple):
    """An object to be painted: its box and points in pixels of the image, and what its chip says."""

    box: tuple[float, float, float, float]  # xyxy
    text: str
    colour: Colour
    points: Float[np.ndarray, "P 2"]
    strides: Float[np.ndarray, " P"]  # in pixels of the image


def paint_objects(
    image: UInt8[np.ndarray, "H W 3"], objects: Sequence[MarkedObject], legend: Sequence[tuple[Colour, str]] = ()
) -> UInt8[np.ndarray, "h w 3"]:
    """A painted copy of an RGB image, enlarged by a whole factor when it is small. No objects: no marks."""
    scale = max(1, round(_SMALLEST_SIDE / max(image.shape[:2])))
    canvas = Image.fromarray(image).resize((image.shape[1] * scale, image.shape[0] * scale), Image.Resampling.NEAREST)
    draw, line = ImageDraw.Draw(canvas), max(1, round(max(canvas.size) / 420))
    rects = [_rect(one.box, scale, canvas.size) for one in objects]
    for one, rect in zip(objects, rects, strict=True):
        draw.rectangle((rect.x0, rect.y0, rect.x1 - 1, rect.y1 - 1), outline=one.colour, width=line)
    for one in objects:
        for (x, y), stride in zip((one.points * scale).tolist(), (one.strides * scale).tolist(), strict=True):
            _dot(draw, x, y, stride, one.colour)
    chips = [
        BoxLabel(one.text, one.text.partition(" ")[0], rect, one.colour, _ink_on(one.colour))
        for one, rect in zip(objects, rects, strict=True)
        if one.text
    ]
    place = place_legend(list(legend), canvas.size, rects) if legend else None
    draw_labels(canvas, place_labels(chips, canvas.size, [place] if place else []))
    if place:
        draw_legend(canvas, list(legend), place)
    return np.asarray(canvas)


def contact_sheet(images: Sequence[UInt8[np.ndarray, "h w 3"]], gap: int = 8) -> UInt8[np.ndarray, "H W 3"]:
    """Images of one size side by side, row by row, nearly as many rows as columns. Raises `ValueError` for none."""
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    columns = math.ceil(math.sqrt(len(images)))
    rows, (height, width) = math.ceil(len(images) / columns), images[0].shape[:2]
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, stride: float, colour: Colour) -> None:
    """Larger on coarser maps, and never so large that neighbours touch."""
    radius = min(stride / 3, 1.5 + stride / 10)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=_EDGE)


def _rect(box: tuple[float, float, float, float], scale: int, size: tuple[int, int]) -> PixelRect:
    """The whole pixels that a box covers, inside the image and at least one."""
    x0, y0 = (min(max(round(low * scale), 0), limit - 1) for low, limit in zip(box[:2], size, strict=True))
    x1, y1 = (min(round(high * scale), limit) for high, limit in zip(box[2:], size, strict=True))
    return PixelRect(x0, y0, max(x0 + 1, x1), max(y0 + 1, y1))


def _ink_on(colour: Colour) -> Colour:
    """Black or white letters, whichever stands out."""
    return _EDGE if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 110 else _PALE
