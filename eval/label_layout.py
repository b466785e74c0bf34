"""Labels and the legend on an image: where they are placed so that they stay readable, and how they are drawn.

A rectangle is x0, y0, x1, y1 in whole pixels; x1 and y1 are the first column and row outside it.
"""

import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

log = logging.getLogger("mars")

Colour = tuple[int, int, int]
_MIN_FONT_SIZE = 10.0  # pixels; smaller letters cannot be read
_MAX_COVERED = 0.35  # share of the image that labels may cover
_LEGEND_BACKGROUND = (24, 24, 28)


class LabelRect(NamedTuple):
    x0: int
    y0: int
    x1: int
    y1: int


class BoxLabel(NamedTuple):
    """The label of a box and its colours. `short` replaces the text on a crowded image; "" means no label then."""

    text: str
    short: str
    box: LabelRect
    ground: Colour
    ink: Colour


class PlacedLabel(NamedTuple):
    """A label with its place. The text fits into the rectangle."""

    text: str
    rect: LabelRect
    ground: Colour
    ink: Colour


def font_for(size: tuple[int, int]) -> ImageFont.FreeTypeFont:
    """A font that is readable when an image of this width and height fills the screen."""
    return _font(max(_MIN_FONT_SIZE, round((size[0] * size[1]) ** 0.5 / 44, 1)))


@lru_cache(maxsize=32)
def _font(font_size: float) -> ImageFont.FreeTypeFont:
    # The font of Pillow has ASCII letters only. This one comes with matplotlib and has Latin, Greek and Cyrillic
    # letters. The basic layout engine does not fail for any text.
    file = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(file, font_size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=8)
def drawable_names(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, with `class N` for names that the font cannot draw (Chinese ones). The log lists the replacements."""
    missing = _pixels_of("\uffff")  # the box that the font draws for a letter it does not have
    names = tuple(
        name if all(letter.isspace() or _pixels_of(letter) != missing for letter in name) else f"class {label}"
        for label, name in enumerate(class_names)
    )
    for name, drawn in zip(class_names, names, strict=True):
        if name != drawn:
            log.info("painted images show '%s' instead of %s: the font does not have these letters", drawn, name)
    return names


def _pixels_of(letter: str) -> bytes:
    canvas = Image.new("L", (48, 48))
    ImageDraw.Draw(canvas).text((8, 8), letter, fill=255, font=_font(24.0))
    return canvas.tobytes()


def place_labels(
    labels: Sequence[BoxLabel], size: tuple[int, int], taken: Sequence[LabelRect] = ()
) -> list[PlacedLabel]:
    """A place at its box for each label, inside the image. The first labels are placed first.

    A label goes above its box, or below, inside or beside it, where it covers no other label and no rectangle of
    `taken`; if every place covers something, where it covers the least. Text wider than the image is cut. If the labels
    cover more than a third of the image, their short texts are used; if these are still too many, the last labels are
    left out.
    """
    _, height = _label_measure(size)
    occupied, placed = [tuple(rect) for rect in taken], []
    for label, text, width in _fitting_labels(labels, size):
        places = np.array([_moved_inside(place, size) for place in _candidate_places(label.box, width, height)])
        covered = _covered(places, np.array(occupied, dtype=int).reshape(-1, 4))
        rect = LabelRect(*places[covered.argmin()].tolist())  # the first place with the smallest overlap
        occupied.append(tuple(rect))
        placed.append(PlacedLabel(text, rect, label.ground, label.ink))
    return placed


def draw_with_legend(
    canvas: Image.Image,
    labels: Sequence[BoxLabel],
    entries: Sequence[tuple[Colour, str]],
    boxes: Sequence[LabelRect],
) -> None:
    """Draw labels and, if it fits, the legend `entries`. The legend avoids `boxes`; the labels avoid the legend.

    The first labels lie on top. Without entries there is no legend.
    """
    legend = place_legend(entries, canvas.size, boxes) if entries else None
    placed = place_labels(labels, canvas.size, [legend] if legend else [])
    draw, font, (pad, height) = ImageDraw.Draw(canvas), font_for(canvas.size), _label_measure(canvas.size)
    for label in reversed(placed):
        rect = label.rect
        draw.rectangle((rect.x0, rect.y0, rect.x1 - 1, rect.y1 - 1), fill=label.ground)
        draw.text((rect.x0 + pad, rect.y0 + height / 2), label.text, fill=label.ink, font=font, anchor="lm")
    if legend:
        _draw_legend(canvas, entries, legend)


def place_legend(
    entries: Sequence[tuple[Colour, str]], size: tuple[int, int], boxes: Sequence[LabelRect]
) -> LabelRect | None:
    """The corner where the legend covers the fewest pixels of the boxes; None when the image is too small for it."""
    font, (pad, label_height) = font_for(size), _label_measure(size)
    swatch = label_height - 2 * pad
    width = sum(swatch + 3 * pad + math.ceil(font.getlength(text)) for _, text in entries) + 2 * pad
    height = label_height + 2 * pad
    if width > 0.7 * size[0] or height > 0.12 * size[1]:
        return None
    right, bottom = size[0] - width, size[1] - height
    corners = np.array([(x, y, x + width, y + height) for x, y in ((0, bottom), (right, bottom), (0, 0), (right, 0))])
    covered = _covered(corners, np.array(boxes, dtype=int).reshape(-1, 4))
    return LabelRect(*corners[covered.argmin()].tolist())


def _draw_legend(canvas: Image.Image, entries: Sequence[tuple[Colour, str]], rect: LabelRect) -> None:
    """A dark, half transparent strip with the meaning of each colour."""
    font, (pad, height) = font_for(canvas.size), _label_measure(canvas.size)
    ground = canvas.crop(rect)
    canvas.paste(Image.blend(ground, Image.new("RGB", ground.size, _LEGEND_BACKGROUND), 0.75), rect[:2])
    draw, swatch, middle = ImageDraw.Draw(canvas), height - 2 * pad, (rect.y0 + rect.y1) / 2
    x = rect.x0 + 2 * pad
    for colour, text in entries:
        top = round(middle - swatch / 2)
        draw.rectangle((x, top, x + swatch - 1, top + swatch - 1), fill=colour)
        draw.text((x + swatch + pad, middle), text, fill=(255, 255, 255), font=font, anchor="lm")
        x += swatch + 3 * pad + math.ceil(font.getlength(text))


def _label_measure(size: tuple[int, int]) -> tuple[int, int]:
    """Padding beside the text, and height, of every label on an image of this size."""
    font_size = font_for(size).size
    return max(2, round(font_size / 4)), math.ceil(font_size * 1.25)


def _fitting_labels(labels: Sequence[BoxLabel], size: tuple[int, int]) -> list[tuple[BoxLabel, str, int]]:
    """The labels that do not cover too much of the image, each with its text and width."""
    font, (pad, height) = font_for(size), _label_measure(size)

    def measured(texts: Sequence[str]) -> list[tuple[BoxLabel, str, int]]:
        cut = [_shortened(text, font, size[0] - 2 * pad) for text in texts]
        widths = [min(size[0], math.ceil(font.getlength(text)) + 2 * pad) for text in cut]
        return [entry for entry in zip(labels, cut, widths, strict=True) if entry[1]]

    max_width = _MAX_COVERED * size[0] * size[1] / height  # of all labels side by side
    chosen = measured([label.text for label in labels])
    if sum(width for _, _, width in chosen) > max_width:
        chosen = measured([label.short for label in labels])
    ends = accumulate(width for _, _, width in chosen)
    return [entry for entry, end in zip(chosen, ends, strict=True) if end <= max_width]


def _candidate_places(box: LabelRect, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Rectangles to try, the preferred ones first: outside the box before inside, where they hide the object."""
    left, right = box.x0, box.x1 - width
    above, below, top, bottom = box.y0 - height, box.y1, box.y0, box.y1 - height
    beside_left, beside_right = box.x0 - width, box.x1
    corners = [
        (left, above), (right, above), (left, top), (left, below), (right, below), (right, top),
        (left, bottom), (right, bottom),
        (beside_right, top), (beside_left, top), (beside_right, bottom), (beside_left, bottom),
    ]  # fmt: skip
    return [(x, y, x + width, y + height) for x, y in corners]


def _moved_inside(rect: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = rect
    x = max(0, min(x0, size[0] - (x1 - x0)))
    y = max(0, min(y0, size[1] - (y1 - y0)))
    return x, y, x + x1 - x0, y + y1 - y0


def _covered(rects: np.ndarray, obstacles: np.ndarray) -> np.ndarray:
    """Pixels of each of the (P, 4) `rects` that the (Q, 4) `obstacles` cover, summed over the obstacles: (P,)."""
    low = np.maximum(rects[:, None, :2], obstacles[None, :, :2])
    high = np.minimum(rects[:, None, 2:], obstacles[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2).sum(axis=1)


def _shortened(text: str, font: ImageFont.FreeTypeFont, max_width: int) -> str:
    if font.getlength(text) <= max_width:
        return text
    while text and font.getlength(text + "…") > max_width:
        text = text[:-1]
    return text + "…"
