"""Read a COCO json (`images`, `annotations`, `categories`): the annotation of each image. Boxes stay as they are.

Other content of COCO files (masks, captions, keypoints, areas) is not read.
"""

import mmap
import re
import sys
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from config.checks import LONGEST_CLASS_NAME, LONGEST_PATH
from config.errors import UserError
from dl.annotations import MAX_SIDE, RawAnnotation, RawObject, check_num_objects
from dl.files import MAX_JSON_BYTES, DataError, name_error, read_json
from ops.text import shortened

_TAIL = 64  # the last bracket of a json must be within this number of bytes at its end
_PLAIN_NUMBER = r"0|[1-9][0-9]{0,38}"  # 007 is a name; 128 bits, as uuid4().int has, are up to 39 digits
_MAX_CATEGORY = 2**63 - 1  # category ids are kept in arrays of 64 bits; ids of images are not
_KEYS = ("images", "annotations", "categories")


class Category(NamedTuple):
    name: str
    supercategory: str


class _Objects(NamedTuple):
    """The objects of a whole file, sorted by image, as arrays: COCO's own files have 860,000 objects."""

    image: Int64[np.ndarray, " N"]  # row of the image in the list of images
    category: Int64[np.ndarray, " N"]
    box: Float64[np.ndarray, "N 4"]  # x y width height
    is_crowd: Bool[np.ndarray, " N"]
    errors: dict[int, str]  # row of an image -> error of its first object that cannot be used


class CocoFile:
    """One json: its images by name as written, its categories by id, its objects."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.errors: list[str] = []  # those that belong to no image
        self.categories = self._read_categories(content["categories"])
        self._rows: dict[str, int] = {}
        self._sizes: list[tuple[int, int] | None] = []
        self._duplicates: set[str] = set()
        row_of_id = self._read_images(content["images"])
        self._objects = self._read_objects(content["annotations"], row_of_id)

    @property
    def file_names(self) -> list[str]:
        """The file_name of every image, as written."""
        return list(self._rows)

    @property
    def used_categories(self) -> set[int]:
        """Ids of the categories that have an object."""
        return set(np.unique(self._objects.category).tolist())

    def annotation_of(self, file_name: str) -> RawAnnotation:
        """The annotation of one image. Raises `DataError`: listed twice, or an object that cannot be used."""
        if file_name in self._duplicates:
            raise DataError(f"{self.path}: two entries of images have file_name {file_name}; keep one of them")
        row = self._rows[file_name]
        if row in self._objects.errors:
            raise DataError(f"{self.path}: {self._objects.errors[row]} (image {file_name})")
        start, end = np.searchsorted(self._objects.image, [row, row + 1])
        check_num_objects(int(end - start), f"{self.path}: image {file_name}")
        objects = []
        for i in range(start, end):
            x, y, width, height = self._objects.box[i].tolist()
            name = self.categories[int(self._objects.category[i])].name
            objects.append(RawObject(name, (x, y, x + width, y + height), bool(self._objects.is_crowd[i])))
        return RawAnnotation(self._sizes[row], tuple(objects))

    def _read_categories(self, entries: Any) -> dict[int, Category]:
        categories: dict[int, Category] = {}
        for entry in entries:
            number, name = (_id(entry.get("id")), entry.get("name")) if isinstance(entry, dict) else (None, None)
            if not isinstance(name, str) or not name.strip():
                raise UserError(f"{self.path}: a category has no name: {shortened(entry)}")
            if not isinstance(number, int):
                raise UserError(f"{self.path}: the id of a category is not a whole number: {shortened(entry)}")
            if abs(number) > _MAX_CATEGORY:
                raise UserError(
                    f"{self.path}: the id of a category is larger than 64 bits: {shortened(entry)}; number them from 1"
                )
            if error := name_error(name.strip(), LONGEST_CLASS_NAME):
                raise UserError(f"{self.path}: the name of a category: {error}")
            if number in categories:
                raise UserError(f"{self.path}: two categories have id {number}; give each category its own id")
            categories[number] = Category(name.strip(), str(entry.get("supercategory") or ""))
        if not categories:
            raise UserError(f"{self.path}: categories is empty, so there are no classes")
        return dict(sorted(categories.items()))

    def _read_images(self, entries: Any) -> dict[int | str, int]:
        """Fill in rows and sizes, and return image id -> row."""
        row_of_id: dict[int | str, int] = {}
        for entry in entries:
            number, name = (_id(entry.get("id")), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
            if number is None or not isinstance(name, str) or not name:
                self.errors.append(f"{self.path}: an image has no id or no file_name: {shortened(entry)}")
                continue
            if error := name_error(name, LONGEST_PATH):
                self.errors.append(f"{self.path}: a file_name of images: {error}")
                continue
            if number in row_of_id:
                self.errors.append(f"{self.path}: two entries of images have id {number}; the second is {name}")
                continue
            if name in self._rows:
                self._duplicates.add(name)
            row_of_id[number] = self._rows.setdefault(name, len(self._sizes))
            self._sizes.append(_size(entry))
        return row_of_id

    def _read_objects(self, entries: Any, row_of_id: dict[int | str, int]) -> _Objects:
        rows, categories, boxes, crowds = [], [], [], []
        errors: dict[int, str] = {}
        without_image: dict[Any, list[Any]] = defaultdict(list)  # image_id that does not exist -> annotation ids
        for entry in entries:
            image = _id(entry.get("image_id")) if isinstance(entry, dict) else None
            row = None if image is None else row_of_id.get(image)
            if row is None:
                without_image[shortened(image)].append(entry.get("id") if isinstance(entry, dict) else entry)
                continue
            error = self._object_error(entry)
            if error:
                errors.setdefault(row, f"annotation {shortened(entry.get('id'))} {error}")
                continue
            rows.append(row)
            categories.append(_id(entry["category_id"]))
            boxes.append(entry["bbox"])
            crowds.append(bool(entry.get("iscrowd")))
        for image, numbers in without_image.items():
            more = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
            self.errors.append(
                f"{self.path}: annotation {shortened(numbers[0])}{more}: image_id {image} is not in images"
            )
        order = np.argsort(np.array(rows, dtype=np.int64), kind="stable")
        return _Objects(
            np.array(rows, dtype=np.int64)[order],
            np.array(categories, dtype=np.int64)[order],
            np.array(boxes, dtype=np.float64).reshape(-1, 4)[order],
            np.array(crowds, dtype=bool)[order],
            errors,
        )

    def _object_error(self, entry: dict[str, Any]) -> str:
        """Why an object cannot be used; "" for a valid object."""
        category, box = _id(entry.get("category_id")), entry.get("bbox")
        if category not in self.categories:
            hint = ""
            if isinstance(category, int) and category in (min(self.categories) - 1, max(self.categories) + 1):
                hint = f" ({min(self.categories)} to {max(self.categories)}); are all category ids shifted by one?"
            return f"has category_id {shortened(entry.get('category_id'))}, which is not in categories{hint}"
        if not isinstance(box, list) or len(box) != 4:
            hint = "; compute it from the segmentation" if entry.get("segmentation") and box is None else ""
            return f"has bbox {shortened(box)}, expected [x, y, width, height]{hint}"
        invalid = [side for side in box if not _is_number(side)]
        hint = "; write numbers without quotes" if invalid and isinstance(invalid[0], str) else ""
        return f"has {shortened(invalid[0])} in its bbox, which is not a number{hint}" if invalid else ""


def read_coco(path: Path) -> CocoFile:
    """Read one json; only once, until it changes. Raises `UserError` with the path and the position of an error."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    return _read(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: Path, _size: int, _changed: int) -> CocoFile:
    content = read_json(path, "a COCO json")
    missing = [key for key in _KEYS if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise UserError(f"{path}: this is not a COCO file of objects: it has no list of {', '.join(missing)}")
    return CocoFile(path, content)


def looks_like_coco(path: Path) -> bool:
    """Whether a json has the keys images, annotations and categories, or has some of them and is truncated.

    Other programs use some of these keys, too: Label Studio's notes.json has categories.
    """
    if not path.is_file():  # reading a pipe would block
        return False
    try:
        length = min(path.stat().st_size, MAX_JSON_BYTES)
        with open(path, "rb") as file, mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) as content:
            found = [content.find(f'"{key}"'.encode()) >= 0 for key in _KEYS]
            is_whole = content[-_TAIL:].rstrip().endswith(b"}")
    except (OSError, ValueError):  # ValueError: empty
        return False
    return all(found) or (any(found) and not is_whole)


def _id(value: Any) -> int | str | None:
    """An id for comparison; some programs write the number 7 as "7" or 7.0. None for an invalid id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        return int(value) if re.fullmatch(_PLAIN_NUMBER, value) else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_number(value: Any) -> bool:
    """Whether float64 can hold the value: json allows integers of any length."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    sides = (entry.get("width"), entry.get("height"))
    width, height = (int(side) if isinstance(side, (int, float)) and _is_number(side) else 0 for side in sides)
    return (width, height) if 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE else None
