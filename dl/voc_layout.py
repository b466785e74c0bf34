"""Where the images and xml files of a Pascal VOC data set lie.

Understood: the course's layout (`images annotations splits[/v5]/*.txt classes.txt`), VOCdevkit's names (`JPEGImages
Annotations ImageSets/Main`), the official MAR20 download (`Annotations/Horizontal Bounding Boxes`), images and xml
side by side in one folder; and folders of splits, inside these (`images/train annotations/train ...`) or around them
(Roboflow's export `train valid test`, `train/images train/annotations ...`).
"""

import os
from collections.abc import Iterable
from pathlib import Path

from config.errors import UserError
from dl.annotations import read_voc
from dl.faults import DataFault
from dl.files import (
    IMAGE_SUFFIXES,
    XML_SUFFIXES,
    file_named,
    holds_file,
    image_id,
    index_by_stem,
    natural_key,
    read_lines,
    subfolders,
    walk_files,
)
from dl.lists import (
    Splits,
    complete_splits,
    draw_splits,
    explicit_splits,
    folder_splits,
    has_usual,
    in_no_split,
    listed_splits,
    split_files,
    tree_splits,
)
from dl.pairing import Pairs, pair
from dl.readers import VocFolder, VocTree
from dl.source import DataSource, Search, checked_classes
from dl.splits import canonical_name
from dl.tree import ANNOTATION_FOLDERS, IMAGE_FOLDERS, ImageTree
from ops.text import counted, shown

_HORIZONTAL = "horizontal bounding boxes"  # official MAR20 keeps the oriented ones beside them


def holds_voc(folder: Path) -> bool:
    """Whether images and xml files lie in this folder as understood here."""
    return _holds_pairs(folder) or "train" in _folders_of_splits(folder)


def is_named_like_voc(folder: Path) -> bool:
    """Whether the folders have the names, though there may be no xml in them."""
    return None not in (_image_folder_in(folder), _annotation_folder_in(folder))


def annotated_images(folder: Path) -> int:
    """How many xml files of the folder have an image there."""
    image_dir, annotation_dir = _image_folder_in(folder) or folder, _annotation_folder_in(folder) or folder
    pairs = pair(walk_files(image_dir, IMAGE_SUFFIXES), walk_files(annotation_dir, XML_SUFFIXES))
    return len(set(pairs.annotation_of.values()))


def lay_out_voc(search: Search) -> DataSource:
    """The data set in the folders of `search`. Raises `UserError` with the absolute paths that were tried."""
    base, notes = search.base, search.notes
    is_explicit = search.image_dir is not None and search.annotation_dir is not None
    around = _folders_of_splits(base) if base and not (search.image_dir or search.annotation_dir) else {}
    if base and around and not is_named_like_voc(base):
        notes.append(f"images and annotations in {', '.join(map(str, around.values()))}")
        return _from_tree(search, base, base)
    image_dir = search.image_dir or _image_folder(base)
    annotation_dir = search.annotation_dir or _annotation_folder(base)
    if not is_explicit:
        notes.append(f"images in {image_dir}, annotations in {annotation_dir}")
    reader = VocFolder(image_dir, annotation_dir, search.suffix)
    images, xml_files = walk_files(image_dir, IMAGE_SUFFIXES), walk_files(annotation_dir, XML_SUFFIXES)
    if not images and not xml_files:
        raise UserError(f"{image_dir}: no images, and no xml files in {annotation_dir}")
    pairs = pair(images, xml_files)
    if _lie_in_folders(pairs, reader):
        return _from_tree(search, image_dir, annotation_dir)
    below = [path for path in images if "/" in path]
    if below and not is_explicit:
        notes.append(f"{counted(len(below), 'image')} in folders below {image_dir}, which nothing uses: {shown(below)}")
    splits = _splits(search, reader)
    classes = _classes(search, annotation_dir, (path for paths in reader.annotations.values() for path in paths))
    return DataSource(image_dir, annotation_dir, classes, splits, reader, notes)


def _lie_in_folders(pairs: Pairs, reader: VocFolder) -> bool:
    """Whether images have their xml by way of folders: of splits, or of any kind where no pair lies without."""
    if not reader.images.keys() & reader.annotations.keys():
        return bool(pairs.annotation_of) or not reader.images
    in_folders = {image: xml for image, xml in pairs.annotation_of.items() if "/" in image or "/" in xml}
    return bool(folder_splits(in_folders) or folder_splits(in_folders.values()))


def _from_tree(search: Search, image_dir: Path, annotation_dir: Path) -> DataSource:
    xml_files = walk_files(annotation_dir, XML_SUFFIXES)
    everything = walk_files(image_dir, IMAGE_SUFFIXES)
    annotation_of = pair(everything, xml_files).annotation_of
    # A folder in which no image has an xml holds something else: painted copies, small copies, unlabelled images.
    homes = {os.path.dirname(image) for image in annotation_of}
    tree = ImageTree(image_dir, [image for image in everything if not homes or os.path.dirname(image) in homes])
    splits, files = tree_splits(search.wanted, search.base, tree, {}, search.notes, lambda: annotation_of)
    if not search.wanted.subset_map:
        search.notes.extend(in_no_split(image_dir, everything, {"": tree.paths}))
    classes = _classes(search, annotation_dir, (annotation_dir / path for path in xml_files))
    reader = VocTree(tree, annotation_dir, files)
    return DataSource(image_dir, annotation_dir, classes, splits, reader, search.notes, "voc", files)


def _splits(search: Search, reader: VocFolder) -> Splits:
    ids, wanted, base = reader.ids, search.wanted, search.base

    def to_id(line: str, _beside: Path | None) -> str:
        return image_id(line, ids)

    if wanted.subset_map:
        return explicit_splits(wanted, to_id)
    files = split_files(base) if base else []
    splits = listed_splits(files, to_id, search.notes)
    if not has_usual(splits, wanted):
        return draw_splits(wanted, base, files, ids, search.notes)
    search.notes.extend(in_no_split(reader.image_dir, reader.images, splits))
    return complete_splits(splits, wanted, files, search.notes)


def _folders_of_splits(folder: Path) -> dict[str, Path]:
    """Split name -> folder with images and xml files, side by side or in two folders of the usual names."""
    children = {canonical_name(name): path for name, path in subfolders(folder).items()}
    found = {name: children[name] for name in ("train", "validation", "test") if name in children}
    return {name: path for name, path in found.items() if _holds_pairs(path)}


def _holds_pairs(folder: Path) -> bool:
    annotation_dir = _annotation_folder_in(folder)
    if annotation_dir is None or _image_folder_in(folder) is None:
        return False
    return holds_file(annotation_dir, XML_SUFFIXES) or bool(walk_files(annotation_dir, XML_SUFFIXES))


def _image_folder_in(folder: Path) -> Path | None:
    """The folder of images; the folder itself when images lie beside their xml, or in folders of splits."""
    children = subfolders(folder)
    named = next((children[name] for name in IMAGE_FOLDERS if name in children), None)
    if named or _is_flat(folder):
        return named or folder
    has_annotations = any(name in children for name in ANNOTATION_FOLDERS)
    splits = [path for name, path in children.items() if canonical_name(name) in ("train", "trainval")]
    return folder if has_annotations and any(holds_file(path, IMAGE_SUFFIXES) for path in splits) else None


def _annotation_folder_in(folder: Path) -> Path | None:
    children = subfolders(folder)
    named = next((children[name] for name in ANNOTATION_FOLDERS if name in children), None)
    if named:
        return subfolders(named).get(_HORIZONTAL, named)
    return children.get(_HORIZONTAL) or (folder if _is_flat(folder) else None)


def _is_flat(folder: Path | None) -> bool:
    """Images and xml files side by side, as some annotation tools save them."""
    if folder is None or not holds_file(folder, XML_SUFFIXES):
        return False
    return bool(index_by_stem(folder, IMAGE_SUFFIXES).keys() & index_by_stem(folder, XML_SUFFIXES).keys())


def _image_folder(base: Path | None) -> Path:
    if base is None:
        raise UserError("no data set is named: give --data DIR, or set imageDir and annotationDir")
    return _image_folder_in(base) or _missing_folder(base, "imageDir", ("images", "JPEGImages"))


def _annotation_folder(base: Path | None) -> Path:
    if base is None:
        raise UserError("imageDir is set but annotationDir is not: set it, or give --data DIR")
    return _annotation_folder_in(base) or _missing_folder(base, "annotationDir", ("annotations", "Annotations"))


def _missing_folder(base: Path, field_name: str, names: tuple[str, ...]) -> Path:
    raise UserError(f"{base}: found neither {' nor '.join(str(base / name) for name in names)}; set {field_name}")


def _classes(search: Search, annotation_dir: Path, xml_files: Iterable[Path]) -> tuple[str, ...]:
    if search.class_list is not None:
        return checked_classes(search.class_list, "classList")
    path = file_named(search.base, "classes.txt") if search.base else None
    if path:
        return checked_classes(read_lines(path), str(path))
    names = sorted(_names_in(xml_files), key=natural_key)
    if not names:
        raise UserError(
            f"{annotation_dir}: no xml file there has an object, and there is no classes.txt: nothing to learn"
        )
    search.notes.append(f"no classes.txt: {len(names)} classes found in the xml files: {', '.join(names)}")
    return tuple(names)


def _names_in(xml_files: Iterable[Path]) -> set[str]:
    names: set[str] = set()
    for path in xml_files:
        try:
            names.update(entry.name for entry in read_voc(path).objects)
        except DataFault:
            continue  # dl.check reads the same file and reports it with all others
    return names
