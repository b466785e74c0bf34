"""COCO: find the json files and images of a data set, and the split of each json.

Layouts: `annotations/instances_train2017.json` with `train2017/` or `images/train2017/`; Roboflow's export
(`train/_annotations.coco.json` beside the images, `valid/`, `test/`); one json with a folder of images and lists.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from config.errors import UserError
from dl.annotations import RawAnnotation
from dl.files import IMAGE_SUFFIXES, DataError, natural_key, subfolders, walk_files
from dl.formats.coco_json import Category, CocoFile, looks_like_coco, read_coco
from dl.formats.lists import tree_splits
from dl.formats.pairing import ImageTree
from dl.formats.source import DataSource, Search, Size, TreeReader
from dl.splits import canonical_name, hinted_names
from ops.text import counted, shown

_JSON_FOLDERS = ("annotations", "annotation")
_ROBOFLOW = "_annotations.coco.json"
# COCO's other files, about the same images but without boxes of objects
_OTHER_KINDS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
_NUM_SAMPLES = 16  # file names that are looked up to find the image folder of a json


class _JsonPart(NamedTuple):
    """One json with its images."""

    file: CocoFile
    split: str  # "" if the file name says nothing about it
    images: dict[str, str]  # path below image_dir -> file_name as written
    errors: list[str]  # several file_name of the same image


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
        self.entries, self._errors = entries, errors

    def read_annotation(self, image_id: str, size: Size | None) -> tuple[Path, RawAnnotation]:
        entry = self.entries.get(self.files[image_id])
        if entry is None:
            raise DataError(f"{self.find_image(image_id)}: this image is not in the images of {self._names}")
        return entry[0].path, entry[0].annotation_of(entry[1])

    def errors(self) -> list[str]:
        return self._errors

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
    parts = _parts_of_splits([_read_part(path, image_dir) for path in paths], search.notes)
    for part in parts:
        if outside := [name for path, name in part.images.items() if os.path.isabs(path)]:
            search.notes.append(
                f"{part.file.path}: {counted(len(outside), 'image')} outside of {image_dir}: {shown(outside)}; is this "
                "intended?"
            )
    given = {canonical_name(part.split): tuple(sorted(part.images)) for part in parts if part.split}
    entries = {image: (part.file, name) for part in parts for image, name in part.images.items()}
    file_names = {image: name for image, (_, name) in entries.items()}
    splits, files = tree_splits(search, ImageTree(image_dir, entries), given, lambda: file_names)
    found = [] if search.class_list is not None else _class_names([part.file for part in parts], search.notes)
    classes = search.choose_classes(found, f"{paths[0]}: categories")
    if not (search.image_dir and search.annotation_dir):
        search.notes.append(f"COCO annotations in {', '.join(str(part.file.path) for part in parts)}")
    errors = [error for part in parts for error in (*part.file.errors, *part.errors)]
    reader = CocoReader(ImageTree(image_dir), annotation_dir, files, entries, errors)
    return DataSource(image_dir, annotation_dir, classes, splits, reader, search.notes, "coco", files)


def _annotation_dir(folder: Path) -> Path:
    """The folder with json files: `annotations`, or the folder itself if that has none."""
    children = subfolders(folder)
    named = next((children[name] for name in _JSON_FOLDERS if name in children), None)
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


def _read_part(path: Path, image_dir: Path) -> _JsonPart:
    file = read_coco(path)
    hints = hinted_names(path.parent.name if path.name == _ROBOFLOW else path.stem)
    split = next(iter(hints)) if len(hints) == 1 else ""
    tree = ImageTree(image_dir, ())
    folder, is_bare = _image_folder(file, split, image_dir)
    names: dict[str, list[str]] = defaultdict(list)
    for name in file.file_names:
        path_of_name = folder / (_bare_name(name) if is_bare else name)
        names[tree.relative_path(path_of_name) or os.path.normpath(path_of_name)].append(name)
    errors = [
        f"{path}: file_name {', '.join(same)} mean the same image {image}"
        for image, same in names.items()
        if len(same) > 1
    ]
    return _JsonPart(file, split, {image: same[0] for image, same in names.items()}, errors)


def _bare_name(name: str) -> str:
    """A file_name without its folders, which may be those of another machine."""
    return PurePosixPath(name.replace("\\", "/")).name


def _image_folder(file: CocoFile, split: str, image_dir: Path) -> tuple[Path, bool]:
    """The folder to which file_name is relative; and whether the folders in file_name must be ignored.

    The folder with most of a few sample names is used: the image folder, or up to two levels below. If several folders
    have equally many, the order is: named in the json's name (instances_train2017 -> train2017), the json's own folder,
    a folder named like the split, any other folder.
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
    names = file.file_names
    sample = names[:: max(1, len(names) // _NUM_SAMPLES)][:_NUM_SAMPLES]
    best, most = (folders[0], False), 0
    for is_bare in (False, True):
        sample_names = [_bare_name(name) if is_bare else name for name in sample]
        for folder in folders:
            count = sum(os.path.isfile(folder / name) for name in sample_names)
            if count > most:
                best, most = (folder, is_bare), count
        if most == len(sample):
            break
    return best


def _parts_of_splits(parts: list[_JsonPart], notes: list[str]) -> list[_JsonPart]:
    """Of several json files, those of a split. Raises `UserError` if there is none, or two of the same split."""
    if len(parts) == 1:
        return parts
    of_splits = [part for part in parts if part.split]
    unused = [part.file.path for part in parts if not part.split]
    notes += [f"{path} is not used: its name does not say train, val or test" for path in unused]
    names = [part.split for part in of_splits]
    if not of_splits or len(set(names)) < len(names):
        paths = ", ".join(str(part.file.path) for part in of_splits or parts)
        problem = "are for the same split" if of_splits else "do not say train, val or test in their names"
        raise UserError(f"{paths} {problem}; keep one COCO json for each of train, val and test")
    return of_splits


def _class_names(files: Sequence[CocoFile], notes: list[str]) -> list[str]:
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
    return [by_id[number].name for number in sorted(by_id)]
