"""COCO: read json files, and find the files, images and splits of a data set.

Layouts: `annotations/instances_train2017.json` with `train2017/` or `images/train2017/`; Roboflow's export
(`train/_annotations.coco.json` beside the images, `valid/`, `test/`); one json with a folder of images and lists.
"""

import mmap
import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from config.checks import LONGEST_CLASS_NAME, LONGEST_PATH
from config.errors import UserError
from dl.annotations import MAX_SIDE, RawAnnotation, RawObject, check_num_objects
from dl.files import (
    IMAGE_SUFFIXES,
    MAX_JSON_BYTES,
    DataError,
    file_state,
    name_error,
    natural_key,
    read_json,
    subfolders,
    walk_files,
)
from dl.formats.lists import tree_splits
from dl.formats.pairing import ImageTree
from dl.formats.source import DataSource, Search, Size, TreeReader, check_class_list
from dl.splits import hinted_names
from ops.text import counted, shortened, shown

_ROBOFLOW = "_annotations.coco.json"
# COCO's other files, about the same images but without boxes of objects
_OTHER_KINDS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
_NUM_SAMPLES = 16  # file names that are looked up to find the image folder of a json
_TAIL = 64  # the last bracket of a json must be within this number of bytes at its end
_PLAIN_NUMBER = r"0|[1-9][0-9]{0,38}"  # 007 is a name; 128 bits, as uuid4().int has, are up to 39 digits
_MAX_CATEGORY = 2**63 - 1  # category ids are kept in arrays of 64 bits; ids of images are not
_KEYS = ("images", "annotations", "categories")


class Category(NamedTuple):
    name: str
    supercategory: str


class CocoFile:
    """One json: its images by name as written, its categories by id, its objects.

    Masks, captions, keypoints and areas are not read. Boxes stay as they are.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.errors: list[str] = []  # those that belong to no image
        self.categories = self._read_categories(content["categories"])
        self._rows: dict[str, int] = {}  # file_name -> row of the image
        self._sizes: list[Size | None] = []
        self._duplicates: set[str] = set()
        row_of_id: dict[int | str, int] = {}
        for entry in content["images"]:
            number, name = (_id(entry.get("id")), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
            if number is None or not isinstance(name, str) or not name:
                self.errors.append(f"{path}: an image has no id or no file_name: {shortened(entry)}")
            elif error := name_error(name, LONGEST_PATH):
                self.errors.append(f"{path}: a file_name of images: {error}")
            elif number in row_of_id:
                self.errors.append(f"{path}: two entries of images have id {number}; the second is {name}")
            else:
                if name in self._rows:
                    self._duplicates.add(name)
                row_of_id[number] = self._rows.setdefault(name, len(self._sizes))
                sides = [int(entry[side]) if _is_number(entry.get(side)) else 0 for side in ("width", "height")]
                self._sizes.append((sides[0], sides[1]) if all(0 < side <= MAX_SIDE for side in sides) else None)
        self._object_errors: dict[int, str] = {}  # row of an image -> error of its first object that cannot be used
        self._read_objects(content["annotations"], row_of_id)
        self.file_names = list(self._rows)  # as written
        self.used_categories = set(np.unique(self._categories).tolist())  # ids of those that have an object

    def annotation_of(self, file_name: str) -> RawAnnotation:
        """The annotation of one image. Raises `DataError`: listed twice, or an object that cannot be used."""
        if file_name in self._duplicates:
            raise DataError(f"{self.path}: two entries of images have file_name {file_name}; keep one of them")
        row = self._rows[file_name]
        if row in self._object_errors:
            raise DataError(f"{self.path}: {self._object_errors[row]} (image {file_name})")
        start, end = np.searchsorted(self._image_rows, [row, row + 1])
        check_num_objects(int(end - start), f"{self.path}: image {file_name}")
        columns = (array[start:end].tolist() for array in (self._categories, self._boxes, self._is_crowd))
        objects = tuple(
            RawObject(self.categories[category].name, (x, y, x + width, y + height), is_crowd)
            for category, (x, y, width, height), is_crowd in zip(*columns, strict=True)
        )
        return RawAnnotation(self._sizes[row], objects)

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

    def _read_objects(self, entries: Any, row_of_id: dict[int | str, int]) -> None:
        """Keep the objects as arrays, sorted by image: COCO's own files have 860,000 objects."""
        rows, categories, boxes, crowds = [], [], [], []
        without_image: dict[Any, list[Any]] = defaultdict(list)  # image_id that does not exist -> annotation ids
        for entry in entries:
            image = _id(entry.get("image_id")) if isinstance(entry, dict) else None
            row = None if image is None else row_of_id.get(image)
            if row is None:
                without_image[shortened(image)].append(entry.get("id") if isinstance(entry, dict) else entry)
                continue
            error = self._object_error(entry)
            if error:
                self._object_errors.setdefault(row, f"annotation {shortened(entry.get('id'))} {error}")
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
        self._image_rows = np.array(rows, dtype=np.int64)[order]
        self._categories = np.array(categories, dtype=np.int64)[order]
        self._boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)[order]  # x y width height
        self._is_crowd = np.array(crowds, dtype=bool)[order]

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
    return _read(path, file_state(path))


@lru_cache(maxsize=8)
def _read(path: Path, _state: tuple[int, int]) -> CocoFile:
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


class CocoReader(TreeReader):
    """Objects from json files. `entries`: path below the tree's folder -> its json and its file_name there."""

    def __init__(
        self,
        tree: ImageTree,
        annotation_dir: Path,
        files: Mapping[str, str],
        entries: Mapping[str, tuple[CocoFile, str]],
        errors: list[str],
    ) -> None:
        super().__init__(tree, annotation_dir, files)
        self.entries = entries
        self.errors: Sequence[str] = errors

    def read_annotation(self, image_id: str, size: Size | None) -> tuple[Path, RawAnnotation]:
        entry = self.entries.get(self.files[image_id])
        if entry is None:
            raise DataError(f"{self.find_image(image_id)}: this image is not in the images of {self._names}")
        return entry[0].path, entry[0].annotation_of(entry[1])

    def warnings(self) -> list[str]:
        unlisted = [path for path in self.tree.paths if path not in self.entries]
        if not unlisted:
            return []
        images = counted(len(unlisted), "image")
        return [f"{images} below {self.image_dir} not in the images of {self._names}: {shown(unlisted)}"]

    @property
    def _names(self) -> str:
        return ", ".join(sorted({file.path.name for file, _ in self.entries.values()}))


def is_coco(folder: Path) -> bool:
    """Whether the folder, its annotations or a folder of a split has a json that looks like COCO."""
    return bool(_json_files(_annotation_dir(folder)))


def count_coco_images(folder: Path) -> int:
    """Count the images of the folder that a json lists. Raises `UserError` for an invalid json."""
    listed = {_bare_name(name) for path in _json_files(_annotation_dir(folder)) for name in read_coco(path).file_names}
    return len(listed & set(map(_bare_name, walk_files(folder, IMAGE_SUFFIXES))))


def find_coco(search: Search) -> DataSource:
    """Find the data set in the folders of `search`. Raises `UserError` with the absolute paths that were tried."""
    annotation_dir = search.annotation_dir or (_annotation_dir(search.base) if search.base else search.image_dir)
    image_dir = search.image_dir or search.base
    if annotation_dir is None or image_dir is None:
        raise UserError("annotationDir is set, but imageDir is not: set it, too, or use --data DIR")
    paths = _json_files(annotation_dir)
    if not paths:
        raise UserError(f"{annotation_dir}: there is no COCO json (images, annotations, categories); set annotationDir")
    parts = _parts_of_splits([read_coco(path) for path in paths], search.notes)
    given: dict[str, tuple[str, ...]] = {}
    entries: dict[str, tuple[CocoFile, str]] = {}
    errors: list[str] = []
    for file, split in parts:
        names_of = _names_by_image(file, split, image_dir)
        if outside := [names[0] for path, names in names_of.items() if os.path.isabs(path)]:
            images = counted(len(outside), "image")
            search.notes.append(f"{file.path}: {images} outside of {image_dir}: {shown(outside)}; is this intended?")
        repeated = {image: ", ".join(names) for image, names in names_of.items() if len(names) > 1}
        errors += file.errors
        errors += [f"{file.path}: file_name {names} mean the same image {image}" for image, names in repeated.items()]
        entries |= {image: (file, names[0]) for image, names in names_of.items()}
        if split:
            given[split] = tuple(sorted(names_of))
    tree = ImageTree(image_dir, entries)
    splits, files = tree_splits(search, tree, given, lambda: {image: name for image, (_, name) in entries.items()})
    classes = search.class_list or _class_list([file for file, _ in parts], search.notes)
    if not (search.image_dir and search.annotation_dir):
        search.notes.append(f"COCO annotations in {', '.join(str(file.path) for file, _ in parts)}")
    reader = CocoReader(ImageTree(image_dir), annotation_dir, files, entries, errors)
    return DataSource(image_dir, annotation_dir, classes, splits, reader, search.notes, files=files)


def _annotation_dir(folder: Path) -> Path:
    """The folder with json files: `annotations`, or the folder itself if that has none."""
    children = subfolders(folder)
    named = next((children[name] for name in ("annotations", "annotation") if name in children), None)
    return named if named and _json_files(named) else folder


def _json_files(folder: Path) -> list[Path]:
    """Files of the folder itself that look like COCO, else Roboflow's files, one in each folder of images."""
    with os.scandir(folder) as entries:
        names = sorted((entry.name for entry in entries if entry.name.lower().endswith(".json")), key=natural_key)
    names = [name for name in names if not name.startswith((".", *_OTHER_KINDS))]
    instances = [name for name in names if name.startswith("instances_")]
    found = [folder / name for name in instances or names if looks_like_coco(folder / name)]
    if found:
        return found
    return [path / _ROBOFLOW for path in subfolders(folder).values() if (path / _ROBOFLOW).is_file()]


def _bare_name(name: str) -> str:
    """A file_name without its folders, which may be those of another machine."""
    return PurePosixPath(name.replace("\\", "/")).name


def _names_by_image(file: CocoFile, split: str, image_dir: Path) -> dict[str, list[str]]:
    """Path below `image_dir` (absolute if outside) -> each file_name that means this image, as written.

    The names are relative to the folder that has most of a few sample names: the image folder, or up to two levels
    below. If several folders have equally many, the order is: named in the json's name (instances_train2017 ->
    train2017), the json's own folder, a folder named like the split, any other folder. Only if no folder has all
    samples, names without their folders are tried, too.
    """

    def priority(folder: Path) -> int:
        if file.path.stem.endswith(f"_{folder.name}"):
            return 0
        if folder == file.path.parent:
            return 1
        return 2 if split and split in hinted_names(folder.name) else 3

    children = list(subfolders(image_dir).values())
    below = [grandchild for child in children for grandchild in subfolders(child).values()]
    own = [file.path.parent] if file.path.parent in (image_dir, *children, *below) else []
    folders = sorted(dict.fromkeys([*own, image_dir, *children, *below]), key=priority)
    sample = file.file_names[:: max(1, len(file.file_names) // _NUM_SAMPLES)][:_NUM_SAMPLES]
    best, best_name, most = folders[0], str, 0
    for name_of in (str, _bare_name):
        for folder in folders:
            count = sum(os.path.isfile(folder / name_of(name)) for name in sample)
            if count > most:
                best, best_name, most = folder, name_of, count
        if most == len(sample):
            break
    tree, names_of = ImageTree(image_dir, ()), defaultdict[str, list[str]](list)
    for name in file.file_names:
        path = best / best_name(name)
        names_of[tree.relative_path(path) or os.path.normpath(path)].append(name)
    return names_of


def _parts_of_splits(files: Sequence[CocoFile], notes: list[str]) -> list[tuple[CocoFile, str]]:
    """Each file with its split, "" if a single file names none. Raises `UserError` if it is doubtful."""
    parts = []
    for file in files:
        hints = hinted_names(file.path.parent.name if file.path.name == _ROBOFLOW else file.path.stem)
        parts.append((file, next(iter(hints)) if len(hints) == 1 else ""))
    if len(parts) == 1:
        return parts
    notes += [
        f"{file.path} is not used: its name does not say train, val or test" for file, split in parts if not split
    ]
    of_splits = [(file, split) for file, split in parts if split]
    if not of_splits or len({split for _, split in of_splits}) < len(of_splits):
        paths = ", ".join(str(file.path) for file, _ in of_splits or parts)
        problem = "are for the same split" if of_splits else "do not say train, val or test in their names"
        raise UserError(f"{paths} {problem}; keep one COCO json for each of train, val and test")
    return of_splits


def _class_list(files: Sequence[CocoFile], notes: list[str]) -> tuple[str, ...]:
    """The categories of all files in the order of their ids. Raises `UserError` if the files disagree.

    Roboflow's category 0 is left out: it is the project's name, the supercategory of all others, and has no objects.
    """
    by_id: dict[int, Category] = {}
    owner: dict[int, Path] = {}
    for file in files:
        for number, category in file.categories.items():
            first = by_id.setdefault(number, category)
            owner.setdefault(number, file.path)
            if first.name != category.name:
                raise UserError(
                    f"{file.path}: category {number} is {category.name}, but in {owner[number]} it is {first.name}; "
                    "use the same ids in all files"
                )
    used = {number for file in files for number in file.used_categories}
    supercategories = {category.supercategory for category in by_id.values()}
    only_super = [
        number
        for number, category in by_id.items()
        if number not in used and category.name in supercategories and category.supercategory in ("", "none")
    ]
    if only_super and len(only_super) < len(by_id):
        names = ", ".join(f"{number} ({by_id.pop(number).name})" for number in only_super)
        notes.append(f"category {names} is not used as a class: it is a supercategory without objects")
    return check_class_list([by_id[number].name for number in sorted(by_id)], f"{files[0].path}: categories")
