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


class _Style(NamedTuple):
    """Of every label on an image of one size."""

    font: ImageFont.FreeTypeFont
    pad: int  # pixels beside the text
    height: int

    def width(self, text: str) -> int:
        return math.ceil(self.font.getlength(text))


def _style_for(size: tuple[int, int]) -> _Style:
    """Labels are readable when an image of this width and height fills the screen."""
    font = _font(max(_MIN_FONT_SIZE, round((size[0] * size[1]) ** 0.5 / 44, 1)))
    return _Style(font, max(2, round(font.size / 4)), math.ceil(font.size * 1.25))


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
    height = _style_for(size).height
    occupied, placed = [tuple(rect) for rect in taken], []
    for label, text, width in _fitting_labels(labels, size):
        box = label.box
        left, right, above, below = box.x0, box.x1 - width, box.y0 - height, box.y1
        top, bottom, beside_left, beside_right = box.y0, box.y1 - height, box.x0 - width, box.x1
        # The preferred places first: outside the box before inside, where a label hides the object.
        corners = [
            (left, above), (right, above), (left, top), (left, below), (right, below), (right, top),
            (left, bottom), (right, bottom),
            (beside_right, top), (beside_left, top), (beside_right, bottom), (beside_left, bottom),
        ]  # fmt: skip
        inside = np.maximum(0, np.minimum(corners, (size[0] - width, size[1] - height)))
        places = np.concatenate((inside, inside + np.array((width, height))), axis=1)
        covered = _covered(places, occupied)
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

    The first labels lie on top. The legend is a dark, half transparent strip; without entries there is none.
    """
    legend = place_legend(entries, canvas.size, boxes) if entries else None
    placed = place_labels(labels, canvas.size, [legend] if legend else [])
    draw, style = ImageDraw.Draw(canvas), _style_for(canvas.size)
    font, pad, height = style
    for label in reversed(placed):
        rect = label.rect
        draw.rectangle((rect.x0, rect.y0, rect.x1 - 1, rect.y1 - 1), fill=label.ground)
        draw.text((rect.x0 + pad, rect.y0 + height / 2), label.text, fill=label.ink, font=font, anchor="lm")
    if legend is None:
        return
    ground = canvas.crop(legend)
    canvas.paste(Image.blend(ground, Image.new("RGB", ground.size, _LEGEND_BACKGROUND), 0.75), legend[:2])
    swatch, middle = height - 2 * pad, (legend.y0 + legend.y1) / 2
    x, top = legend.x0 + 2 * pad, round(middle - swatch / 2)
    for colour, text in entries:
        draw.rectangle((x, top, x + swatch - 1, top + swatch - 1), fill=colour)
        draw.text((x + swatch + pad, middle), text, fill=(255, 255, 255), font=font, anchor="lm")
        x += swatch + 3 * pad + style.width(text)


def place_legend(
    entries: Sequence[tuple[Colour, str]], size: tuple[int, int], boxes: Sequence[LabelRect]
) -> LabelRect | None:
    """The corner where the legend covers the fewest pixels of the boxes; None when the image is too small for it."""
    style = _style_for(size)
    swatch, height = style.height - 2 * style.pad, style.height + 2 * style.pad
    width = sum(swatch + 3 * style.pad + style.width(text) for _, text in entries) + 2 * style.pad
    if width > 0.7 * size[0] or height > 0.12 * size[1]:
        return None
    right, bottom = size[0] - width, size[1] - height
    corners = np.array([(x, y, x + width, y + height) for x, y in ((0, bottom), (right, bottom), (0, 0), (right, 0))])
    return LabelRect(*corners[_covered(corners, boxes).argmin()].tolist())


def _fitting_labels(labels: Sequence[BoxLabel], size: tuple[int, int]) -> list[tuple[BoxLabel, str, int]]:
    """The labels that do not cover too much of the image, each with its text and width."""
    style = _style_for(size)

    def measured(texts: Sequence[str]) -> list[tuple[BoxLabel, str, int]]:
        found = []
        for label, text in zip(labels, texts, strict=True):
            if text and style.font.getlength(text) > (limit := size[0] - 2 * style.pad):
                while text and style.font.getlength(text + "…") > limit:
                    text = text[:-1]
                text += "…"
            if text:
                found.append((label, text, min(size[0], style.width(text) + 2 * style.pad)))
        return found

    max_width = _MAX_COVERED * size[0] * size[1] / style.height  # of all labels side by side
    chosen = measured([label.text for label in labels])
    if sum(width for _, _, width in chosen) > max_width:
        chosen = measured([label.short for label in labels])
    ends = accumulate(width for _, _, width in chosen)
    return [entry for entry, end in zip(chosen, ends, strict=True) if end <= max_width]


def _covered(rects: np.ndarray, obstacles: Sequence[Sequence[int]]) -> np.ndarray:
    """Pixels of each of the (P, 4) `rects` that the `obstacles` cover, summed over the obstacles: (P,)."""
    others = np.array(obstacles, dtype=int).reshape(-1, 4)
    low = np.maximum(rects[:, None, :2], others[None, :, :2])
    high = np.minimum(rects[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2).sum(axis=1)
