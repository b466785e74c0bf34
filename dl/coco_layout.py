"""Where the json files and images of a COCO data set lie, and which split a json is.

Understood: `annotations/instances_train2017.json` with `train2017/` or `images/train2017/`, Roboflow's export
(`train/_annotations.coco.json` beside the images, `valid/`, `test/`), and one json with a folder of images and lists.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from config.errors import UserError
from dl.coco import Category, CocoFile, looks_like_coco, read_coco
from dl.files import IMAGE_SUFFIXES, natural_key, subfolders, walk_files
from dl.lists import Splits, tree_splits
from dl.readers import CocoFiles
from dl.source import DataSource, Search, checked_classes
from dl.splits import canonical_name, hinted_names
from dl.tree import ImageTree
from ops.text import counted, shown

_JSON = ".json"
_JSON_FOLDERS = ("annotations", "annotation")
_ROBOFLOW = "_annotations.coco.json"
# COCO's other files, which speak of the same images but hold no boxes of their own
_OTHER_KINDS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
_NUM_SAMPLES = 16  # file names by which the folder of a json's images is recognised


class _Part(NamedTuple):
    """One json with its images."""

    file: CocoFile
    split: str  # "" when its name speaks of none
    images: dict[str, str]  # path below image_dir -> file_name as written
    faults: list[str]  # names of the same image, of which only one would count


def holds_coco(folder: Path) -> bool:
    """Whether a json in this folder, in its annotations or beside the images of a split looks like COCO's."""
    return bool(_json_files(_annotation_dir(folder)))


def named_images(folder: Path) -> int:
    """How many images that a json of the folder names lie in it. Raises `UserError` for a json that is broken."""
    named = {_bare(name) for path in _json_files(_annotation_dir(folder)) for name in read_coco(path).file_names}
    return len(named & set(map(_bare, walk_files(folder, IMAGE_SUFFIXES))))


def lay_out_coco(search: Search) -> DataSource:
    """The data set in the folders of `search`. Raises `UserError` with the absolute paths that were tried."""
    annotation_dir = search.annotation_dir or (_annotation_dir(search.base) if search.base else search.image_dir)
    image_dir = search.image_dir or search.base
    if annotation_dir is None or image_dir is None:
        raise UserError("annotationDir is set but imageDir is not: set it, or give --data DIR")
    paths = _json_files(annotation_dir)
    if not paths:
        raise UserError(f"{annotation_dir}: no COCO json (images, annotations, categories) there; set annotationDir")
    parts = [_part(path, image_dir) for path in paths]
    parts = _without_strangers(parts, search.notes)
    search.notes.extend(note for part in parts for note in _outside(part, image_dir))
    given = _given(parts)
    known = {image: (part.file, name) for part in parts for image, name in part.images.items()}
    with_entry = {image: name for image, (_, name) in known.items()}
    splits, files = tree_splits(
        search.wanted, search.base, ImageTree(image_dir, known), given, search.notes, lambda: with_entry
    )
    classes = search.class_list or tuple(_categories(parts, search.notes))
    classes = checked_classes(classes, "classList" if search.class_list else f"{paths[0]}: categories")
    if not (search.image_dir and search.annotation_dir):
        search.notes.append(f"COCO annotations in {', '.join(str(part.file.path) for part in parts)}")
    faults = [fault for part in parts for fault in (*part.file.faults, *part.faults)]
    reader = CocoFiles(ImageTree(image_dir), annotation_dir, files, known, faults)
    return DataSource(image_dir, annotation_dir, classes, splits, reader, search.notes, "coco", files)


def _annotation_dir(folder: Path) -> Path:
    """The folder with json files: `annotations`, unless there are none in it."""
    children = subfolders(folder)
    named = next((children[name] for name in _JSON_FOLDERS if name in children), None)
    return named if named and _json_files(named) else folder


def _json_files(folder: Path) -> list[Path]:
    """Those that look like COCO's in the folder itself, else Roboflow's, one in each folder of images."""
    with os.scandir(folder) as entries:
        names = sorted((entry.name for entry in entries if entry.name.lower().endswith(_JSON)), key=natural_key)
    names = [name for name in names if not name.startswith((".", *_OTHER_KINDS))]
    instances = [name for name in names if name.startswith("instances_")]
    found = [folder / name for name in instances or names if looks_like_coco(folder / name)]
    if found:
        return found
    return [path / _ROBOFLOW for path in subfolders(folder).values() if (path / _ROBOFLOW).is_file()]


def _part(path: Path, image_dir: Path) -> _Part:
    file = read_coco(path)
    word = path.parent.name if path.name == _ROBOFLOW else path.stem
    hints = hinted_names(word)
    split = next(iter(hints)) if len(hints) == 1 else ""
    tree = ImageTree(image_dir, ())
    folder, is_bare = _image_folder(file, split, image_dir)
    names: dict[str, list[str]] = defaultdict(list)
    for name in file.file_names:
        place = folder / (_bare(name) if is_bare else name)
        names[tree.below(place) or os.path.normpath(place)].append(name)
    twice = {image: same for image, same in names.items() if len(same) > 1}
    faults = [f"{path}: file_name {', '.join(same)} mean the same image {image}" for image, same in twice.items()]
    return _Part(file, split, {image: same[0] for image, same in names.items()}, faults)


def _bare(name: str) -> str:
    """A file_name without its folders, which may be those of another machine."""
    return PurePosixPath(name.replace("\\", "/")).name


def _outside(part: _Part, image_dir: Path) -> list[str]:
    names = [name for path, name in part.images.items() if os.path.isabs(path)]
    if not names:
        return []
    return [f"{part.file.path}: {counted(len(names), 'image')} outside of {image_dir}: {shown(names)}; is that meant?"]


def _image_folder(file: CocoFile, split: str, image_dir: Path) -> tuple[Path, bool]:
    """The folder to which file_name is relative; and whether the folders written in file_name are none of ours.

    The one in which most of a few names are found; of several the one whose name speaks of the split, or that has the
    json's own words (instances_train2017 -> train2017).
    """
    names = file.file_names
    sample = names[:: max(1, len(names) // _NUM_SAMPLES)][:_NUM_SAMPLES]
    folders = sorted(_folders(file, image_dir), key=lambda folder: _strangeness(folder, file, split))
    best = (folders[0], False)
    most = 0
    for is_bare in (False, True):
        words = [_bare(name) if is_bare else name for name in sample]
        for folder in folders:
            count = sum(os.path.isfile(folder / word) for word in words)
            if count > most:
                best, most = (folder, is_bare), count
        if most == len(sample):
            break
    return best


def _folders(file: CocoFile, image_dir: Path) -> list[Path]:
    """The image folder and those two levels below it, the json's own first if it lies there."""
    children = list(subfolders(image_dir).values())
    below = [grandchild for child in children for grandchild in subfolders(child).values()]
    own = [file.path.parent] if file.path.parent in (image_dir, *children, *below) else []
    return list(dict.fromkeys([*own, image_dir, *children, *below]))


def _strangeness(folder: Path, file: CocoFile, split: str) -> int:
    """0 for the folder that the json's name speaks of, 1 for its own, 2 for one of the split, 3 for any other."""
    if file.path.stem.endswith(f"_{folder.name}"):
        return 0
    if folder == file.path.parent:
        return 1
    return 2 if split and split in hinted_names(folder.name) else 3


def _without_strangers(parts: Sequence[_Part], notes: list[str]) -> list[_Part]:
    """Of several files those that are a split each. Raises `UserError` for none, or two of one split."""
    if len(parts) == 1:
        return list(parts)
    kept = [part for part in parts if part.split]
    aside = [part.file.path for part in parts if not part.split]
    notes += [f"{path} left aside: its name speaks of no split (train, val or test)" for path in aside]
    names = [part.split for part in kept]
    if not kept or len(set(names)) < len(names):
        paths = ", ".join(str(part.file.path) for part in kept or parts)
        problem = "give the same split" if kept else "are several, and their names speak of no split"
        raise UserError(f"{paths} {problem}; leave one COCO json for each of train, val and test")
    return kept


def _given(parts: Sequence[_Part]) -> Splits:
    """Split -> images in the order of their paths, as a YOLO copy lists them."""
    return {canonical_name(part.split): tuple(sorted(part.images)) for part in parts if part.split}


def _categories(parts: Sequence[_Part], notes: list[str]) -> list[str]:
    """Names in the order of their ids, all files together.

    Left out is Roboflow's category 0, the project's name, which is above all others and has no object. Raises
    `UserError` when files disagree.
    """
    by_id: dict[int, Category] = {}
    owner: dict[int, Path] = {}
    for part in parts:
        for number, category in part.file.categories.items():
            first = by_id.setdefault(number, category)
            owner.setdefault(number, part.file.path)
            if first.name != category.name:
                raise UserError(
                    f"{part.file.path}: category {number} is {category.name}, in {owner[number]} it is {first.name}; "
                    "number the categories alike in all files"
                )
    used = {number for part in parts for number in part.file.used_categories}
    above = {category.supercategory for category in by_id.values()}
    idle = [
        number
        for number, category in by_id.items()
        if number not in used and category.name in above and category.supercategory in ("", "none")
    ]
    if idle and len(idle) < len(by_id):
        names = ", ".join(f"{number} ({by_id.pop(number).name})" for number in idle)
        notes.append(f"category {names} left out of the classes: it stands above others and has no object")
    return [by_id[number].name for number in sorted(by_id)]
