"""Truth and predictions painted on the image: truth purple, right predictions green, wrong ones yellow.

Where no truth is known, predictions alone, each class in a colour of its own.

One image is read, painted and written at a time, so that memory does not grow with the split.
"""

import colorsys
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from config.errors import UserError, reading
from dl.annotations import Annotation
from dl.images import read_image
from eval.label_layout import (
    BoxLabel,
    Colour,
    PixelRect,
    draw_labels,
    draw_legend,
    drawable_names,
    place_labels,
    place_legend,
)
from eval.matching import best_first, class_overlaps, match_greedily, pair_up
from eval.predictor import Detections
from ops.files import write_atomic

PURPLE = (150, 40, 235)  # truth
GREEN = (0, 205, 75)  # right: same class as a truth, and enough overlap
YELLOW = (255, 212, 0)  # wrong
_INK = {PURPLE: (255, 255, 255), GREEN: (0, 24, 8), YELLOW: (40, 28, 0)}  # text that reads on each
_EDGE = (16, 16, 20)  # beside a class's colour, for an image that is of this very colour
_JPEG_QUALITY = 92
_MARK = b"painted by Mars"
_LONGEST_STEM = 200  # bytes: a file's name may have 255, and a number, a suffix and a draft's marks are added


class MatchedDetections(NamedTuple):
    """The detections above the score asked for, best first, and how they meet the truth."""

    detections: Detections
    is_right: Bool[np.ndarray, " K"]
    is_found: Bool[np.ndarray, " N"]  # truths that a right detection stands for


def match_for_painting(
    annotation: Annotation, detections: Detections, min_iou: float, paint_conf: float
) -> MatchedDetections:
    """Pair detections of at least `paint_conf` with the truth, the best first, each truth once.

    A detection takes the truth of its class that it overlaps most among those still free, if by at least `min_iou`.
    """
    detections = best_first(detections, paint_conf)
    overlaps = class_overlaps(detections, annotation)
    matched = match_greedily(overlaps, min_iou)
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
    """A painted copy of the RGB image, of the same size; the image itself stays as it is.

    Every truth is outlined in purple, with its class where nothing found it; every detection of at least `paint_conf`
    in green or yellow, with class and score (on a small crowded image the score alone, or nothing for the lowest).
    Lines and letters grow with the image.
    """
    canvas = Image.fromarray(image)  # a copy
    verdict = match_for_painting(annotation, detections, min_iou, paint_conf)
    truths = [_to_pixels(box, canvas.size) for box in annotation.boxes.tolist()]
    found = [_to_pixels(box, canvas.size) for box in verdict.detections.boxes.tolist()]
    _draw_boxes(canvas, truths, found, verdict)
    _draw_words(canvas, truths, found, verdict, annotation, class_names)
    return np.asarray(canvas)


def paint_split(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    folder: Path | str,
    min_iou: float = 0.5,
    paint_conf: float = 0.2,
    on_image: Callable[[int, int], None] | None = None,
) -> int:
    """Paint every image into `folder`/image_id.jpg; how many were written.

    `on_image` hears how many are done, of how many. Raises what `dl.images.read_image` and `pair_up` raise.
    """
    pairs = pair_up(annotations, detections)
    class_names = drawable_names(tuple(class_names))
    names = file_names(annotation.image_id for annotation in annotations)
    for done, (annotation, found) in enumerate(pairs, start=1):
        size = annotation.width, annotation.height
        image = read_image(annotation.image_path, size, annotation.pixel_max)
        painted = paint(image, annotation, found, class_names, min_iou, paint_conf)
        write_jpeg(Path(folder) / names[annotation.image_id], painted)
        if on_image is not None:
            on_image(done, len(pairs))
    return len(pairs)


def paint_detections(
    image: UInt8[np.ndarray, "H W 3"], detections: Detections, class_names: Sequence[str], paint_conf: float = 0.2
) -> UInt8[np.ndarray, "H W 3"]:
    """A painted copy of an RGB image without truth: every detection of at least `paint_conf` in its class's colour.

    Chips say class and score (in a crowd the class alone, or nothing for the lowest); a legend counts the classes.
    """
    canvas = Image.fromarray(image)
    keep = detections.scores >= paint_conf
    boxes = [_to_pixels(box, canvas.size) for box in detections.boxes[keep].tolist()]
    labels, scores = detections.labels[keep].tolist(), detections.scores[keep].tolist()
    draw, line = ImageDraw.Draw(canvas), _line_width(canvas)
    for box, label in reversed(list(zip(boxes, labels, strict=True))):  # the best on top
        _outline(draw, box, _EDGE, line + max(1, line // 2))
        _outline(draw, box, class_colour(label), line)
    chips = []
    for box, label, score in zip(boxes, labels, scores, strict=True):
        name = class_names[int(label)]
        chips.append(BoxLabel(f"{name} {score:.2f}", name, box, class_colour(label), _ink_on(label)))
    counts = sorted(Counter(labels).items())
    entries = [(class_colour(label), f"{class_names[int(label)]} {count}") for label, count in counts]
    legend = place_legend(entries, canvas.size, boxes) if entries else None
    draw_labels(canvas, place_labels(chips, canvas.size, [legend] if legend else []))
    if legend:
        draw_legend(canvas, entries, legend)
    return np.asarray(canvas)


def class_colour(label: int) -> Colour:
    """A bright colour, the same for a label in every picture; neighbours are far apart on the colour circle."""
    hue = (0.33 + label * 0.6180339887) % 1  # the golden ratio spreads any number of hues
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.9, 0.55)[label // 10 % 2], 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _ink_on(label: int) -> Colour:
    """Black or white letters, whichever stands out from the class's colour."""
    red, green, blue = class_colour(label)
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else (255, 255, 255)


def write_jpeg(path: Path, image: UInt8[np.ndarray, "H W 3"]) -> Path:
    """Write an RGB image as JPEG, whole or not at all, with a comment by which `is_painted` knows it again."""
    content = io.BytesIO()
    options = {"quality": _JPEG_QUALITY, "subsampling": 0, "comment": _MARK}  # 0: thin lines need full colour
    Image.fromarray(image).save(content, "JPEG", **options)
    return write_atomic(path, content.getvalue())


def is_painted(file: Path) -> bool:
    """Did `write_jpeg` write this file? False for what is no image, and for what cannot be read."""
    if not os.path.isfile(file):  # a pipe would keep us waiting
        return False
    try:
        with reading(file, "a JPEG"), Image.open(file, formats=["JPEG"]) as image:
            return image.info.get("comment") == _MARK
    except UserError:
        return False


def remove_painted(folder: Path) -> None:
    """Remove the pictures of an earlier call, so that the folder shows one split as it is now; others stay."""
    for file in folder.glob("*.jpg"):
        if is_painted(file):
            file.unlink()


def refuse_overwriting_pictures(folder: Path, image_ids: Iterable[str], way_out: str) -> None:
    """Raise `UserError` when a painted copy of one of these images would replace a file that Mars did not paint."""
    for name in file_names(image_ids).values():
        if os.path.lexists(folder / name) and not is_painted(folder / name):
            raise UserError(f"{folder / name}: was not painted by Mars, and would be replaced; move it away{way_out}")


def file_names(image_ids: Iterable[str]) -> dict[str, str]:
    """image id -> the name of its JPEG: `id.jpg`, without path separators, and no two alike on any file system."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    used: Counter[str] = Counter()  # how often a stem was asked for: to count again from 1 takes quadratic time
    for image_id in image_ids:
        stem = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", image_id).lstrip(".")[:120] or "image"
        stem = stem.encode()[:_LONGEST_STEM].decode(errors="ignore")
        used[stem.casefold()] += 1
        name = stem if used[stem.casefold()] == 1 else f"{stem}-{used[stem.casefold()]}"
        while name.casefold() in taken:
            used[stem.casefold()] += 1
            name = f"{stem}-{used[stem.casefold()]}"
        taken.add(name.casefold())
        names[image_id] = f"{name}.jpg"
    return names


def _draw_boxes(
    canvas: Image.Image, truths: Sequence[PixelRect], found: Sequence[PixelRect], verdict: MatchedDetections
) -> None:
    draw, line = ImageDraw.Draw(canvas), _line_width(canvas)
    for box in truths:
        # twice the width, so that purple shows inside a green line that covers it
        _outline(draw, box, PURPLE, 2 * line)
    last_on_top = list(zip(found, verdict.is_right.tolist(), strict=True))[::-1]
    for box, is_right in sorted(last_on_top, key=lambda one: one[1]):  # right above wrong, better above worse
        _outline(draw, box, GREEN if is_right else YELLOW, line)


def _line_width(canvas: Image.Image) -> int:
    return max(1, round(max(canvas.size) / 420))


def _outline(draw: ImageDraw.ImageDraw, box: PixelRect, colour: Colour, width: int) -> None:
    """The box's border, drawn inwards from its edge; thinner on boxes that it would fill."""
    width = max(1, min(width, min(box.x1 - box.x0, box.y1 - box.y0) // 5))
    draw.rectangle((box.x0, box.y0, box.x1 - 1, box.y1 - 1), outline=colour, width=width)


def _to_pixels(box: Sequence[float], size: tuple[int, int]) -> PixelRect:
    """The whole pixels that a box covers, inside the image and at least one."""
    x0, y0 = (min(max(round(low), 0), limit - 1) for low, limit in zip(box[:2], size, strict=True))
    x1, y1 = (min(round(high), limit) for high, limit in zip(box[2:], size, strict=True))
    return PixelRect(x0, y0, max(x0 + 1, x1), max(y0 + 1, y1))


def _draw_words(
    canvas: Image.Image,
    truths: Sequence[PixelRect],
    found: Sequence[PixelRect],
    verdict: MatchedDetections,
    annotation: Annotation,
    class_names: Sequence[str],
) -> None:
    """Class and score of every detection, the class of every truth that was missed, and a legend that counts them."""
    labels = []
    _, _, scores, classes = verdict.detections
    for box, score, label, is_right in zip(found, scores.tolist(), classes.tolist(), verdict.is_right, strict=True):
        colour = GREEN if is_right else YELLOW
        labels.append(BoxLabel(f"{class_names[int(label)]} {score:.2f}", f"{score:.2f}", box, colour, _INK[colour]))
    for box, label, is_found in zip(truths, annotation.labels, verdict.is_found, strict=True):
        if not is_found:
            labels.append(BoxLabel(class_names[int(label)], "", box, PURPLE, _INK[PURPLE]))
    num_right = int(verdict.is_right.sum())
    entries = [
        (PURPLE, f"truth {len(truths)}"),
        (GREEN, f"right {num_right}"),
        (YELLOW, f"wrong {len(found) - num_right}"),
    ]
    legend = place_legend(entries, canvas.size, [*truths, *found])
    draw_labels(canvas, place_labels(labels, canvas.size, [legend] if legend else []))
    if legend:
        draw_legend(canvas, entries, legend)
