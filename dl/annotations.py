"""What was written about an image -> cleaned boxes and labels; and Pascal VOC xml as people have it.

`dl/yolo.py` and `dl/coco.py` read the other formats into the same `Written`. Of an xml, what is not needed may be
missing (`difficult`, `pose`, `depth`, `folder`) or lie (`filename`, `path`): it belongs to the image with its own stem.
Coordinates are taken as written, floats kept, nothing subtracted.
"""

import codecs
import math
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from defusedxml import DefusedXmlException, ElementTree
from jaxtyping import Bool, Float32, Int64

from config.checks import LONGEST_CLASS_NAME
from config.errors import UserError, reading
from dl.faults import DataFault, excerpt, name_fault
from dl.files import MOST_OF_ANNOTATION, read_bytes

_SIDES = ("xmin", "ymin", "xmax", "ymax")
Box = tuple[float, float, float, float]  # xyxy

_YES, _NO = ("1", "true", "yes"), ("", "0", "false", "no", "unspecified")

MOST_OBJECTS = 50_000  # of an image: twice those of the fullest image of a public data set (JHU-Crowd++: 25,791)
LONGEST_SIDE = 2**31 - 1  # pixels: no format of images has room for more
LONGEST_NUMBER = 400  # characters: float64's smallest number needs 327 if it is written without an exponent
# Python's names of encodings that no annotation is written in: decoding punycode takes time that grows with the square
# of the length, idna and undefined raise errors of their own, and the others turn plain text into other characters.
_NOT_READ = ("punycode", "idna", "undefined", "unicode-escape", "raw-unicode-escape", "utf-7")


class WrittenObject(NamedTuple):
    """One object as written, in pixels."""

    name: str
    box: Box
    is_difficult: bool


class Written(NamedTuple):
    """What one annotation says; `size` is (width, height), None when missing or zero."""

    size: tuple[int, int] | None
    objects: tuple[WrittenObject, ...]
    outlines: int = 0  # objects given as polygons, of which only the box is used
    is_missing: bool = False  # no file at all, which by YOLO's convention is an image without objects


@dataclass(frozen=True, eq=False)
class Annotation:
    """One image with its cleaned labels. No objects: boxes (0, 4), labels (0,), difficult (0,)."""

    image_id: str  # the image's stem, with its folder in front where two images share a stem
    image_path: Path
    annotation_path: Path
    width: int  # of the image as `read_image(image_path, (width, height))` delivers it
    height: int
    boxes: Float32[np.ndarray, "N 4"]  # xyxy in pixels of that image, inside it, area above 0
    labels: Int64[np.ndarray, " N"]  # indexes into the class list
    difficult: Bool[np.ndarray, " N"]
    labelled: Bool[np.ndarray, " C"] | None = None  # classes whose objects are all labelled; None: every class
    pixel_max: int | None = None  # of a 16-bit image the value that becomes 255, see `read_image`


# Why a box is dropped, as the report says it.
SWAPPED = "with swapped corners"
OUTSIDE = "outside the image"
EMPTY = "without area"
IN_FIRST_PIXEL = "within the first pixel"
DROPPED = (SWAPPED, OUTSIDE, EMPTY, IN_FIRST_PIXEL)


SHARE_TOLERANCE = 0.01  # beyond 0 and 1: shares of the image that reach a little over its border


@dataclass
class Tally:
    """What cleaning one annotation changed."""

    clipped: int = 0
    repeats: int = 0  # objects of a class and box that another object has, too
    dropped: Counter[str] = field(default_factory=Counter)  # one of DROPPED -> boxes
    ignored: Counter[str] = field(default_factory=Counter)  # class outside the list -> objects


def read_voc(path: Path) -> Written:
    """Read one Pascal VOC file. Raises `DataFault` that starts with the path."""
    root = _parse(path)
    if root.tag.lower() != "annotation":
        raise DataFault(f"{path}: is not a Pascal VOC annotation (its root is <{excerpt(root.tag)}>)")
    nodes = root.findall("object")
    refuse_too_many(len(nodes), path)
    objects = []
    for number, node in enumerate(nodes, start=1):
        try:
            objects.append(_read_object(node, number, path))
        except DataFault as fault:
            raise DataFault(f"{fault}{_line_of_object(path, number)}") from None
    return Written(_read_size(root, path), tuple(objects))


def refuse_too_many(num_objects: int, where: object) -> None:
    """Raise `DataFault` for more objects than one image may have."""
    if num_objects > MOST_OBJECTS:
        raise DataFault(
            f"{where}: holds {num_objects} objects, and one image may have {MOST_OBJECTS}; cut the image into tiles"
        )


def to_number(text: str) -> float | None:
    """The number that a text means; None for what is none, is not finite, or is longer than any number."""
    try:
        value = float(text) if len(text) <= LONGEST_NUMBER else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def number_hint(text: str) -> str:
    """The usual cause of a number that does not read as one, for the end of an error message."""
    if re.fullmatch(r"\s*[-+]?\d+,\d+\s*", text):
        return "; write the decimals with a point"
    if "," in text or ";" in text:
        return "; separate the numbers with blanks"
    return "; the value is missing" if not text.strip() else ""


def clean(
    written: Written,
    image_id: str,
    image_path: Path,
    annotation_path: Path,
    size: tuple[int, int],
    class_list: tuple[str, ...],
) -> tuple[Annotation, Tally]:
    """Fit what was written to the image: classes outside the list ignored, boxes clipped, unusable boxes dropped.

    `size` is (width, height) of the image as delivered. Dropped are boxes whose corners are swapped, that lie wholly
    outside the image, that have no area, or that lie within the first pixel: such are fractions of the image's size. Of
    several objects with the same class and box the first is kept, difficult when all of them are. The tally counts each
    change.
    """
    tally = Tally(ignored=Counter(entry.name for entry in written.objects if entry.name not in class_list))
    objects: dict[tuple[str, Box], bool] = {}
    for entry in written.objects:
        if entry.name in class_list:
            tally.repeats += (entry.name, entry.box) in objects
            objects[entry.name, entry.box] = entry.is_difficult and objects.get((entry.name, entry.box), True)
    sides = np.array([box for _, box in objects], dtype=np.float64).reshape(-1, 4)
    # float32 before the test: a side of 1e-9 pixels must not become a box of zero area afterwards
    boxes = sides.clip(0, np.array(size * 2)).astype(np.float32)
    faults = _faults_of(sides, boxes, size)
    tally.dropped = Counter(fault for fault in faults if fault)
    is_sound = np.array([not fault for fault in faults], dtype=bool)
    is_clipped = ((sides < 0) | (sides > np.array(size * 2))).any(axis=1)
    tally.clipped = int((is_clipped & is_sound).sum())
    labels = np.array([class_list.index(name) for name, _ in objects], dtype=np.int64)
    difficult = np.array(list(objects.values()), dtype=bool)
    kept = (boxes[is_sound], labels[is_sound], difficult[is_sound])
    return Annotation(image_id, image_path, annotation_path, *size, *kept), tally


def _faults_of(sides: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[str]:
    """Of each box, as written and as clipped, why it is dropped; "" where it is not."""
    is_swapped = (sides[:, 2:] < sides[:, :2]).any(axis=1)
    is_empty = (sides[:, 2:] == sides[:, :2]).any(axis=1)
    is_lost = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    in_image = (sides[:, :2] < size).all(axis=1) & (sides[:, 2:] > 0).all(axis=1)
    is_share = (sides >= -SHARE_TOLERANCE) & (sides <= 1 + SHARE_TOLERANCE)
    in_first_pixel = is_share.all(axis=1) & (min(size) > 2)
    conditions = (is_swapped, is_empty | is_lost & in_image, is_lost, in_first_pixel)
    return np.select(conditions, (SWAPPED, EMPTY, OUTSIDE, IN_FIRST_PIXEL), "").tolist()


def _parse(path: Path) -> Any:
    """The root element. Entities are refused: a few of them unfold to gigabytes, others read other files."""
    try:
        raw = read_bytes(path, MOST_OF_ANNOTATION).lstrip(b" \t\r\n")
    except FileNotFoundError:
        raise DataFault(f"{path}: no such annotation file") from None
    except OSError as error:
        raise DataFault(f"{path}: the annotation cannot be read ({error.strerror or error})") from None
    encoding = _declared_encoding(raw, path)
    with suppress(UserError), reading(path, "an xml"):
        return ElementTree.fromstring(raw)
    try:  # expat knows few encodings, and <path> is often written in the machine's own without saying so
        with reading(path, "an xml"):
            text = raw.decode(encoding, errors="replace")
            return ElementTree.fromstring(re.sub(r"^<\?xml[^>]*\?>", "", text))
    except UserError as error:
        cause = error.__cause__
        reason = excerpt(str(cause))
        if isinstance(cause, DefusedXmlException):
            reason = "it defines entities: write their text in their place, and remove the DOCTYPE"
        raise DataFault(f"{path}: the xml does not parse ({reason})") from None


def _line_of_object(path: Path, number: int) -> str:
    """In which line of the file an object begins; objects are counted from 1. "" where that cannot be told."""
    raw = path.read_bytes().replace(b"\0", b"")  # so that UTF-16 reads like all encodings that begin with ASCII
    # Comments end before `rest`: one without an end, as within CDATA, would be searched for again and again.
    head, end, rest = raw.rpartition(b"-->")
    head = re.sub(rb"<!--.*?-->", lambda comment: b"\n" * comment.group().count(b"\n"), head + end, flags=re.DOTALL)
    raw = head + rest
    starts = [match.start() for match in re.finditer(rb"<object[\s/>]", raw)]
    if number > len(starts):
        return ""
    line = raw.count(b"\n", 0, starts[number - 1]) + 1
    return f" (the object begins in line {line})"


def _declared_encoding(raw: bytes, path: Path) -> str:
    """What the first line says, else UTF-8. Raises `DataFault` for what is no encoding of text."""
    head = re.match(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]{1,40})[\"']", raw)
    name = head.group(1).decode("ascii") if head else "utf-8"
    try:
        known = codecs.lookup(name).name
        if known not in _NOT_READ:
            b" ".decode(known, errors="replace")  # LookupError for what is no encoding of text, such as zlib
            return known
    except LookupError:
        pass
    raise DataFault(f"{path}: the xml declares the encoding '{name}', which is not read; save it as UTF-8")


def _read_size(root: Any, path: Path) -> tuple[int, int] | None:
    texts = [(root.findtext(f"size/{side}") or "").strip() for side in ("width", "height")]
    if not all(texts):
        return None
    width, height = (
        _number(text, f"<{side}> in <size>", path) for text, side in zip(texts, ("width", "height"), strict=True)
    )
    for side in (width, height):
        if side > LONGEST_SIDE:
            raise DataFault(f"{path}: <size> says {side:g} pixels; no image is larger than {LONGEST_SIDE}")
    return (int(width), int(height)) if width and height else None


def _read_object(node: Any, number: int, path: Path) -> WrittenObject:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise DataFault(f"{path}: object {number} has no <name>")
    if fault := name_fault(name, LONGEST_CLASS_NAME):
        raise DataFault(f"{path}: the class of object {number}: {fault}")
    where = f"object {number} ({name})"
    box = node.find("bndbox")
    if box is None:
        if node.find("robndbox") is not None:
            raise DataFault(
                f"{path}: {where} has only an oriented box (<robndbox>); give the horizontal annotations (<bndbox>), "
                "for MAR20 those in 'Annotations/Horizontal Bounding Boxes'"
            )
        raise DataFault(f"{path}: {where} has no <bndbox>")
    xmin, ymin, xmax, ymax = (
        _number((box.findtext(side) or "").strip(), f"<{side}> of {where}", path) for side in _SIDES
    )
    return WrittenObject(name, (xmin, ymin, xmax, ymax), _is_difficult(node, where, path))


def _number(text: str, what: str, path: Path) -> float:
    value = to_number(text)
    if value is None:
        raise DataFault(f"{path}: {what} is '{excerpt(text)}', not a number{number_hint(text)}")
    return value


def _is_difficult(node: Any, where: str, path: Path) -> bool:
    text = (node.findtext("difficult") or "").strip().lower()
    if text not in _YES + _NO:
        raise DataFault(f"{path}: <difficult> of {where} is '{excerpt(text)}', neither 0 nor 1")
    return text in _YES
