"""Which image is in which split: lists that lie in the data folder, and splits drawn where there are none."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from config.errors import UserError
from config.mconfig import ModelConfig
from config.places import absolute
from dl.files import image_id, linked_folders, natural_key, read_lines, subfolders
from dl.splits import (
    USUAL_NAMES,
    canonical_name,
    carve_validation,
    find_split,
    hinted_names,
    make_splits,
    split_of_folder,
)
from dl.tree import KIND_FOLDERS, ImageTree, name_images
from ops.text import counted, shown

_COURSE_VERSION = "v5"  # of the split lists that the course hands out
# Where lists may lie and how they may end: .txt in "splits" and "imagesets" is read, of the rest we complain.
_LIST_FOLDERS = ("splits", "imagesets", "split", "sets", "lists")
_LIST_SUFFIXES = ("", ".txt", ".csv", ".tsv", ".lst", ".list", ".json")

Splits = dict[str, tuple[str, ...]]
ToImage = Callable[[str, "Path | None"], str]  # a line, and the folder of the list it stands in -> the image


class Wanted(NamedTuple):
    """What the config says about splits."""

    subset_map: Mapping[str, "tuple[str, ...] | str"]
    names: tuple[str, ...]  # of the splits to train on, to validate on and to test on
    seed: int

    @classmethod
    def from_config(cls, mcfg: ModelConfig) -> "Wanted":
        names = (mcfg.trainSplitName, mcfg.validationSplitName, mcfg.testSplitName)
        return cls(mcfg.subsetMap, names, mcfg.splitSeed)


def explicit_splits(wanted: Wanted, to_image: ToImage) -> Splits:
    """Those of subsetMap, names or files that list them. Raises `UserError` for a missing file."""
    splits = {}
    for name, value in wanted.subset_map.items():
        file = _list_file(name, value) if isinstance(value, str) else None
        lines = value if not isinstance(value, str) else read_lines(_list_file(name, value))
        splits[name] = tuple(to_image(line, file.parent if file else None) for line in lines)
    return splits


def listed_splits(files: Iterable[Path], to_image: ToImage, notes: list[str]) -> Splits:
    """Split name -> images in the order of its list."""
    splits: Splits = {}
    for path in sorted(files, key=lambda path: path.stem != canonical_name(path.stem)):  # exact names before aliases
        name = canonical_name(path.stem)
        if name in splits:
            notes.append(f"{path} left aside: another file already gives the split '{name}'")
        else:
            splits[name] = tuple(to_image(line, path.parent) for line in read_lines(path))
    return splits


def folder_splits(paths: Iterable[str]) -> Splits:
    """Split name -> paths in folders that are named like splits: train/images/a.jpg, images/val2017/b.jpg.

    The first folder of a path counts, after those that only say what lies in them (images): runs/detect/train is no
    split. Where there are folders for validation or test, but none for train, all other paths are train.
    """
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    others = []
    for path in paths:
        name = split_of_path(path)
        (others if name is None else splits.setdefault(name, [])).append(path)
    if not splits["train"] and not splits.get("trainval") and (splits["validation"] or splits["test"]):
        splits["train"] = others
    found = {name: tuple(members) for name, members in splits.items() if members}
    return found if found.keys() & {"train", "trainval", "validation", "test"} else {}


def split_of_path(path: str) -> str | None:
    """The split that the folders of a relative path name; None for another path."""
    folders = [folder for folder in path.split("/")[:-1] if folder.lower() not in KIND_FOLDERS]
    return split_of_folder(folders[0]) if folders and not os.path.isabs(path) else None


def has_usual(splits: Mapping[str, tuple[str, ...]], wanted: Wanted) -> bool:
    """Whether one of the splits is one that a run uses."""
    return any(find_split(name, splits) for name in (*USUAL_NAMES, "trainval", *wanted.names))


def draw_splits(
    wanted: Wanted, base: Path | None, files: Collection[Path], ids: Collection[str], notes: list[str]
) -> Splits:
    """Drawn from the seed, but only where nothing looks like a list: a test image must stay one. Raises `UserError`.

    A list that names every image, as CVAT's default.txt, says nothing of splits.
    """
    strange = [path for path in files or _unread_lists(base, ids) if not _names_all(path, ids)]
    _refuse_strange_lists(strange, "train.txt, validation.txt (or val.txt) and test.txt")
    splits = make_splits(ids, wanted.seed)
    counts = ", ".join(f"{len(names)} {name}" for name, names in splits.items())
    notes.append(f"no split files found: split by splitSeed={wanted.seed} into {counts} images")
    return splits


def complete_splits(splits: Splits, wanted: Wanted, files: Iterable[Path], notes: list[str]) -> Splits:
    """`trainval` serves as `train`, and a missing validation part is carved out of it. Raises `UserError`."""
    splits = dict(splits)
    if "train" not in splits and "trainval" in splits:
        splits["train"] = splits["trainval"]
        notes.append("no train list: 'trainval' is the training split")
    if splits.get("train") and not any(find_split(name, splits) for name in ("validation", wanted.names[1])):
        strange = [path for path in files if "validation" in hinted_names(path.stem)]
        _refuse_strange_lists(strange, "validation.txt or val.txt")
        bound = [image for name, names in splits.items() if name not in ("train", "trainval") for image in names]
        splits["train"], splits["validation"] = carve_validation(splits["train"], bound, wanted.seed)
        count = len(splits["validation"])
        notes.append(f"no validation list: {count} images carved out of train by splitSeed={wanted.seed}")
    return splits


def tree_splits(
    wanted: Wanted,
    base: Path | None,
    tree: ImageTree,
    given: Mapping[str, tuple[str, ...]],
    notes: list[str],
    annotation_of: Callable[[], Mapping[str, str]],
) -> tuple[Splits, dict[str, str]]:
    """Splits of a tree of images, and image id -> path below the tree's folder.

    subsetMap wins, then `given` (split name -> paths, e.g. one json each), then lists below `base`, then folders that
    are named like splits, of images or else of their annotations (`annotation_of`: image -> annotation); without any
    of them splits are drawn. Raises `UserError`.
    """
    if wanted.subset_map:
        return _named(explicit_splits(wanted, tree.find))
    files = split_files(base) if base else []
    files = [path for path in files if canonical_name(path.stem) not in given]
    paths = {**listed_splits(files, tree.find, notes), **given}
    if not {"train", "trainval"} & paths.keys():
        listed = {path for members in paths.values() for path in members}
        for name, members in _splits_by_folders(tree, annotation_of(), notes).items():
            paths.setdefault(name, tuple(path for path in members if path not in listed))
    if has_usual(paths, wanted):
        notes += in_no_split(tree.folder, tree.paths, paths)
        splits, images = _named(paths)
        if apart := sum("/" in name for name in images):
            notes.append(
                f"{apart} images share their name with one in another folder, so their ids begin with the folder"
            )
        return complete_splits(splits, wanted, files, notes), images
    ids = name_images(tree.paths)
    images = {name: path for path, name in ids.items()}
    if not images:
        raise UserError(f"{tree.folder}: no images there")
    return draw_splits(wanted, base, files, images.keys(), notes), images


def _splits_by_folders(tree: ImageTree, annotation_of: Mapping[str, str], notes: list[str]) -> Splits:
    """Splits by the folders of images, else by those of annotations. Raises `UserError` where that is doubtful."""
    splits = folder_splits(tree.paths)
    for link, target in linked_folders(tree.folder).items():  # images/test -> val: two splits of the same images
        if (name := split_of_path(f"{link}/")) and name not in splits:
            splits[name] = tuple(path for path in tree.paths if path.startswith(f"{target}/"))
    if not splits:
        image_of = {annotation: image for image, annotation in annotation_of.items()}
        splits = {name: tuple(image_of[path] for path in paths) for name, paths in folder_splits(image_of).items()}
    inside = {path for paths in splits.values() for path in paths if path in annotation_of}
    outside = [path for path in annotation_of if path not in inside]
    if splits and len(outside) > len(inside):
        raise UserError(
            f"{tree.folder}: the folders of {', '.join(splits)} look like splits, but {len(outside)} of "
            f"{len(annotation_of)} annotated images lie elsewhere ({shown(outside)}); move them into these folders, or "
            "name the splits: --set subsetMap=train:FILE,validation:FILE,test:FILE"
        )
    if splits:
        notes.append(f"splits by folders: {', '.join(f'{name} {len(paths)}' for name, paths in splits.items())}")
    return splits


def in_no_split(folder: Path, images: Iterable[str], splits: Mapping[str, Collection[str]]) -> list[str]:
    """A sentence about images of a folder that no split lists, also not by way of a link; nothing for none."""
    real: dict[str, str] = {}

    def place(image: str) -> str:
        home, name = os.path.split(image)
        if home not in real:
            real[home] = os.path.realpath(folder / home)
        return os.path.join(real[home], name)

    used = {place(image) for members in splits.values() for image in members}
    left = [image for image in images if place(image) not in used]
    return [f"{counted(len(left), 'image')} in no split, which nothing uses: {shown(left)}"] if left else []


def _named(paths: Mapping[str, tuple[str, ...]]) -> tuple[Splits, dict[str, str]]:
    """Paths -> ids, told apart among all splits; and the way back."""
    ids = name_images(path for members in paths.values() for path in members)
    splits = {name: tuple(ids[path] for path in members) for name, members in paths.items()}
    return splits, {name: path for path, name in ids.items()}


def split_files(base: Path) -> list[Path]:
    """The lists of the first place that has any: splits, its v5 (else its last subfolder), ImageSets, the folder."""
    for folder in _split_folders(base):
        files = _text_files(folder)
        if folder.name.lower() == "main":
            # VOC's Main also holds <class>_train.txt, which lists presence of a class and is no split
            ends = tuple(f"_{name}" for name in ("train", "val", "trainval", "test", *(path.stem for path in files)))
            files = [path for path in files if not path.stem.endswith(ends)]
        if files:
            return files
    return [path for path in _text_files(base) if canonical_name(path.stem) in USUAL_NAMES]  # not classes.txt, README


def _list_file(name: str, text: str) -> Path:
    path = Path(absolute(text))
    if not os.path.isfile(path):
        raise UserError(f"subsetMap: no such file for split '{name}': {path}")
    return path


def _refuse_strange_lists(files: Iterable[Path], expected: str) -> None:
    """Stop rather than draw splits where the user has made some."""
    paths = [str(path) for path in files]
    if paths:
        raise UserError(
            f"{shown(paths)}: not understood as split lists; expected in the folder 'splits': {expected}, one image "
            "name per line; or name the files, e.g. --set subsetMap=train:FILE,validation:FILE,test:FILE"
        )


def _names_all(path: Path, ids: Collection[str]) -> bool:
    if hinted_names(path.stem):
        return False
    return {image_id(line, ids) for line in read_lines(path)} >= set(map(image_id, ids))


def _unread_lists(base: Path | None, ids: Collection[str]) -> list[Path]:
    """Files that look like lists of splits though none could be read; train_1.txt beside train_1.jpg is not one."""
    if base is None:
        return []
    children = subfolders(base)
    found = [path for name in _LIST_FOLDERS if name in children for path in sorted(children[name].rglob("*"))]
    visible = [path for path in [*found, *sorted(base.iterdir())] if not path.name.startswith(".")]
    listlike = [path for path in visible if path.suffix.lower() in _LIST_SUFFIXES and hinted_names(path.stem)]
    return [path for path in listlike if path.stem not in ids and path.is_file()]


def _text_files(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if path.suffix.lower() == ".txt" and not path.name.startswith(".")]
    return sorted(files, key=lambda path: natural_key(path.name))


def _split_folders(base: Path) -> Iterator[Path]:
    children = subfolders(base)
    if "splits" in children:
        versions = subfolders(children["splits"])
        yield children["splits"]
        if versions:
            yield versions.get(_COURSE_VERSION) or list(versions.values())[-1]
    if "imagesets" in children:
        main = subfolders(children["imagesets"]).get("main")
        yield from ([main] if main else [])
        yield children["imagesets"]
