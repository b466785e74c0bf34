"""What kind of data set lies in this folder? Where are its images, annotations, classes and splits?

Understood: the course's layout (`images annotations splits[/v5]/*.txt classes.txt`), VOCdevkit's names (`JPEGImages
Annotations ImageSets/Main`), the official MAR20 download (`Annotations/Horizontal Bounding Boxes`), images and xml
side by side in one folder; each also one or two folders further down.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config.errors import UserError
from config.mconfig import ModelConfig
from dl.annotations import read_voc
from dl.faults import DataFault
from dl.files import IMAGE_SUFFIXES, XML_SUFFIXES, image_id, index_by_stem, natural_key, read_lines
from dl.splits import USUAL_NAMES, canonical_name, carve_validation, find_split, hinted_names, make_splits

_IMAGE_FOLDERS = ("images", "jpegimages", "image", "imgs", "img")
_ANNOTATION_FOLDERS = ("annotations", "annotation", "xmls", "xml")
_HORIZONTAL = "horizontal bounding boxes"  # official MAR20 keeps the oriented ones beside them
_COURSE_VERSION = "v5"  # of the split lists that the course hands out
# Where lists may lie and how they may end: .txt in "splits" and "imagesets" is read, of the rest we complain.
_LIST_FOLDERS = ("splits", "imagesets", "split", "sets", "lists")
_LIST_SUFFIXES = ("", ".txt", ".csv", ".tsv", ".lst", ".list", ".json")


@dataclass(frozen=True)
class DataSource:
    """Where a data set lies. Splits hold image ids as listed, duplicates too: `dl.check` counts and removes them."""

    image_dir: Path
    annotation_dir: Path
    class_list: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]
    notes: list[str] = field(default_factory=list)  # what was decided for the user, to be said once


def locate(mcfg: ModelConfig) -> DataSource:
    """Find what mcfg does not say: imageDir, annotationDir, classList and subsetMap win over what lies in dataDir.

    Raises `UserError` with the absolute paths that were tried.
    """
    notes: list[str] = []
    base = _existing(mcfg.dataDir, "dataDir") if mcfg.dataDir else None
    if base and not (mcfg.imageDir or mcfg.annotationDir):
        base = _home(base)
    image_dir = _existing(mcfg.imageDir, "imageDir") if mcfg.imageDir else _image_folder(base)
    annotation_dir = _existing(mcfg.annotationDir, "annotationDir") if mcfg.annotationDir else _annotation_folder(base)
    if not (mcfg.imageDir and mcfg.annotationDir):
        notes.append(f"images in {image_dir}, annotations in {annotation_dir}")
    ids = index_by_stem(image_dir, IMAGE_SUFFIXES).keys() | index_by_stem(annotation_dir, XML_SUFFIXES).keys()
    if not ids:
        raise UserError(f"{image_dir}: no images, and no xml files in {annotation_dir}")
    splits = _explicit_splits(mcfg, ids) or _found_splits(mcfg, base, ids, notes)
    return DataSource(image_dir, annotation_dir, _classes(mcfg, base, annotation_dir, notes), splits, notes)


def as_overrides(source: DataSource) -> dict[str, Any]:
    """What was found, as config fields: `locate` of a config that has them finds the same again without searching."""
    return {
        "imageDir": str(source.image_dir),
        "annotationDir": str(source.annotation_dir),
        "classList": source.class_list,
        "subsetMap": dict(source.splits),
    }


def _existing(text: str, field_name: str) -> Path:
    path = Path(text).expanduser().absolute()
    if not path.is_dir():
        reason = "a file, not a folder" if path.exists() else "no such folder"
        way_out = "--data DIR names the data set's folder" if field_name == "dataDir" else f"set {field_name} to it"
        raise UserError(f"{field_name}={text}: {path} is {reason}; {way_out}")
    return path


def _subfolders(folder: Path) -> dict[str, Path]:
    """Lower-case name -> visible folder, in natural order."""
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return {path.name.lower(): path for path in sorted(found, key=lambda path: natural_key(path.name))}


def _home(base: Path) -> Path:
    """`base`, or the one folder up to two levels below that holds a data set."""
    if _holds_data_set(base):
        return base
    children = list(_subfolders(base).values())
    for level in (children, [grandchild for child in children for grandchild in _subfolders(child).values()]):
        homes = [folder for folder in level if _holds_data_set(folder)]
        if len(homes) > 1:
            raise UserError(
                f"{base} holds several data sets ({', '.join(map(str, homes))}): give one of them as the data folder"
            )
        if homes:
            return homes[0]
    tried = f"{base / 'images'}, {base / 'JPEGImages'}, {base / 'annotations'}, {base / 'Annotations'}"
    raise UserError(
        f"{base}: no data set found there or two folders below; tried {tried} and images beside their xml files; "
        "put images in 'images' and Pascal VOC files in 'annotations', or set imageDir and annotationDir"
    )


def _holds_data_set(folder: Path) -> bool:
    return None not in (_image_folder_in(folder), _annotation_folder_in(folder))


def _image_folder_in(folder: Path) -> Path | None:
    children = _subfolders(folder)
    named = next((children[name] for name in _IMAGE_FOLDERS if name in children), None)
    return named or (folder if _is_flat(folder) else None)


def _annotation_folder_in(folder: Path) -> Path | None:
    children = _subfolders(folder)
    named = next((children[name] for name in _ANNOTATION_FOLDERS if name in children), None)
    if named:
        return _subfolders(named).get(_HORIZONTAL, named)
    return children.get(_HORIZONTAL) or (folder if _is_flat(folder) else None)


def _is_flat(folder: Path) -> bool:
    """Images and xml files side by side, as some annotation tools save them."""
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


def _explicit_splits(mcfg: ModelConfig, ids: Collection[str]) -> dict[str, tuple[str, ...]]:
    splits = {}
    for name, value in mcfg.subsetMap.items():
        lines = read_lines(_list_file(name, value)) if isinstance(value, str) else value
        splits[name] = tuple(image_id(line, ids) for line in lines)
    return splits


def _list_file(name: str, text: str) -> Path:
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"subsetMap: no such file for split '{name}': {path}")
    return path


def _found_splits(
    mcfg: ModelConfig, base: Path | None, ids: Collection[str], notes: list[str]
) -> dict[str, tuple[str, ...]]:
    """The splits that lie there; drawn only where nothing looks like a list of them, for a test image must stay one."""
    splits: dict[str, tuple[str, ...]] = {}
    files = _split_files(base) if base else []
    for path in sorted(files, key=lambda path: path.stem != canonical_name(path.stem)):  # exact names before aliases
        name = canonical_name(path.stem)
        if name in splits:
            notes.append(f"{path} left aside: another file already gives the split '{name}'")
        else:
            splits[name] = tuple(image_id(line, ids) for line in read_lines(path))
    known = (*USUAL_NAMES, "trainval", mcfg.trainSplitName, mcfg.validationSplitName, mcfg.testSplitName)
    if not any(find_split(name, splits) for name in known):
        _refuse_strange_lists(files or _unread_lists(base, ids), "train.txt, validation.txt (or val.txt) and test.txt")
        splits = make_splits(ids, mcfg.splitSeed)
        counts = ", ".join(f"{len(names)} {name}" for name, names in splits.items())
        notes.append(f"no split files found: split by splitSeed={mcfg.splitSeed} into {counts} images")
        return splits
    if "train" not in splits and "trainval" in splits:
        splits["train"] = splits["trainval"]
        notes.append("no train list: 'trainval' is the training split")
    if splits.get("train") and not any(find_split(name, splits) for name in ("validation", mcfg.validationSplitName)):
        strange = [path for path in files if "validation" in hinted_names(path.stem)]
        _refuse_strange_lists(strange, "validation.txt or val.txt")
        bound = [image for name, names in splits.items() if name not in ("train", "trainval") for image in names]
        splits["train"], splits["validation"] = carve_validation(splits["train"], bound, mcfg.splitSeed)
        count = len(splits["validation"])
        notes.append(f"no validation list: {count} images carved out of train by splitSeed={mcfg.splitSeed}")
    return splits


def _refuse_strange_lists(files: Iterable[Path], expected: str) -> None:
    """Stop rather than draw splits where the user has made some."""
    paths = [str(path) for path in files]
    if paths:
        shown = ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
        raise UserError(
            f"{shown}: not understood as split lists; expected in the folder 'splits': {expected}, one image name per "
            "line; or name the files, e.g. --set subsetMap=train:FILE,validation:FILE,test:FILE"
        )


def _unread_lists(base: Path | None, ids: Collection[str]) -> list[Path]:
    """Files that look like lists of splits though none could be read; train_1.txt beside train_1.jpg is not one."""
    if base is None:
        return []
    children = _subfolders(base)
    found = [path for name in _LIST_FOLDERS if name in children for path in sorted(children[name].rglob("*"))]
    visible = [path for path in [*found, *sorted(base.iterdir())] if not path.name.startswith(".")]
    listlike = [path for path in visible if path.suffix.lower() in _LIST_SUFFIXES and hinted_names(path.stem)]
    return [path for path in listlike if path.stem not in ids and path.is_file()]


def _split_files(base: Path) -> list[Path]:
    """The lists of the first place that has any: splits, its v5 (else its last subfolder), ImageSets, the folder."""
    for folder in _split_folders(base):
        files = _text_files(folder)
        if folder.name.lower() == "main":
            # VOC's Main also holds <class>_train.txt, which lists presence of a class and is no split
            files = [path for path in files if not path.stem.endswith(("_train", "_val", "_trainval", "_test"))]
        if files:
            return files
    return [path for path in _text_files(base) if canonical_name(path.stem) in USUAL_NAMES]  # not classes.txt, README


def _text_files(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if path.suffix.lower() == ".txt" and not path.name.startswith(".")]
    return sorted(files, key=lambda path: natural_key(path.name))


def _split_folders(base: Path) -> Iterator[Path]:
    children = _subfolders(base)
    if "splits" in children:
        versions = _subfolders(children["splits"])
        yield children["splits"]
        if versions:
            yield versions.get(_COURSE_VERSION) or list(versions.values())[-1]
    if "imagesets" in children:
        main = _subfolders(children["imagesets"]).get("main")
        yield from ([main] if main else [])
        yield children["imagesets"]


def _classes(mcfg: ModelConfig, base: Path | None, annotation_dir: Path, notes: list[str]) -> tuple[str, ...]:
    if mcfg.classList is not None:
        assert not isinstance(mcfg.classList, str), "load_config puts the names in place of a class list's file"
        return _checked_classes(tuple(mcfg.classList), "classList")
    path = base / "classes.txt" if base else None
    if path and path.is_file():
        return _checked_classes(read_lines(path), str(path))
    names = sorted(_names_in(annotation_dir), key=natural_key)
    if not names:
        raise UserError(
            f"{annotation_dir}: no xml file there has an object, and there is no classes.txt: nothing to learn"
        )
    notes.append(f"no classes.txt: {len(names)} classes found in the xml files: {', '.join(names)}")
    return tuple(names)


def _checked_classes(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in names)
    if not names or not all(names):
        raise UserError(f"{where}: {'an empty class name' if names else 'no class in it'}; give one name per class")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: class {', '.join(twice)} is listed twice")
    return names


def _names_in(annotation_dir: Path) -> set[str]:
    names: set[str] = set()
    for paths in index_by_stem(annotation_dir, XML_SUFFIXES).values():
        for path in paths:
            try:
                names.update(entry.name for entry in read_voc(path).objects)
            except DataFault:
                continue  # dl.check reads the same file and reports it with all others
    return names
