"""Annotations of one image: as read from a file (`RawAnnotation`), and cleaned for training (`Annotation`).

The readers in `dl/formats` convert every format to `RawAnnotation`. Coordinates stay as written: floats are kept, and
nothing is subtracted.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from dl.files import DataError

Box = tuple[float, float, float, float]  # xyxy

MAX_OBJECTS = 50_000  # in one image; the fullest image of a public data set (JHU-Crowd++) has 25,791
MAX_SIDE = 2**31 - 1  # pixels; no image format allows more
MAX_NUMBER_LENGTH = 400  # characters; the smallest float64 needs 327 without an exponent
SHARE_TOLERANCE = 0.01  # normalised coordinates may leave the range 0 to 1 by this much


class RawObject(NamedTuple):
    """One object as written in the annotation file, in pixels."""

    name: str
    box: Box
    is_difficult: bool


class RawAnnotation(NamedTuple):
    """The content of one annotation. `size` is (width, height), None if it is missing or zero."""

    size: tuple[int, int] | None
    objects: tuple[RawObject, ...]
    num_polygons: int = 0  # objects written as polygons; only their boxes are used
    is_file_missing: bool = False  # there is no label file; in YOLO this means an image without objects


@dataclass(frozen=True, eq=False)
class Annotation:
    """One image with its cleaned labels. Without objects: boxes (0, 4), labels (0,), difficult (0,)."""

    image_id: str  # the file's stem; with its folder in front if two images have the same stem
    image_path: Path
    annotation_path: Path
    width: int  # of the image as returned by `read_image(image_path, (width, height))`
    height: int
    boxes: Float32[np.ndarray, "N 4"]  # xyxy in pixels of that image, inside the image, area above 0
    labels: Int64[np.ndarray, " N"]  # indexes into the class list
    difficult: Bool[np.ndarray, " N"]
    labelled: Bool[np.ndarray, " C"] | None = None  # classes that are labelled on this image; None: every class
    pixel_max: int | None = None  # of a 16-bit image: the value that becomes 255, see `read_image`


# Why a box is dropped; these texts are part of the report.
SWAPPED = "with swapped corners"
OUTSIDE = "outside the image"
EMPTY = "without area"
IN_FIRST_PIXEL = "within the first pixel"
DROPPED = (SWAPPED, OUTSIDE, EMPTY, IN_FIRST_PIXEL)


@dataclass
class CleaningCounts:
    """What `clean_annotation` changed in one annotation."""

    clipped: int = 0
    duplicates: int = 0  # objects with the same class and box as an earlier object
    dropped: Counter[str] = field(default_factory=Counter)  # one of DROPPED -> number of boxes
    ignored: Counter[str] = field(default_factory=Counter)  # class outside the class list -> number of objects


def check_num_objects(num_objects: int, where: object) -> None:
    """Raise `DataError` if one image has more objects than `MAX_OBJECTS`."""
    if num_objects > MAX_OBJECTS:
        raise DataError(
            f"{where}: has {num_objects} objects, but one image may have at most {MAX_OBJECTS}; cut the image into "
            "tiles"
        )


def parse_number(text: str) -> float | None:
    """Convert text to a finite number; None if it is not one, or is longer than any number needs to be."""
    try:
        value = float(text) if len(text) <= MAX_NUMBER_LENGTH else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def number_hint(text: str) -> str:
    """The usual reason why a text is not a number, to append to an error message."""
    if re.fullmatch(r"\s*[-+]?\d+,\d+\s*", text):
        return "; use a decimal point, not a comma"
    if "," in text or ";" in text:
        return "; separate the numbers with spaces"
    return "; the value is missing" if not text.strip() else ""


def clean_annotation(
    raw: RawAnnotation,
    image_id: str,
    image_path: Path,
    annotation_path: Path,
    size: tuple[int, int],
    class_list: tuple[str, ...],
) -> tuple[Annotation, CleaningCounts]:
    """Fit a raw annotation to its image, and count each change.

    `size` is (width, height) of the image as it is read. Objects of classes outside the class list are ignored. Boxes
    are clipped to the image. These boxes are dropped: corners swapped, completely outside the image, without area,
    or within the first pixel (such coordinates are fractions of the image size). Objects with the same class and box
    count once; the remaining object is difficult only if all of them are.
    """
    counts = CleaningCounts(ignored=Counter(item.name for item in raw.objects if item.name not in class_list))
    objects: dict[tuple[str, Box], bool] = {}
    for item in raw.objects:
        if item.name in class_list:
            counts.duplicates += (item.name, item.box) in objects
            objects[item.name, item.box] = item.is_difficult and objects.get((item.name, item.box), True)
    sides = np.array([box for _, box in objects], dtype=np.float64).reshape(-1, 4)
    # Convert to float32 before the test: a side of 1e-9 pixels must not become a box without area afterwards.
    boxes = sides.clip(0, np.array(size * 2)).astype(np.float32)
    reasons = _drop_reasons(sides, boxes, size)
    counts.dropped = Counter(reason for reason in reasons if reason)
    is_valid = np.array([not reason for reason in reasons], dtype=bool)
    is_clipped = ((sides < 0) | (sides > np.array(size * 2))).any(axis=1)
    counts.clipped = int((is_clipped & is_valid).sum())
    labels = np.array([class_list.index(name) for name, _ in objects], dtype=np.int64)
    difficult = np.array(list(objects.values()), dtype=bool)
    arrays = (boxes[is_valid], labels[is_valid], difficult[is_valid])
    return Annotation(image_id, image_path, annotation_path, *size, *arrays), counts


def _drop_reasons(sides: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[str]:
    """For each box (as written, and as clipped): why it is dropped, or "" if it is valid."""
    is_swapped = (sides[:, 2:] < sides[:, :2]).any(axis=1)
    is_empty = (sides[:, 2:] == sides[:, :2]).any(axis=1)
    is_clipped_away = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    in_image = (sides[:, :2] < size).all(axis=1) & (sides[:, 2:] > 0).all(axis=1)
    is_normalised = (sides >= -SHARE_TOLERANCE) & (sides <= 1 + SHARE_TOLERANCE)
    in_first_pixel = is_normalised.all(axis=1) & (min(size) > 2)
    conditions = (is_swapped, is_empty | is_clipped_away & in_image, is_clipped_away, in_first_pixel)
    return np.select(conditions, (SWAPPED, EMPTY, OUTSIDE, IN_FIRST_PIXEL), "").tolist()
