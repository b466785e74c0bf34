"""Where the images, labels, class names and splits of a YOLO data set lie.

Understood: `data.yaml` as Ultralytics and Roboflow write it (train, val and test are folders, lists of images, or
several of either), and without splits in it the folders `train/images train/labels valid/...`, `images/train
labels/train ...` or `images labels` with lists or without. Class names stand in data.yaml, else in classes.txt,
obj.names or _darknet.labels, one a line.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from config.errors import UserError
from dl.files import IMAGE_SUFFIXES, file_named, read_lines, subfolders, walk_files
from dl.lists import tree_splits
from dl.pairing import pair, paired_annotations
from dl.readers import YoloTree
from dl.source import DataSource, Search, checked_classes
from dl.splits import USUAL_NAMES, canonical_name
from dl.tree import ImageTree
from dl.yolo import LABEL_SUFFIXES, DataYaml, find_data_yaml, read_data_yaml

_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")


def holds_yolo(folder: Path) -> bool:
    """Whether a data.yaml, or images with folders of labels beside them, lie in this folder."""
    children = subfolders(folder)
    if find_data_yaml(folder) is not None:
        return True
    if "images" in children and "labels" in children:
        return bool(_label_files(children["labels"]))
    homes = [path for name, path in children.items() if canonical_name(name) in (*USUAL_NAMES, "test")]
    if any({"images", "labels"} <= subfolders(home).keys() for home in homes):
        return True
    return _name_file(folder) is not None and paired_annotations(folder, LABEL_SUFFIXES) > 0


def _label_files(folder: Path) -> list[str]:
    return walk_files(folder, LABEL_SUFFIXES)


def lay_out_yolo(search: Search) -> DataSource:
    """The data set in the folders of `search`. Raises `UserError` with the absolute paths that were tried."""
    base, notes = search.base, search.notes
    if search.image_dir or search.annotation_dir:
        image_dir, annotation_dir = _explicit_folders(search)
        above = [annotation_dir.parent] if annotation_dir.name.lower() == "labels" else []  # else it may be anybody's
        homes = [annotation_dir, *above, image_dir, *([base] if base else [])]
        names, where, data_yaml = _names(homes)
        found = {}
    else:
        assert base is not None, "without folders a data folder was searched"
        names, where, data_yaml = _names([base])
        found = _yaml_splits(data_yaml, base, notes) if data_yaml else {}
        image_dir = annotation_dir = _common_folder(base, found)
        notes.append(f"YOLO labels: images below {image_dir}, class names in {where}")
    given = {name: _relative(ImageTree(image_dir), paths) for name, paths in found.items()}
    # The images of a data.yaml may lie far apart, and what else lies below their common folder belongs to others.
    is_whole = base is None or base in (image_dir, *image_dir.parents)
    tree = ImageTree(image_dir, None if is_whole or not given else [path for paths in given.values() for path in paths])
    splits, files = tree_splits(
        search.wanted, base, tree, given, notes, lambda: pair(tree.paths, _label_files(annotation_dir)).annotation_of
    )
    classes = search.class_list if search.class_list is not None else tuple(names.values())
    class_list = checked_classes(classes, "classList" if search.class_list is not None else str(where))
    has_keypoints = bool(data_yaml and data_yaml.has_keypoints)
    reader = YoloTree(tree, annotation_dir, files, names, has_keypoints, is_whole)
    return DataSource(image_dir, annotation_dir, class_list, splits, reader, notes, "yolo", files)


def _explicit_folders(search: Search) -> tuple[Path, Path]:
    """imageDir and annotationDir; of one that is not set the usual place in the data folder."""
    if search.base is None and None in (search.image_dir, search.annotation_dir):
        raise UserError("of imageDir and annotationDir only one is set: set both, or give --data DIR")
    folders = []
    for given, name in ((search.image_dir, "images"), (search.annotation_dir, "labels")):
        folders.append(given or (search.base and subfolders(search.base).get(name, search.base)))
    return folders[0], folders[1]


def _names(homes: list[Path]) -> tuple[dict[int, str], Path, DataYaml | None]:
    """Number -> class, the file that says so, and the data.yaml if it is one. Raises `UserError` for none."""
    for home in homes:  # the nearest file that names them counts, whatever its kind
        path = find_data_yaml(home)
        if path is not None:
            data_yaml = read_data_yaml(path)
            return data_yaml.names, path, data_yaml
        path = _name_file(home)
        if path is not None:
            return dict(enumerate(checked_classes(read_lines(path), str(path)))), path, None
    raise UserError(
        f"{homes[0]}: YOLO labels are numbers, and no file names their classes; put a data.yaml (names: [cat, dog]) or "
        "a classes.txt (one name a line, in the order of the numbers) there"
    )


def _name_file(folder: Path) -> Path | None:
    """The file of class names in the folder, or where some programs put it below."""
    children = subfolders(folder)
    homes = [folder, *(children[name] for name in ("labels", "train") if name in children)]
    found = (file_named(home, name) for home in homes for name in _NAME_FILES)
    return next((path for path in found if path is not None), None)


def _yaml_splits(data_yaml: DataYaml, base: Path, notes: list[str]) -> dict[str, tuple[str, ...]]:
    """Split name -> absolute paths of images. A train that lies nowhere is an error, another split is left out."""
    splits = {}
    for key, entries in data_yaml.splits.items():
        places = [(entry, _place(data_yaml, entry)) for entry in entries]
        lost = [entry for entry, place in places if place is None]
        name = canonical_name(key)
        if lost and name == "train":
            tried = ", ".join(map(str, _candidates(data_yaml, lost[0])))
            raise UserError(f"{data_yaml.path}: {key}: {lost[0]} lies nowhere; tried {tried}; mend path: or {key}:")
        if lost:
            notes.append(f"{data_yaml.path}: {key}: {', '.join(lost)} lies nowhere, so there is no split '{name}'")
        elif name not in splits:
            members = [image for _, place in places if place for image in _images(place, base)]
            splits[name] = tuple(members)
    return splits


def _images(place: Path, base: Path) -> list[str]:
    """Absolute paths of the images in a folder and those below it, or on the lines of a list."""
    if os.path.isdir(place):
        return [f"{place}/{path}" for path in walk_files(place, IMAGE_SUFFIXES)]
    tree, paths = ImageTree(base), []
    for line in read_lines(place):
        outside = os.path.isabs(line) and os.path.isfile(line)
        paths.append(os.path.normpath(line if outside else base / tree.find(line, place.parent)))
    return paths


def _place(data_yaml: DataYaml, entry: str) -> Path | None:
    return next((path for path in _candidates(data_yaml, entry) if os.path.exists(path)), None)


def _candidates(data_yaml: DataYaml, entry: str) -> list[Path]:
    """Where a split's entry may lie.

    Roboflow writes ../train/images for a folder beside the yaml, and a path of another machine ends like one of ours.
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
    """`base`; when images lie outside, the folder above all of them from which their labels can be told."""
    outside = [image for images in splits.values() for image in images if not image.startswith(f"{base}{os.sep}")]
    if not outside:
        return base
    common = Path(os.path.commonpath([os.path.dirname(image) for images in splits.values() for image in images]))
    above = [folder for folder in _upwards(common) if folder.name == "images"]
    return above[0].parent if above else common


def _upwards(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.parents


def _relative(tree: ImageTree, paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(tree.below(path) or path for path in paths)
