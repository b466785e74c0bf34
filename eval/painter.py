"""Painted copies of images, and their JPEG files.

`paint`: ground truth purple, right detections green, wrong ones yellow. `paint_detections`: without ground truth, each
class in its own colour. `paint_objects`: objects with their anchor points.
"""

import colorsys
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from config.errors import UserError, reading
from dl.annotations import Annotation
from eval.label_layout import BoxLabel, Colour, LabelRect, draw_with_legend
from eval.matching import best_first, class_overlaps, match_greedily
from eval.predictor import Detections
from ops.files import file_name_of, write_atomic

PURPLE = (150, 40, 235)  # ground truth
GREEN = (0, 205, 75)  # right: matched to an object of its class
YELLOW = (255, 212, 0)  # wrong
RED = (255, 64, 48)  # an object without an anchor point
_INK = {PURPLE: (255, 255, 255), GREEN: (0, 24, 8), YELLOW: (40, 28, 0)}  # readable text colours on each
_EDGE = (16, 16, 20)  # dark line beside a coloured one, in case the image has the same colour
_MIN_CANVAS_SIDE = 640  # `paint_objects` enlarges smaller images: anchor points and letters must be distinguishable
_JPEG_QUALITY = 92
_MARK = b"painted by Mars"
_MAX_STEM_BYTES = 200  # a file name may have 255; a number, the suffix and the marks of a draft are added


class MatchedDetections(NamedTuple):
    """The detections to paint, highest score first, and the result of their matching."""

    detections: Detections
    is_right: Bool[np.ndarray, " K"]
    is_found: Bool[np.ndarray, " N"]  # objects with a right detection


class MarkedObject(NamedTuple):
    """An object to paint: its box and anchor points in pixels of the image, and the text of its label."""

    box: tuple[float, float, float, float]  # xyxy
    text: str
    colour: Colour
    points: Float[np.ndarray, "P 2"]
    strides: Float[np.ndarray, " P"]  # in pixels of the image


def match_for_painting(
    annotation: Annotation, detections: Detections, min_iou: float, paint_conf: float
) -> MatchedDetections:
    """Match detections of at least `paint_conf` to the objects of their class, as `match_greedily` does."""
    detections = best_first(detections, paint_conf)
    matched = match_greedily(class_overlaps(detections, annotation), min_iou)
    is_found = np.zeros(len(annotation.labels), dtype=bool)
    is_found[matched[matched >= 0]] = True
    return MatchedDetections(detections, matched >= 0, is_found)


def paint(
    image: UInt8[np.ndarray, "H W 3"],
    annotation: Annotation,
    detections: Detections,
    class_names: Sequence[str],
    min_iou: float = 0.5,
    paint_conf: float = 0.2,
) -> UInt8[np.ndarray, "H W 3"]:
    """A painted copy of the RGB image, of the same size. The image itself does not change.

    Every object is outlined in purple, with its class if it was missed; every detection of at least `paint_conf` in
    green or yellow, with class and score (on a crowded image only the score, or no label for the lowest scores). Line
    width and font size depend on the size of the image.
    """
    canvas = Image.fromarray(image)  # a copy
    matched = match_for_painting(annotation, detections, min_iou, paint_conf)
    objects = [_to_pixels(box, canvas.size) for box in annotation.boxes.tolist()]
    found = [_to_pixels(box, canvas.size) for box in matched.detections.boxes.tolist()]
    colours = [GREEN if is_right else YELLOW for is_right in matched.is_right.tolist()]
    draw, line = ImageDraw.Draw(canvas), _line_width(canvas)
    for box in objects:
        _outline(draw, box, PURPLE, 2 * line)  # twice the width: visible inside a green line that covers it
    # Higher scores are drawn last, so that they lie on top; the stable sort then puts right above wrong.
    lowest_first = list(zip(found, colours, strict=True))[::-1]
    for box, colour in sorted(lowest_first, key=lambda pair: pair[1] == GREEN):
        _outline(draw, box, colour, line)
    scores, labels = matched.detections.scores.tolist(), matched.detections.labels.tolist()
    box_labels = [
        BoxLabel(f"{class_names[int(label)]} {score:.2f}", f"{score:.2f}", box, colour, _INK[colour])
        for box, label, score, colour in zip(found, labels, scores, colours, strict=True)
    ]
    missed = zip(objects, annotation.labels.tolist(), matched.is_found.tolist(), strict=True)
    box_labels += [
        BoxLabel(class_names[int(label)], "", box, PURPLE, _INK[PURPLE])
        for box, label, is_found in missed
        if not is_found
    ]
    num_right = colours.count(GREEN)
    entries = [
        (PURPLE, f"truth {len(objects)}"),
        (GREEN, f"right {num_right}"),
        (YELLOW, f"wrong {len(found) - num_right}"),
    ]
    draw_with_legend(canvas, box_labels, entries, [*objects, *found])
    return np.asarray(canvas)


def paint_detections(
    image: UInt8[np.ndarray, "H W 3"], detections: Detections, class_names: Sequence[str], paint_conf: float = 0.2
) -> UInt8[np.ndarray, "H W 3"]:
    """A painted copy of an RGB image without ground truth: each detection of at least `paint_conf` in its class colour.

    Labels show class and score (on a crowded image only the class, or no label for the lowest scores). A legend counts
    the detections of each class.
    """
    canvas = Image.fromarray(image)
    keep = detections.scores >= paint_conf
    boxes = [_to_pixels(box, canvas.size) for box in detections.boxes[keep].tolist()]
    labels, scores = detections.labels[keep].tolist(), detections.scores[keep].tolist()
    draw, line = ImageDraw.Draw(canvas), _line_width(canvas)
    for box, label in reversed(list(zip(boxes, labels, strict=True))):  # the highest score on top
        _outline(draw, box, _EDGE, line + max(1, line // 2))
        _outline(draw, box, class_colour(label), line)
    box_labels = [
        BoxLabel(f"{class_names[int(label)]} {score:.2f}", class_names[int(label)], box, colour, _ink_on(colour))
        for box, label, score in zip(boxes, labels, scores, strict=True)
        for colour in [class_colour(label)]
    ]
    counts = sorted(Counter(labels).items())
    entries = [(class_colour(label), f"{class_names[label]} {count}") for label, count in counts]
    draw_with_legend(canvas, box_labels, entries, boxes)
    return np.asarray(canvas)


def paint_objects(
    image: UInt8[np.ndarray, "H W 3"], objects: Sequence[MarkedObject], legend: Sequence[tuple[Colour, str]] = ()
) -> UInt8[np.ndarray, "h w 3"]:
    """A painted copy of an RGB image with objects and anchor points. A small image is enlarged by a whole factor."""
    scale = max(1, round(_MIN_CANVAS_SIDE / max(image.shape[:2])))
    canvas = Image.fromarray(image).resize((image.shape[1] * scale, image.shape[0] * scale), Image.Resampling.NEAREST)
    draw, line = ImageDraw.Draw(canvas), _line_width(canvas)
    rects = [_to_pixels([scale * side for side in marked.box], canvas.size) for marked in objects]
    for marked, rect in zip(objects, rects, strict=True):
        draw.rectangle((rect.x0, rect.y0, rect.x1 - 1, rect.y1 - 1), outline=marked.colour, width=line)
    for marked in objects:
        for (x, y), stride in zip((marked.points * scale).tolist(), (marked.strides * scale).tolist(), strict=True):
            radius = min(stride / 3, 1.5 + stride / 10)  # larger on coarser maps, but neighbours never touch
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=marked.colour, outline=_EDGE)
    labels = [
        BoxLabel(marked.text, marked.text.partition(" ")[0], rect, marked.colour, _ink_on(marked.colour))
        for marked, rect in zip(objects, rects, strict=True)
        if marked.text
    ]
    draw_with_legend(canvas, labels, legend, rects)
    return np.asarray(canvas)


def contact_sheet(images: Sequence[UInt8[np.ndarray, "h w 3"]], gap: int = 8) -> UInt8[np.ndarray, "H W 3"]:
    """Images of one size in a grid with about as many rows as columns. Raises `ValueError` without images."""
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    columns = math.ceil(math.sqrt(len(images)))
    rows, (height, width) = math.ceil(len(images) / columns), images[0].shape[:2]
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def class_colour(label: int) -> Colour:
    """A bright colour, the same for a label in every image. Colours of neighbouring labels differ much."""
    hue = (0.33 + label * 0.6180339887) % 1  # multiples of the golden ratio spread over the colour circle
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.9, 0.55)[label // 10 % 2], 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _ink_on(colour: Colour) -> Colour:
    """Black or white, whichever is easier to read on the colour."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else (255, 255, 255)


def write_jpeg(path: Path, image: UInt8[np.ndarray, "H W 3"]) -> Path:
    """Write an RGB image as JPEG, atomically, with a comment by which `is_painted` recognises it."""
    content = io.BytesIO()
    options = {"quality": _JPEG_QUALITY, "subsampling": 0, "comment": _MARK}  # 0: thin lines keep their colour
    Image.fromarray(image).save(content, "JPEG", **options)
    return write_atomic(path, content.getvalue())


def is_painted(file: Path) -> bool:
    """Did `write_jpeg` write this file? False for other files and for files that cannot be read."""
    if not os.path.isfile(file):  # reading a named pipe would block
        return False
    try:
        with reading(file, "a JPEG"), Image.open(file, formats=["JPEG"]) as image:
            return image.info.get("comment") == _MARK
    except UserError:
        return False


def remove_painted(folder: Path) -> None:
    """Remove the painted images of an earlier call from the folder. Other files stay."""
    for file in folder.glob("*.jpg"):
        if is_painted(file):
            file.unlink()


def refuse_overwriting_pictures(folder: Path, image_ids: Iterable[str], alternative: str) -> None:
    """Raise `UserError` when a painted copy of one of these images would overwrite a file that Mars did not paint.

    `alternative`: what the user can do instead of moving the file; the end of the message.
    """
    for name in file_names(image_ids).values():
        if os.path.lexists(folder / name) and not is_painted(folder / name):
            raise UserError(
                f"{folder / name}: was not painted by Mars and would be overwritten; move it away{alternative}"
            )


def file_names(image_ids: Iterable[str]) -> dict[str, str]:
    """image id -> the name of its JPEG: `id.jpg` without path separators. Names differ also if case is ignored."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    used: Counter[str] = Counter()  # the last number behind a stem: counting from 1 each time would take quadratic time
    for image_id in image_ids:
        name = stem = file_name_of(image_id.lstrip("."), 120, _MAX_STEM_BYTES) or "image"
        while name.casefold() in taken:
            used[stem.casefold()] += 1
            name = f"{stem}-{used[stem.casefold()] + 1}"
        taken.add(name.casefold())
        names[image_id] = f"{name}.jpg"
    return names


def _line_width(canvas: Image.Image) -> int:
    return max(1, round(max(canvas.size) / 420))


def _outline(draw: ImageDraw.ImageDraw, box: LabelRect, colour: Colour, width: int) -> None:
    """The border of the box, drawn inwards from its edge; thinner on a box that the line would fill."""
    width = max(1, min(width, min(box.x1 - box.x0, box.y1 - box.y0) // 5))
    draw.rectangle((box.x0, box.y0, box.x1 - 1, box.y1 - 1), outline=colour, width=width)


def _to_pixels(box: Sequence[float], size: tuple[int, int]) -> LabelRect:
    """The whole pixels that a box covers, inside the image and at least one pixel."""
    x0, y0 = (min(max(round(low), 0), limit - 1) for low, limit in zip(box[:2], size, strict=True))
    x1, y1 = (min(round(high), limit) for high, limit in zip(box[2:], size, strict=True))
    return LabelRect(x0, y0, max(x0 + 1, x1), max(y0 + 1, y1))
