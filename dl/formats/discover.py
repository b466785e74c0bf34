"""Find a data set on disk: its format, images, annotations, classes and splits.

The layouts of each format are described in `voc.py`, `yolo.py` and `coco.py`. The data set may also be one or two
folders below the given one. If a folder has several formats, the one with most annotated images is used, unless
annotationFormat selects one. If two formats have equally many, the order is VOC, COCO, YOLO.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from config.errors import UserError
from config.load import absolute
from config.mconfig import ModelConfig
from config.parts import WordOrPart
from dl.files import IMAGE_SUFFIXES, XML_SUFFIXES, check_file_name, file_suffixes, has_file, linked_folders, subfolders
from dl.formats.coco import count_coco_images, find_coco, is_coco
from dl.formats.source import DataSource, Format, Search, SplitRequest, check_class_list
from dl.formats.voc import count_voc_images, find_voc, has_voc_names, is_voc
from dl.formats.yolo import LABEL_SUFFIXES, count_yolo_images, find_yolo, is_yolo


@dataclass(frozen=True)
class _OwnFormat:
    """A format of Mars; the functions are those of `Format`."""

    title: str
    is_in: Callable[[Path], bool]
    find: Callable[[Search], DataSource]
    count_images: Callable[[Path], int]


_FORMATS: dict[str, Format] = {  # the first one wins a tie
    "voc": _OwnFormat("Pascal VOC xml", is_voc, find_voc, count_voc_images),
    "coco": _OwnFormat("COCO json", is_coco, find_coco, count_coco_images),
    "yolo": _OwnFormat("YOLO labels", is_yolo, find_yolo, count_yolo_images),
}
_ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".rar", ".7z"}
_MAX_SUFFIXES = 8  # kinds of files that an error message counts


def locate(mcfg: ModelConfig) -> DataSource:
    """Find what the config does not say. imageDir, annotationDir, classList and subsetMap override what is in dataDir.

    Raises `UserError` with the absolute paths that were tried.
    """
    notes: list[str] = []
    base = _existing_folder(mcfg.dataDir, "dataDir") if mcfg.dataDir else None
    image_dir = _existing_folder(mcfg.imageDir, "imageDir") if mcfg.imageDir else None
    annotation_dir = _existing_folder(mcfg.annotationDir, "annotationDir") if mcfg.annotationDir else None
    if base and not (image_dir or annotation_dir):
        base, name = _find_home(base, mcfg.annotationFormat, notes)
    else:
        name = mcfg.annotationFormat if mcfg.annotationFormat != "auto" else _guess_format(annotation_dir or base)
    assert not isinstance(mcfg.classList, str), "load_config replaces the file of a class list by its names"
    class_list = check_class_list(mcfg.classList, "classList") if mcfg.classList else None
    request = SplitRequest.from_config(mcfg)
    found = _formats(name)[name].find(Search(base, image_dir, annotation_dir, class_list, request, mcfg.suffix, notes))
    return replace(found, format=name)


def as_overrides(source: DataSource) -> dict[str, Any]:
    """The data source as config fields. `locate` of a config with them finds the same without a search."""
    return {
        "annotationFormat": source.format,
        "imageDir": str(source.image_dir),
        "annotationDir": str(source.annotation_dir),
        "classList": source.class_list,
        "subsetMap": {
            name: tuple(source.files.get(image_id, image_id) for image_id in ids) for name, ids in source.splits.items()
        },
    }


def _formats(requested: str) -> dict[str, Format]:
    """The formats to look for: all of Mars, or the requested one, which may be a class of a recipe."""
    if requested == "auto":
        return _FORMATS
    if requested in _FORMATS:
        return {requested: _FORMATS[requested]}
    return {requested: WordOrPart.of(requested).build("annotationFormat", "dl.formats.discover", kind=Format)}


def _existing_folder(text: str, field_name: str) -> Path:
    path = Path(absolute(text))
    check_file_name(path.parent, path.name)
    if not os.path.isdir(path):
        problem = "is a file, not a folder" if os.path.exists(path) else "no such folder"
        way_out = (
            "use --data DIR with the folder of the data set" if field_name == "dataDir" else f"correct {field_name}"
        )
        place = "" if str(path) == text else f" ({path})"  # where a relative path was looked for
        raise UserError(f"{field_name}={text}: {problem}{place}; {way_out}")
    return path


def _guess_format(folder: Path | None) -> str:
    """The format of the annotations in a folder that the config names."""
    if folder is None or has_file(folder, XML_SUFFIXES):
        return "voc"
    if found := _formats_in(folder, "auto"):
        return found[0]
    has_labels = any(has_file(place, LABEL_SUFFIXES) for place in [folder, *subfolders(folder).values()])
    return "yolo" if has_labels else "voc"


def _find_home(base: Path, requested: str, notes: list[str]) -> tuple[Path, str]:
    """`base`, or the only folder up to two levels below that has a data set, and its format. Raises `UserError`."""
    children = [child for child in subfolders(base).values() if os.access(child, os.R_OK | os.X_OK)]
    grandchildren = [grandchild for child in children for grandchild in subfolders(child).values()]
    for level in ([base], children, grandchildren):
        places = {place.resolve(): place for place in reversed(level)}  # a link to a folder is no second data set
        homes = {folder: formats for folder in places.values() if (formats := _formats_in(folder, requested))}
        if len(homes) > 1:
            raise UserError(
                f"{base} has several data sets ({', '.join(map(str, sorted(homes)))}): give the folder of one of them"
            )
        for home, formats in homes.items():
            notes += [
                f"{home / link}: this link is not followed, because its folder is already read"
                for link in linked_folders(home)
            ]
            return home, _best_format(home, formats, notes)
    raise UserError(_no_data_set_message(base, requested, [base, *children, *grandchildren]))


def _best_format(home: Path, formats: list[str], notes: list[str]) -> str:
    """The format with most annotated images in a folder; the first one of several with equally many."""
    if len(formats) == 1:
        return formats[0]
    counts = {}
    for name in formats:
        try:
            counts[name] = _FORMATS[name].count_images(home)
        except UserError as error:  # a json that looks like COCO but is invalid, beside a data set of another format
            counts[name] = 0
            notes.append(f"not read: {error}")
    best = max(formats, key=lambda name: counts[name])
    unused = [f"{_FORMATS[name].title} ({counts[name]}, annotationFormat={name})" for name in formats if name != best]
    notes.append(
        f"{home} has several formats; read: {_FORMATS[best].title} (annotated images: {counts[best]}); not read: "
        + ", ".join(unused)
    )
    return best


def _no_data_set_message(base: Path, requested: str, places: list[Path]) -> str:
    """An error message: which files are in the places, and what to do."""
    counts = Counter(suffix or "without suffix" for place in places for suffix in file_suffixes(place))
    num_images = sum(count for suffix, count in counts.items() if suffix in IMAGE_SUFFIXES)
    in_order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    found = ", ".join(f"{count} {suffix}" for suffix, count in in_order[:_MAX_SUFFIXES]) or "no file"
    if counts.keys() & _ARCHIVES and not num_images:
        way_out = "unpack the archive first"
    elif not num_images:
        way_out = "give the folder that has the images and annotations"
    elif counts[".xml"]:
        way_out = "put images in 'images' and the Pascal VOC files in 'annotations', or set imageDir and annotationDir"
    elif counts[".txt"]:
        way_out = (
            "for YOLO labels put images in 'images', labels in 'labels' and a data.yaml or classes.txt beside them, or "
            "set imageDir and annotationDir"
        )
    elif counts[".json"]:
        way_out = "a COCO json needs images, annotations and categories; convert other json files to COCO"
    elif counts[".csv"]:
        way_out = "csv annotations are not supported; convert them to Pascal VOC, COCO or YOLO"
    else:
        way_out = (
            "there are images but no annotations: put Pascal VOC files in 'annotations' or YOLO labels in 'labels'"
        )
    of_format = "" if requested == "auto" else f" of annotationFormat={requested}"
    tried = f"{base / 'images'}, {base / 'JPEGImages'}, {base / 'annotations'}, {base / 'Annotations'}"
    return (
        f"{base}: no data set{of_format} found there or up to two folders below; tried {tried}, images beside their "
        f"xml files, a data.yaml, labels beside images, and COCO json; the files there are {found}: {way_out}"
    )


def _formats_in(folder: Path, requested: str) -> list[str]:
    """The formats in a folder in their order of priority; only the requested one unless it is "auto"."""
    found = [name for name, entry in _formats(requested).items() if entry.is_in(folder)]
    if not found and requested in ("auto", "voc") and has_voc_names(folder):
        return ["voc"]  # without any xml file; find_voc reports this
    return found
