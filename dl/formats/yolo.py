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
from pathlib import Path

import numpy as np

from config.errors import UserError
from dl.annotations import SHARE_TOLERANCE, Box, RawAnnotation, RawObject, check_num_objects, number_hint, parse_number
from dl.files import (
    IMAGE_SUFFIXES,
    MAX_ANNOTATION_BYTES,
    DataError,
    excerpt,
    find_file,
    index_by_stem,
    read_lines,
    read_text,
    subfolders,
    walk_files,
)
from dl.formats.data_yaml import DataYaml, find_data_yaml, read_data_yaml
from dl.formats.lists import tree_splits
from dl.formats.pairing import LABEL_FOLDERS, ImageTree, Pairs, count_annotated, pair, usual_label_path
from dl.formats.source import DataSource, PairedReader, Search, Size, check_class_list
from dl.splits import USUAL_NAMES, canonical_name

LABEL_SUFFIXES = frozenset({".txt"})
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_MIN_DIGITS, _MAX_DIGITS = 6, 12  # fewer: the writer removed zeros; more: noise of float64


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
        objects.append(RawObject(_class_name(values[0], names, where), _box(words, values[1:], size), False))
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


def _class_name(value: float, names: Mapping[int, str], where: str) -> str:
    if value not in names:
        known = f"{min(names)} ({names[min(names)]}) to {max(names)} ({names[max(names)]})"
        hint = "; do the labels count classes from 1 instead of 0?" if value == max(names) + 1 else ""
        hint = "; the first number of a line is the class, a whole number" if not value.is_integer() else hint
        raise DataError(f"{where}: class {value:g} is not in the class list, which has the classes {known}{hint}")
    return names[int(value)]


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
    digits = max(_num_digits(word) for word in words[1:])
    error = error_units * 10.0 ** -min(max(digits, _MIN_DIGITS), _MAX_DIGITS)
    x1, y1, x2, y2 = (_roundest(side * extent, error * extent) for side, extent in zip(sides, size * 2, strict=True))
    return x1, y1, x2, y2


def _num_digits(word: str) -> int:
    """The number of decimals of a number as text: .25 -> 2, 1e-05 -> 5."""
    mantissa, _, exponent = word.lower().partition("e")
    return len(mantissa.partition(".")[2]) - int(exponent or 0)


def _roundest(value: float, error: float) -> float:
    """The number with the fewest decimals within `error` (and the noise of float64) of `value`."""
    error = error * (1 + 1e-6) + 1e-12
    for decimals in range(_MAX_DIGITS):
        candidate = float(np.round(value, decimals))
        if abs(candidate - value) <= error:
            return candidate
    return value


class YoloTree(PairedReader):
    """A label file for each image: in a folder `labels` if the image is in `images`, or beside the image."""

    suffixes, kind = LABEL_SUFFIXES, "label file"

    def __init__(
        self,
        tree: ImageTree,
        annotation_dir: Path,
        files: Mapping[str, str],
        names: Mapping[int, str],
        has_keypoints: bool = False,
        is_whole: bool = True,
    ) -> None:
        """`is_whole`: everything below the tree's folder belongs to the data set; else only folders of its images."""
        super().__init__(tree, annotation_dir, files)
        self.names, self.has_keypoints, self.is_whole = names, has_keypoints, is_whole

    def read_annotation(self, image_id: str, size: Size | None) -> tuple[Path, RawAnnotation]:
        path = self.find_annotation(image_id)
        if path is None:
            beside = self.find_image(image_id).with_suffix(".txt")  # as labelImg and darknet save them
            path = beside if os.path.exists(beside) else self.usual_annotation(image_id, ".txt")
        return path, read_yolo(path, self.names, size or (1, 1), self.has_keypoints)

    def paths_to_pair(self) -> tuple[Iterable[str], Iterable[str]]:
        if self.is_whole:
            return super().paths_to_pair()
        images = list(self.files.values())
        folders = sorted({os.path.dirname(path) for image in images for path in (image, usual_label_path(image))})
        places = [(folder, self.annotation_dir / folder) for folder in folders]
        found = [(folder, index_by_stem(place, self.suffixes)) for folder, place in places if place.is_dir()]
        labels = [
            os.path.join(folder, path.name) for folder, index in found for paths in index.values() for path in paths
        ]
        return images, labels

    def unused_annotations(self, pairs: Pairs) -> list[str]:
        """Only files that are certainly labels. A data set has other texts, too, such as lists and a README."""
        label_folders = {os.path.dirname(path) for path in pairs.annotation_of.values()}

        def is_in_label_folder(path: str) -> bool:
            folders = path.lower().split("/")[:-1]
            return os.path.dirname(path) in label_folders or any(folder in LABEL_FOLDERS for folder in folders)

        candidates = [path for path in pairs.unused if is_in_label_folder(path)]
        return [path for path in candidates if looks_like_labels(self.annotation_dir / path)]


def is_yolo(folder: Path) -> bool:
    """Whether the folder has a data.yaml, or images with folders of labels beside them."""
    children = subfolders(folder)
    if find_data_yaml(folder) is not None:
        return True
    if "images" in children and "labels" in children:
        return bool(walk_files(children["labels"], LABEL_SUFFIXES))
    split_folders = [path for name, path in children.items() if canonical_name(name) in (*USUAL_NAMES, "test")]
    if any({"images", "labels"} <= subfolders(path).keys() for path in split_folders):
        return True
    return _find_name_file(folder) is not None and count_yolo_images(folder) > 0


def count_yolo_images(folder: Path) -> int:
    """Count the label files of the folder that have an image."""
    return count_annotated(folder, folder, LABEL_SUFFIXES)


def find_yolo(search: Search) -> DataSource:
    """Find the data set in the folders of `search`. Raises `UserError` with the absolute paths that were tried."""
    base, notes = search.base, search.notes
    if search.image_dir or search.annotation_dir:
        image_dir, annotation_dir = _explicit_folders(search)
        above = [annotation_dir.parent] if annotation_dir.name.lower() == "labels" else []  # else possibly unrelated
        homes = [annotation_dir, *above, image_dir, *([base] if base else [])]
        names, names_file, data_yaml = _class_names(homes)
        found = {}
    else:
        assert base is not None, "discover searches a data folder if no other folder is set"
        names, names_file, data_yaml = _class_names([base])
        found = _yaml_splits(data_yaml, base, notes) if data_yaml else {}
        image_dir = annotation_dir = _common_folder(base, found)
        notes.append(f"YOLO labels: images below {image_dir}, class names in {names_file}")
    below = ImageTree(image_dir).relative_path
    given = {name: tuple(below(path) or path for path in paths) for name, paths in found.items()}
    # The images of a data.yaml may be far apart; other files below their common folder do not belong to the data set.
    is_whole = base is None or base in (image_dir, *image_dir.parents)
    tree = ImageTree(image_dir, None if is_whole or not given else [path for paths in given.values() for path in paths])
    splits, files = tree_splits(
        search, tree, given, lambda: pair(tree.paths, walk_files(annotation_dir, LABEL_SUFFIXES)).annotation_of
    )
    class_list = search.choose_classes(tuple(names.values()), names_file)
    has_keypoints = bool(data_yaml and data_yaml.has_keypoints)
    reader = YoloTree(tree, annotation_dir, files, names, has_keypoints, is_whole)
    return DataSource(image_dir, annotation_dir, class_list, splits, reader, notes, "yolo", files)


def _explicit_folders(search: Search) -> tuple[Path, Path]:
    """imageDir and annotationDir; for one that is not set, the usual folder in the data folder."""
    if search.base is None and None in (search.image_dir, search.annotation_dir):
        raise UserError("only one of imageDir and annotationDir is set: set both, or use --data DIR")
    folders = []
    for given, name in ((search.image_dir, "images"), (search.annotation_dir, "labels")):
        folders.append(given or (search.base and subfolders(search.base).get(name, search.base)))
    return folders[0], folders[1]


def _class_names(homes: list[Path]) -> tuple[dict[int, str], Path, DataYaml | None]:
    """Number -> class, the file with the names, and its content if it is a data.yaml. Raises `UserError` for none."""
    for home in homes:  # the nearest file with names is used, of either kind
        path = find_data_yaml(home)
        if path is not None:
            data_yaml = read_data_yaml(path)
            return data_yaml.names, path, data_yaml
        path = _find_name_file(home)
        if path is not None:
            return dict(enumerate(check_class_list(read_lines(path), str(path)))), path, None
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
    tree, paths = ImageTree(base), []
    for line in read_lines(place):
        outside = os.path.isabs(line) and os.path.isfile(line)
        paths.append(os.path.normpath(line if outside else base / tree.find(line, place.parent)))
    return paths


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
    outside = [image for images in splits.values() for image in images if not image.startswith(f"{base}{os.sep}")]
    if not outside:
        return base
    common = Path(os.path.commonpath([os.path.dirname(image) for images in splits.values() for image in images]))
    above = [folder for folder in (common, *common.parents) if folder.name == "images"]
    return above[0].parent if above else common
