"""What kind of data set lies in this folder? Where are its images, annotations, classes and splits?

Pascal VOC, COCO and YOLO, each in the layouts that its file `*_layout.py` tells; also one or two folders further down.
Where several formats lie side by side, the one that annotates most images is taken, unless annotationFormat names one.
If two annotate equally many images, the order VOC, COCO, YOLO decides.
"""

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from config.errors import UserError
from config.mconfig import ModelConfig
from config.places import absolute
from dl.coco_layout import holds_coco, lay_out_coco, named_images
from dl.files import (
    IMAGE_SUFFIXES,
    XML_SUFFIXES,
    file_suffixes,
    holds_file,
    linked_folders,
    refuse_unfit_name,
    subfolders,
)
from dl.lists import Wanted
from dl.pairing import paired_annotations
from dl.source import FORMATS, DataSource, Search
from dl.voc_layout import annotated_images, holds_voc, is_named_like_voc, lay_out_voc
from dl.yolo import LABEL_SUFFIXES
from dl.yolo_layout import holds_yolo, lay_out_yolo


class _Layout(NamedTuple):
    holds: Callable[[Path], bool]
    lay_out: Callable[[Search], DataSource]
    count: Callable[[Path], int]  # images of a folder that are annotated in this format


_LAYOUTS = {
    "voc": _Layout(holds_voc, lay_out_voc, annotated_images),
    "coco": _Layout(holds_coco, lay_out_coco, named_images),
    "yolo": _Layout(holds_yolo, lay_out_yolo, partial(paired_annotations, suffixes=LABEL_SUFFIXES)),
}
_ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".rar", ".7z"}
_MOST_KINDS = 8  # of files that a refusal counts


def locate(mcfg: ModelConfig) -> DataSource:
    """Find what mcfg does not say: imageDir, annotationDir, classList and subsetMap win over what lies in dataDir.

    Raises `UserError` with the absolute paths that were tried.
    """
    notes: list[str] = []
    base = _existing(mcfg.dataDir, "dataDir") if mcfg.dataDir else None
    image_dir = _existing(mcfg.imageDir, "imageDir") if mcfg.imageDir else None
    annotation_dir = _existing(mcfg.annotationDir, "annotationDir") if mcfg.annotationDir else None
    if base and not (image_dir or annotation_dir):
        base, name = _home(base, mcfg.annotationFormat, notes)
    else:
        name = _explicit_format(mcfg.annotationFormat, annotation_dir or base)
    assert not isinstance(mcfg.classList, str), "load_config puts the names in place of a class list's file"
    wanted = Wanted.from_config(mcfg)
    return _LAYOUTS[name].lay_out(Search(base, image_dir, annotation_dir, mcfg.classList, wanted, mcfg.suffix, notes))


def as_overrides(source: DataSource) -> dict[str, Any]:
    """What was found, as config fields: `locate` of a config that has them finds the same again without searching."""
    return {
        "annotationFormat": source.format,
        "imageDir": str(source.image_dir),
        "annotationDir": str(source.annotation_dir),
        "classList": source.class_list,
        "subsetMap": {
            name: tuple(source.files.get(image_id, image_id) for image_id in ids) for name, ids in source.splits.items()
        },
    }


def _existing(text: str, field_name: str) -> Path:
    path = Path(absolute(text))
    refuse_unfit_name(path.parent, path.name)
    if not os.path.isdir(path):
        reason = "a file, not a folder" if os.path.exists(path) else "no such folder"
        way_out = "--data DIR names the data set's folder" if field_name == "dataDir" else f"set {field_name} to it"
        raise UserError(f"{field_name}={text}: {path} is {reason}; {way_out}")
    return path


def _explicit_format(asked: str, folder: Path | None) -> str:
    """The format of the annotations in a folder that the config names."""
    if asked != "auto":
        return asked
    if folder is None or holds_file(folder, XML_SUFFIXES):
        return "voc"
    found = _formats_in(folder, asked)
    if found:
        return found[0]
    return (
        "yolo" if any(holds_file(place, LABEL_SUFFIXES) for place in [folder, *subfolders(folder).values()]) else "voc"
    )


def _home(base: Path, asked: str, notes: list[str]) -> tuple[Path, str]:
    """`base`, or the one folder up to two levels below that holds a data set, and its format."""
    children = [child for child in subfolders(base).values() if os.access(child, os.R_OK | os.X_OK)]
    grandchildren = [grandchild for child in children for grandchild in subfolders(child).values()]
    for level in ([base], children, grandchildren):
        places = {place.resolve(): place for place in reversed(level)}  # a link to a folder is no second data set
        homes = {folder: formats for folder in places.values() if (formats := _formats_in(folder, asked))}
        if len(homes) > 1:
            raise UserError(
                f"{base} holds several data sets ({', '.join(map(str, sorted(homes)))}): give one of them as the data "
                "folder"
            )
        for home, formats in homes.items():
            notes += [
                f"{home / link}: this link is not followed; its folder is read once" for link in linked_folders(home)
            ]
            return home, _best(home, formats, notes)
    raise UserError(_refusal(base, asked, [base, *children, *grandchildren]))


def _best(home: Path, formats: list[str], notes: list[str]) -> str:
    """The format that annotates most images of a folder; if several annotate as many, the first of them."""
    if len(formats) == 1:
        return formats[0]
    counts = {}
    for name in formats:
        try:
            counts[name] = _LAYOUTS[name].count(home)
        except UserError as error:  # a json that looks like COCO's but is not, beside a data set of another format
            counts[name] = 0
            notes.append(f"not read: {error}")
    best = max(formats, key=lambda name: counts[name])
    others = [f"{FORMATS[name]} ({counts[name]}, annotationFormat={name})" for name in formats if name != best]
    notes.append(
        f"{home} holds several formats; read: {FORMATS[best]} (images annotated: {counts[best]}); not read: "
        + ", ".join(others)
    )
    return best


def _refusal(base: Path, asked: str, places: list[Path]) -> str:
    """That there is no data set: which files lie in the places, and what to do about it."""
    kinds = Counter(suffix or "without suffix" for place in places for suffix in file_suffixes(place))
    images = sum(count for suffix, count in kinds.items() if suffix in IMAGE_SUFFIXES)
    in_order = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    found = ", ".join(f"{count} {suffix}" for suffix, count in in_order[:_MOST_KINDS]) or "no file"
    if kinds.keys() & _ARCHIVES and not images:
        way_out = "unpack the archive first"
    elif not images:
        way_out = "give the folder that holds images and annotations"
    elif kinds[".xml"]:
        way_out = "put images in 'images' and the Pascal VOC files in 'annotations', or set imageDir and annotationDir"
    elif kinds[".txt"]:
        way_out = (
            "for YOLO labels put images in 'images', labels in 'labels' and a data.yaml or classes.txt beside them, or "
            "set imageDir and annotationDir"
        )
    elif kinds[".json"]:
        way_out = "a COCO json needs images, annotations and categories; convert other json to COCO"
    elif kinds[".csv"]:
        way_out = "annotations in csv are not read; convert them to Pascal VOC, COCO or YOLO"
    else:
        way_out = (
            "there are images but no annotations: put Pascal VOC files in 'annotations' or YOLO labels in 'labels'"
        )
    looked_for = "" if asked == "auto" else f" of annotationFormat={asked}"
    tried = f"{base / 'images'}, {base / 'JPEGImages'}, {base / 'annotations'}, {base / 'Annotations'}"
    return (
        f"{base}: no data set found there or two folders below{looked_for}; tried {tried}, images beside their xml "
        f"files, a data.yaml, labels beside images, and COCO json; the files there are {found}: {way_out}"
    )


def _formats_in(folder: Path, asked: str) -> list[str]:
    """The formats that lie in a folder, in the order in which they win; only the one asked for unless auto."""
    found = [name for name, layout in _LAYOUTS.items() if asked in ("auto", name) and layout.holds(folder)]
    if not found and asked in ("auto", "voc") and is_named_like_voc(folder):
        return ["voc"]  # without any xml, which its layout reports
    return found
