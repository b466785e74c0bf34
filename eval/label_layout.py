"""Small filled labels on an image: where they go so that they stay readable, and how they are drawn.

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
_SMALLEST_LETTERS = 10.0  # pixels; below this nobody reads them
_MOST_COVERED = 0.35  # share of an image that chips may take; the picture is what one came to see
_LEGEND_GROUND = (24, 24, 28)


class PixelRect(NamedTuple):
    x0: int
    y0: int
    x1: int
    y1: int


class BoxLabel(NamedTuple):
    """What is to be said about a box, on a chip of this colour; in a crowd `short` is said instead, if anything."""

    text: str
    short: str
    box: PixelRect
    ground: Colour
    ink: Colour


class PlacedLabel(NamedTuple):
    """A label that has found its place; the text fits."""

    text: str
    rect: PixelRect
    ground: Colour
    ink: Colour


def font_for(size: tuple[int, int]) -> ImageFont.FreeTypeFont:
    """Letters that read on an image of this width and height when it fills a screen."""
    return _font(max(_SMALLEST_LETTERS, round((size[0] * size[1]) ** 0.5 / 44, 1)))


@lru_cache(maxsize=32)
def _font(letters: float) -> ImageFont.FreeTypeFont:
    # Pillow's own letters end after ASCII; these come with matplotlib and write Latin, Greek and Cyrillic names. The
    # basic layout never fails, whatever stands in a name.
    file = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(file, letters, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=8)
def drawable_names(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, with `class N` for those that our letters cannot write (Chinese, say); the log tells which."""
    unknown = _shape_of("\uffff")  # the box that stands for a letter the font does not have
    names = tuple(
        name if all(letter.isspace() or _shape_of(letter) != unknown for letter in name) else f"class {label}"
        for label, name in enumerate(class_names)
    )
    for name, shown in zip(class_names, names, strict=True):
        if name != shown:
            log.info("painted images say '%s' for %s, which their letters cannot write", shown, name)
    return names


def _shape_of(letter: str) -> bytes:
    canvas = Image.new("L", (48, 48))
    ImageDraw.Draw(canvas).text((8, 8), letter, fill=255, font=_font(24.0))
    return canvas.tobytes()


def place_labels(
    labels: Sequence[BoxLabel], size: tuple[int, int], taken: Sequence[PixelRect] = ()
) -> list[PlacedLabel]:
    """A place in the image for each label, at its box; the first labels get the best places.

    A chip goes above its box, else below, inside or beside it, wherever it covers no other chip and nothing of `taken`;
    where everything is covered, it covers as little as it can. Text wider than the image is cut with an ellipsis.
    Labels that would fill more than a third of the image are said in short; if that is too much, the last get no chip.
    """
    _, height = _chip_measure(size)
    occupied, chips = [tuple(rect) for rect in taken], []
    for label, text, width in _affordable(labels, size):
        places = np.array([_pushed_inside(place, size) for place in _places(label.box, width, height)])
        covered = _covered(places, np.array(occupied, dtype=int).reshape(-1, 4))
        rect = PixelRect(*places[covered.argmin()].tolist())  # the first of the least
        occupied.append(tuple(rect))
        chips.append(PlacedLabel(text, rect, label.ground, label.ink))
    return chips


def draw_labels(canvas: Image.Image, chips: Sequence[PlacedLabel]) -> None:
    """Fill each chip and write on it; the first chips lie on top."""
    draw, font, (pad, height) = ImageDraw.Draw(canvas), font_for(canvas.size), _chip_measure(canvas.size)
    for chip in reversed(chips):
        rect = chip.rect
        draw.rectangle((rect.x0, rect.y0, rect.x1 - 1, rect.y1 - 1), fill=chip.ground)
        draw.text((rect.x0 + pad, rect.y0 + height / 2), chip.text, fill=chip.ink, font=font, anchor="lm")


def place_legend(
    entries: Sequence[tuple[Colour, str]], size: tuple[int, int], boxes: Sequence[PixelRect]
) -> PixelRect | None:
    """The corner where a legend hides least of the boxes; None on an image too small to spare the room."""
    width, height = _legend_measure(entries, size)
    if width > 0.7 * size[0] or height > 0.12 * size[1]:
        return None
    right, bottom = size[0] - width, size[1] - height
    corners = np.array([(x, y, x + width, y + height) for x, y in ((0, bottom), (right, bottom), (0, 0), (right, 0))])
    covered = _covered(corners, np.array(boxes, dtype=int).reshape(-1, 4))
    return PixelRect(*corners[covered.argmin()].tolist())


def draw_legend(canvas: Image.Image, entries: Sequence[tuple[Colour, str]], rect: PixelRect) -> None:
    """A dark, half transparent strip that says what each colour means."""
    font, (pad, height) = font_for(canvas.size), _chip_measure(canvas.size)
    ground = canvas.crop(rect)
    canvas.paste(Image.blend(ground, Image.new("RGB", ground.size, _LEGEND_GROUND), 0.75), rect[:2])
    draw, swatch, middle = ImageDraw.Draw(canvas), height - 2 * pad, (rect.y0 + rect.y1) / 2
    x = rect.x0 + 2 * pad
    for colour, text in entries:
        top = round(middle - swatch / 2)
        draw.rectangle((x, top, x + swatch - 1, top + swatch - 1), fill=colour)
        draw.text((x + swatch + pad, middle), text, fill=(255, 255, 255), font=font, anchor="lm")
        x += swatch + 3 * pad + math.ceil(font.getlength(text))


def _chip_measure(size: tuple[int, int]) -> tuple[int, int]:
    """Padding beside the text, and height, of every chip on an image of this size."""
    letters = font_for(size).size
    return max(2, round(letters / 4)), math.ceil(letters * 1.25)


def _legend_measure(entries: Sequence[tuple[Colour, str]], size: tuple[int, int]) -> tuple[int, int]:
    font, (pad, height) = font_for(size), _chip_measure(size)
    swatch = height - 2 * pad
    return sum(swatch + 3 * pad + math.ceil(font.getlength(text)) for _, text in entries) + 2 * pad, height + 2 * pad


def _affordable(labels: Sequence[BoxLabel], size: tuple[int, int]) -> list[tuple[BoxLabel, str, int]]:
    """Labels with the text there is room for, and the width of its chip."""
    font, (pad, height) = font_for(size), _chip_measure(size)

    def measured(texts: Sequence[str]) -> list[tuple[BoxLabel, str, int]]:
        cut = [_shortened(text, font, size[0] - 2 * pad) for text in texts]
        widths = [min(size[0], math.ceil(font.getlength(text)) + 2 * pad) for text in cut]
        return [entry for entry in zip(labels, cut, widths, strict=True) if entry[1]]

    room = _MOST_COVERED * size[0] * size[1] / height  # pixels of chips, side by side
    chosen = measured([label.text for label in labels])
    if sum(width for _, _, width in chosen) > room:
        chosen = measured([label.short for label in labels])
    return [
        entry for entry, end in zip(chosen, accumulate(width for _, _, width in chosen), strict=True) if end <= room
    ]


def _places(box: PixelRect, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Rectangles to try, the best first: outside the box before inside, where they would hide the object."""
    left, right = box.x0, box.x1 - width
    above, below, top, bottom = box.y0 - height, box.y1, box.y0, box.y1 - height
    beside_left, beside_right = box.x0 - width, box.x1
    corners = [
        (left, above), (right, above), (left, top), (left, below), (right, below), (right, top),
        (left, bottom), (right, bottom),
        (beside_right, top), (beside_left, top), (beside_right, bottom), (beside_left, bottom),
    ]  # fmt: skip
    return [(x, y, x + width, y + height) for x, y in corners]


def _pushed_inside(rect: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = rect
    x = max(0, min(x0, size[0] - (x1 - x0)))
    y = max(0, min(y0, size[1] - (y1 - y0)))
    return x, y, x + x1 - x0, y + y1 - y0


def _covered(rects: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many pixels of each of (P, 4) `rects` the (Q, 4) `others` cover, counted for every one of them: (P,)."""
    low = np.maximum(rects[:, None, :2], others[None, :, :2])
    high = np.minimum(rects[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2).sum(axis=1)


def _shortened(text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
