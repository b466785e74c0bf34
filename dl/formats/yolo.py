"""YOLO: read label files (`class cx cy w h` as shares of the image size), and find the files of a data set.

Layouts: `data.yaml` as Ultralytics and Roboflow write it (train, val and test are folders, lists of images, or several
of either). Without splits in it, these folders: `train/images train/labels valid/...`, `images/train labels/train
...`, or `images labels` with or without lists. Class names are in data.yaml, else one per line in classes.txt,
obj.names or _darknet.labels.

A label line may also be a polygon (class and three or more points); its box is used. An empty or missing label file
means an image without objects.

Rounding. Most writers round shares to six digits, so x1 = (cx - w/2) W is known to 0.75e-6 W pixels. Of all pixel
coordinates within this error, the one with the fewest decimals is used. So six digits restore whole numbers exactly in
any image up to 60,000 pixels, one decimal up to 66,000, two decimals up to 6,600, three up to 660. Eight digits give a
hundred times as much. No coordinate moves further than its own rounding error.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from config.checks import LONGEST_CLASS_NAME, LONGEST_PATH
from config.errors import UserError
from dl.annotations import SHARE_TOLERANCE, Box, RawAnnotation, RawObject, check_num_objects, number_hint, parse_number
from dl.files import (
    IMAGE_SUFFIXES,
    MAX_ANNOTATION_BYTES,
    DataError,
    excerpt,
    find_file,
    index_by_stem,
    name_error,
    read_lines,
    read_text,
    read_yaml,
    subfolders,
    walk_files,
)
from dl.formats.lists import tree_splits
from dl.formats.pairing import LABEL_FOLDERS, ImageTree, Pairs, count_annotated, pair, usual_label_path
from dl.formats.source import DataSource, PairedReader, Search, Size, check_class_list
from dl.splits import USUAL_NAMES, canonical_name

LABEL_SUFFIXES = frozenset({".txt"})
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_MIN_DIGITS, _MAX_DIGITS = 6, 12  # fewer: the writer removed zeros; more: noise of float64
_YAML_SUFFIXES = frozenset({".yaml", ".yml"})
_NULL = ("", "null", "Null", "NULL", "~")


def read_yolo(path: Path, names: Mapping[int, str], size: Size, has_keypoints: bool = False) -> RawAnnotation:
    """Read the label file of an image of (width, height) `size`. Raises `DataError` with path and line."""
    try:
        lines = read_text(path, MAX_ANNOTATION_BYTES).splitlines()
    except UserError as error:
        if not os.path.exists(path):
            return RawAnnotation(None, (), is_file_missing=True)
        raise DataError(str(error)) from None
    check_num_objects(len(lines), path)
    objects: list[RawObject] = []
    num_polygons = 0
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path}: line {number}"
        words = words[:5] if has_keypoints else words
        values = _numbers(words, where)
        num_polygons += len(values) > 5
        if values[0] not in names:
            known = f"{min(names)} ({names[min(names)]}) to {max(names)} ({names[max(names)]})"
            hint = "; do the labels count classes from 1 instead of 0?" if values[0] == max(names) + 1 else ""
            hint = hint if values[0].is_integer() else "; the first number of a line is the class, a whole number"
            raise DataError(
                f"{where}: class {values[0]:g} is not in the class list, which has the classes {known}{hint}"
            )
        objects.append(RawObject(names[int(values[0])], _box(words, values[1:], size), False))
    return RawAnnotation(None, tuple(objects), num_polygons)


def looks_like_labels(path: Path) -> bool:
    """Whether the first line of a non-empty text file is a valid label."""
    try:
        lines = [line for line in read_text(path, MAX_ANNOTATION_BYTES).splitlines() if line.strip()]
        return bool(lines) and bool(_numbers(lines[0].split(), ""))
    except UserError:
        return False


def _numbers(words: list[str], where: str) -> list[float]:
    values = []
    for word in words:
        value = parse_number(word)
        if value is None:
            raise DataError(f"{where}: '{excerpt(word)}' is not a number{number_hint(word)}")
        values.append(value)
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        hint = "; is the sixth a score? labels have no scores" if len(values) == 6 else ""
        raise DataError(
            f"{where}: {len(values)} columns, expected 5 (class cx cy w h) or a class and 3 or more points{hint}"
        )
    is_share = [-SHARE_TOLERANCE <= value <= 1 + SHARE_TOLERANCE for value in values[1:]]
    if not all(is_share):
        raise DataError(
            f"{where}: {excerpt(words[1 + is_share.index(False)])} is outside the range 0 to 1; coordinates are shares "
            "of the image's width and height, so divide pixels by them"
        )
    return values


def _box(words: list[str], shares: list[float], size: Size) -> Box:
    """Shares of the image size -> xyxy in pixels."""
    if len(shares) == 4:
        cx, cy, width, height = shares
        sides = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
        error_units = 0.75  # half a unit of the last digit for the centre, a quarter for half the side
    else:
        xs, ys = shares[0::2], shares[1::2]
        sides = (min(xs), min(ys), max(xs), max(ys))
        error_units = 0.5
    written = [word.lower().partition("e") for word in words[1:]]
    # The largest number of decimals as written: .25 has 2, 1e-05 has 5.
    digits = max(len(mantissa.partition(".")[2]) - int(exponent or 0) for mantissa, _, exponent in written)
    error = error_units * 10.0 ** -min(max(digits, _MIN_DIGITS), _MAX_DIGITS)
    x1, y1, x2, y2 = (_roundest(side * extent, error * extent) for side, extent in zip(sides, size * 2, strict=True))
    return x1, y1, x2, y2


def _roundest(value: float, error: float) -> float:
    """The number with the fewest decimals within `error` (and the noise of float64) of `value`."""
    error = error * (1 + 1e-6) + 1e-12
    for decimals in range(_MAX_DIGITS):
        candidate = float(np.round(value, decimals))
        if abs(candidate - value) <= error:
            return candidate
    return value


@dataclass(frozen=True)
class DataYaml:
    """The content of a `data.yaml`, or of a file of class names, which has no splits."""

    path: Path
    names: dict[int, str]
    root: str = ""  # its `path:`
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)  # name -> folders and lists, both as written
    has_keypoints: bool = False  # label lines have more columns after the box


def read_data_yaml(path: Path) -> DataYaml:
    """Read a `data.yaml`. Raises `UserError` with the path: invalid yaml, no names, names that disagree with `nc`.

    Every value that is used must be plain text. Nested lists of yaml aliases have a kilobyte on disk but would need
    gigabytes as text.
    """
    content = read_yaml(path)
    if not isinstance(content, Mapping) or "names" not in content:
        raise UserError(f"{path}: there are no class names; write e.g. names: [cat, dog]")
    value = content["names"]
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value if isinstance(value, list) else [])
    texts = [(number, _plain_text(name, "names", path, LONGEST_CLASS_NAME)) for number, name in pairs]
    try:
        names = dict(sorted((int(number), name) for number, name in texts))
    except ValueError:
        raise UserError(f"{path}: names must be a list, or numbers with names (0: cat)") from None
    if not names or not all(names.values()) or min(names) < 0 or len(names) < len(value):  # {0: a, 00: b}
        problem = "an empty class name or a wrong number" if names else "no class"
        raise UserError(f"{path}: names has {problem}; write names: [cat, dog]")
    count = _plain_text(content.get("nc", ""), "nc", path)
    if count not in _NULL and count != str(len(names)):
        raise UserError(f"{path}: nc is {excerpt(count)}, but names has {len(names)} classes; correct one of them")
    splits = {}
    for key in ("train", "val", "validation", "valid", "test"):
        value = content.get(key, "")
        entries = tuple(_plain_text(entry, key, path) for entry in (value if isinstance(value, list) else [value]))
        if any(entry not in _NULL for entry in entries):
            splits[key] = entries
    root = _plain_text(content.get("path", ""), "path", path)
    return DataYaml(path, names, "" if root in _NULL else root, splits, "kpt_shape" in content)


def find_data_yaml(folder: Path) -> Path | None:
    """`data.yaml`, else the only yaml file of the folder with class names and splits; None for none or several."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if Path(entry.name).suffix.lower() in _YAML_SUFFIXES)
    usual = next((name for name in names if name.lower() in ("data.yaml", "data.yml")), None)
    if usual:
        return folder / usual
    found = []
    for path in (folder / name for name in names if not name.startswith(".")):
        with suppress(UserError):
            content = read_yaml(path)
            if isinstance(content, Mapping) and "names" in content and ("train" in content or "val" in content):
                found.append(path)
    return found[0] if len(found) == 1 else None


def _plain_text(value: Any, key: str, path: Path, max_length: int = LONGEST_PATH) -> str:
    """The value, stripped: one line of text. Raises `UserError` for a list, a mapping or invalid text."""
    if not isinstance(value, str):
        raise UserError(f"{path}: {key} has a list or a mapping where a single value is needed; write plain text")
    value = value.strip()  # a block scalar (path: >) ends with a line break
    if error := name_error(value, max_length):
        raise UserError(f"{path}: {key}: {error}")
    return value


class YoloTree(PairedReader):
    """A label file for each image: in a folder `labels` if the image is in `images`, or beside the image."""

    suffixes, kind = LABEL_SUFFIXES, "label file"

    def __init__(
        self, tree: ImageTree, annotation_dir: Path, files: Mapping[str, str], data_yaml: DataYaml, is_whole: bool
    ) -> None:
        """`is_whole`: everything below the tree's folder belongs to the data set; else only folders of its images."""
        super().__init__(tree, annotation_dir, files)
        self.data_yaml, self.is_whole = data_yaml, is_whole

    def read_annotation(self, image_id: str, size: Size | None) -> tuple[Path, RawAnnotation]:
        path = self.find_annotation(image_id)
        if path is None:
            beside = self.find_image(image_id).with_suffix(".txt")  # as labelImg and darknet save them
            path = beside if os.path.exists(beside) else self.usual_annotation(image_id, ".txt")
        return path, read_yolo(path, self.data_yaml.names, size or (1, 1), self.data_yaml.has_keypoints)

    def paths_to_pair(self) -> tuple[Iterable[str], Iterable[str]]:
        if self.is_whole:
            return super().paths_to_pair()
        images = list(self.files.values())
        folders = sorted({os.path.dirname(path) for image in images for path in (image, usual_label_path(image))})
        labels = [
            os.path.join(folder, path.name)
            for folder in folders
            if (place := self.annotation_dir / folder).is_dir()
            for paths in index_by_stem(place, self.suffixes).values()
            for path in paths
        ]
        return images, labels

    def unused_annotations(self, pairs: Pairs) -> list[str]:
        """Only files that are certainly labels. A data set has other texts, too, such as lists and a README."""
        homes = {os.path.dirname(path) for path in pairs.annotation_of.values()}
        in_label_folder = (
            path
            for path in pairs.unused
            if os.path.dirname(path) in homes or not set(LABEL_FOLDERS).isdisjoint(path.lower().split("/")[:-1])
        )
        return [path for path in in_label_folder if looks_like_labels(self.annotation_dir / path)]


def is_yolo(folder: Path) -> bool:
    """Whether the folder has a data.yaml, or images with folders of labels beside them."""
    children = subfolders(folder)
    if find_data_yaml(folder) is not None:
        return True
    if "images" in children and "labels" in children:
        return bool(walk_files(children["labels"], LABEL_SUFFIXES))
    split_folders = [path for name, path in children.items() if canonical_name(name) in USUAL_NAMES]
    if any({"images", "labels"} <= subfolders(path).keys() for path in split_folders):
        return True
    return _find_name_file(folder) is not None and count_yolo_images(folder) > 0


def count_yolo_images(folder: Path) -> int:
    """Count the label files of the folder that have an image."""
    return count_annotated(folder, folder, LABEL_SUFFIXES)


def find_yolo(search: Search) -> DataSource:
    """Find the data set in the folders of `search`. Raises `UserError` with the absolute paths that were tried."""
    base, notes = search.base, search.notes
    image_dir, annotation_dir = search.image_dir, search.annotation_dir
    if image_dir or annotation_dir:
        if base is not None:
            below = subfolders(base)
            image_dir = image_dir or below.get("images", base)
            annotation_dir = annotation_dir or below.get("labels", base)
        if image_dir is None or annotation_dir is None:
            raise UserError("only one of imageDir and annotationDir is set: set both, or use --data DIR")
        above = [annotation_dir.parent] if annotation_dir.name.lower() == "labels" else []  # else possibly unrelated
        homes = [annotation_dir, *above, image_dir, *([base] if base else [])]
        data_yaml, found = _find_class_names(homes), {}
    else:
        assert base is not None, "discover searches a data folder if no other folder is set"
        data_yaml = _find_class_names([base])
        found = _yaml_splits(data_yaml, base, notes)
        image_dir = annotation_dir = _common_folder(base, found)
        notes.append(f"YOLO labels: images below {image_dir}, class names in {data_yaml.path}")
    relative_path = ImageTree(image_dir).relative_path
    given = {name: tuple(relative_path(path) or path for path in paths) for name, paths in found.items()}
    # The images of a data.yaml may be far apart; other files below their common folder do not belong to the data set.
    is_whole = base is None or base in (image_dir, *image_dir.parents)
    tree = ImageTree(image_dir, None if is_whole or not given else [path for paths in given.values() for path in paths])
    splits, files = tree_splits(
        search, tree, given, lambda: pair(tree.paths, walk_files(annotation_dir, LABEL_SUFFIXES)).annotation_of
    )
    class_list = search.class_list or check_class_list(list(data_yaml.names.values()), str(data_yaml.path))
    reader = YoloTree(tree, annotation_dir, files, data_yaml, is_whole)
    return DataSource(image_dir, annotation_dir, class_list, splits, reader, notes, files=files)


def _find_class_names(homes: list[Path]) -> DataYaml:
    """The nearest file with class names, of either kind. Raises `UserError` if there is none."""
    for home in homes:
        if (path := find_data_yaml(home)) is not None:
            return read_data_yaml(path)
        if (path := _find_name_file(home)) is not None:
            return DataYaml(path, dict(enumerate(check_class_list(read_lines(path), str(path)))))
    raise UserError(
        f"{homes[0]}: YOLO labels are numbers, and no file gives the class names; add a data.yaml (names: [cat, dog]) "
        "or a classes.txt (one name per line, in the order of the numbers)"
    )


def _find_name_file(folder: Path) -> Path | None:
    """The file of class names in the folder, or in the subfolder where some programs put it."""
    children = subfolders(folder)
    homes = [folder, *(children[name] for name in ("labels", "train") if name in children)]
    found = (find_file(home, name) for home in homes for name in _NAME_FILES)
    return next((path for path in found if path is not None), None)


def _yaml_splits(data_yaml: DataYaml, base: Path, notes: list[str]) -> dict[str, tuple[str, ...]]:
    """Split name -> absolute paths of images. A missing train is an error; other missing splits are left out."""
    splits = {}
    for key, entries in data_yaml.splits.items():
        places = [
            next((path for path in _candidates(data_yaml, entry) if os.path.exists(path)), None) for entry in entries
        ]
        missing = [entry for entry, place in zip(entries, places, strict=True) if place is None]
        name = canonical_name(key)
        if missing and name == "train":
            tried = ", ".join(map(str, _candidates(data_yaml, missing[0])))
            raise UserError(
                f"{data_yaml.path}: {key}: {missing[0]} does not exist; tried {tried}; correct path: or {key}:"
            )
        if missing:
            notes.append(f"{data_yaml.path}: {key}: {', '.join(missing)} does not exist, so there is no split '{name}'")
        elif name not in splits:
            splits[name] = tuple(image for place in places if place for image in _images_of_entry(place, base))
    return splits


def _images_of_entry(place: Path, base: Path) -> list[str]:
    """Absolute paths of the images below a folder, or of the images on the lines of a list."""
    if os.path.isdir(place):
        return [f"{place}/{path}" for path in walk_files(place, IMAGE_SUFFIXES)]
    tree = ImageTree(base)
    lines = read_lines(place)
    outside = {line for line in lines if os.path.isabs(line) and os.path.isfile(line)}
    return [os.path.normpath(line if line in outside else base / tree.find(line, place.parent)) for line in lines]


def _candidates(data_yaml: DataYaml, entry: str) -> list[Path]:
    """The paths that a split's entry may mean.

    Roboflow writes ../train/images for a folder beside the yaml. An absolute path of another machine may end like a
    path below this folder.
    """
    home = data_yaml.path.parent
    entry = entry.replace("\\", "/")
    root = Path(os.path.normpath(home / os.path.expanduser(data_yaml.root)))
    parts = [part for part in entry.split("/") if part not in ("", ".", "..")]
    tails = [home.joinpath(*parts[i:]) for i in range(len(parts))] if os.path.isabs(entry) else [home.joinpath(*parts)]
    plain = [Path(os.path.normpath(start / entry)) for start in (root, home)]
    ordered = [*tails, *plain] if entry.startswith("../") else [*plain, *tails]
    return list(dict.fromkeys(ordered))


def _common_folder(base: Path, splits: Mapping[str, tuple[str, ...]]) -> Path:
    """`base`; if images are outside, the folder above all images from which their label paths can be derived."""
    images = [image for paths in splits.values() for image in paths]
    if all(image.startswith(f"{base}{os.sep}") for image in images):
        return base
    common = Path(os.path.commonpath([os.path.dirname(image) for image in images]))
    above = [folder for folder in (common, *common.parents) if folder.name == "images"]
    return above[0].parent if above else common
