"""Which image is in which split: subsetMap, list files, folder names; random splits if none of them exists."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from config.errors import UserError
from config.load import absolute
from dl.files import image_id, linked_folders, natural_key, read_lines, subfolders
from dl.formats.pairing import KIND_FOLDERS, ImageTree, name_images
from dl.formats.source import Search
from dl.splits import (
    USUAL_NAMES,
    canonical_name,
    carve_validation,
    find_split,
    hinted_names,
    make_splits,
    split_of_folder,
)
from ops.text import counted, shown

_COURSE_VERSION = "v5"  # the folder of split lists of the assignment
# Where lists may be and which suffix they may have. Only .txt in "splits" and "imagesets" is read; the others are
# reported as an error, so that they are not ignored without a message.
_LIST_FOLDERS = ("splits", "imagesets", "split", "sets", "lists")
_LIST_SUFFIXES = ("", ".txt", ".csv", ".tsv", ".lst", ".list", ".json")

Splits = dict[str, tuple[str, ...]]
LineToImage = Callable[[str, "Path | None"], str]  # (line of a list, folder of that list) -> image


def explicit_splits(search: Search, to_image: LineToImage) -> Splits:
    """The splits of subsetMap: image names, or files that list them. Raises `UserError` for a missing file."""
    splits = {}
    for name, value in search.split_request.subset_map.items():
        if isinstance(value, str):
            path = Path(absolute(value))
            if not os.path.isfile(path):
                raise UserError(f"subsetMap: the file of split '{name}' does not exist: {path}")
            splits[name] = tuple(to_image(line, path.parent) for line in read_lines(path))
        else:
            splits[name] = tuple(to_image(line, None) for line in value)
    return splits


def listed_splits(files: Iterable[Path], to_image: LineToImage, notes: list[str]) -> Splits:
    """Read list files: split name -> images in the order of the list."""
    splits: Splits = {}
    for path in sorted(files, key=lambda path: path.stem != canonical_name(path.stem)):  # exact names before aliases
        name = canonical_name(path.stem)
        if name in splits:
            notes.append(f"{path} is not used: another file already gives the split '{name}'")
        else:
            splits[name] = tuple(to_image(line, path.parent) for line in read_lines(path))
    return splits


def folder_splits(paths: Iterable[str]) -> Splits:
    """Group paths by folders with the name of a split: train/images/a.jpg, images/val2017/b.jpg.

    Only the first folder counts, without folders that name a kind of file (images): runs/detect/train is no split. If
    there are folders for validation or test but none for train, all other paths are train.
    """
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    without_split = []
    for path in paths:
        name = split_of_path(path)
        (without_split if name is None else splits.setdefault(name, [])).append(path)
    if not splits["train"] and not splits.get("trainval") and (splits["validation"] or splits["test"]):
        splits["train"] = without_split
    found = {name: tuple(members) for name, members in splits.items() if members}
    return found if found.keys() & {"train", "trainval", "validation", "test"} else {}


def split_of_path(path: str) -> str | None:
    """The split named by the folders of a relative path; None if they name none."""
    folders = [folder for folder in path.split("/")[:-1] if folder.lower() not in KIND_FOLDERS]
    return split_of_folder(folders[0]) if folders and not os.path.isabs(path) else None


def has_known_split(splits: Mapping[str, tuple[str, ...]], search: Search) -> bool:
    """Whether a run uses one of these splits."""
    return any(find_split(name, splits) for name in (*USUAL_NAMES, "trainval", *search.split_request.names))


def draw_splits(search: Search, files: Collection[Path], ids: Collection[str]) -> Splits:
    """Random splits from splitSeed, only if no file looks like a list of a split. Raises `UserError`.

    Otherwise a test image of the user could become a training image. A list that names every image, as CVAT's
    default.txt, says nothing about splits.
    """

    def lists_every_image(path: Path) -> bool:
        if hinted_names(path.stem):
            return False
        return {image_id(line, ids) for line in read_lines(path)} >= set(map(image_id, ids))

    unread = [path for path in files or _unread_lists(search.base, ids) if not lists_every_image(path)]
    _refuse_unread_lists(unread, "train.txt, validation.txt (or val.txt) and test.txt")
    seed = search.split_request.seed
    splits = make_splits(ids, seed)
    counts = ", ".join(f"{name} {len(names)}" for name, names in splits.items())
    search.notes.append(f"no split files found: random splits from splitSeed={seed}; images: {counts}")
    return splits


def complete_splits(splits: Splits, search: Search, files: Iterable[Path]) -> Splits:
    """Use `trainval` as `train`, and take a missing validation split out of train. Raises `UserError`."""
    splits = dict(splits)
    _, validation_name, _ = search.split_request.names
    seed = search.split_request.seed
    if "train" not in splits and "trainval" in splits:
        splits["train"] = splits["trainval"]
        search.notes.append("no train list: 'trainval' is used as the training split")
    if splits.get("train") and not any(find_split(name, splits) for name in ("validation", validation_name)):
        unread = [path for path in files if "validation" in hinted_names(path.stem)]
        _refuse_unread_lists(unread, "validation.txt or val.txt")
        fixed = [image for name, names in splits.items() if name not in ("train", "trainval") for image in names]
        splits["train"], splits["validation"] = carve_validation(splits["train"], fixed, seed)
        count = len(splits["validation"])
        search.notes.append(f"no validation list: {count} images are moved from train to validation (splitSeed={seed})")
    return splits


def tree_splits(
    search: Search,
    tree: ImageTree,
    given: Mapping[str, tuple[str, ...]],
    annotation_of: Callable[[], Mapping[str, str]],
) -> tuple[Splits, dict[str, str]]:
    """The splits of a tree of images, and image id -> path below the tree's folder.

    Priority: subsetMap; `given` (split name -> paths, e.g. one json each); list files below `base`; folders named
    like splits, of images or else of annotations (`annotation_of`: image -> annotation); random splits. Raises
    `UserError`.
    """
    notes = search.notes
    if search.split_request.subset_map:
        return _paths_to_ids(explicit_splits(search, tree.find))
    files = split_files(search.base) if search.base else []
    files = [path for path in files if canonical_name(path.stem) not in given]
    paths = {**listed_splits(files, tree.find, notes), **given}
    if not {"train", "trainval"} & paths.keys():
        listed = {path for members in paths.values() for path in members}
        for name, members in _splits_by_folders(tree, annotation_of(), notes).items():
            paths.setdefault(name, tuple(path for path in members if path not in listed))
    if has_known_split(paths, search):
        notes += unused_images_note(tree.folder, tree.paths, paths)
        splits, images = _paths_to_ids(paths)
        if num_shared_stems := sum("/" in name for name in images):
            notes.append(
                f"{num_shared_stems} images have the same name as an image in another folder, so their ids include "
                "the folder"
            )
        return complete_splits(splits, search, files), images
    images = {name: path for path, name in name_images(tree.paths).items()}
    if not images:
        raise UserError(f"{tree.folder}: there are no images")
    return draw_splits(search, files, images.keys()), images


def _splits_by_folders(tree: ImageTree, annotation_of: Mapping[str, str], notes: list[str]) -> Splits:
    """Splits by the folders of images, else by the folders of annotations. Raises `UserError` if that is doubtful."""
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
            f"{len(annotation_of)} annotated images are in other folders ({shown(outside)}); move them into the split "
            "folders, or name the splits: --set subsetMap=train:FILE,validation:FILE,test:FILE"
        )
    if splits:
        notes.append(f"splits by folders: {', '.join(f'{name} {len(paths)}' for name, paths in splits.items())}")
    return splits


def unused_images_note(folder: Path, images: Iterable[str], splits: Mapping[str, Collection[str]]) -> list[str]:
    """One sentence about images that no split lists, also not through a link; an empty list if there are none."""
    real_folders: dict[str, str] = {}

    def real_path(image: str) -> str:
        home, name = os.path.split(image)
        if home not in real_folders:
            real_folders[home] = os.path.realpath(folder / home)
        return os.path.join(real_folders[home], name)

    used = {real_path(image) for members in splits.values() for image in members}
    unused = [image for image in images if real_path(image) not in used]
    return [f"{counted(len(unused), 'image')} not used, because no split lists them: {shown(unused)}"] if unused else []


def _paths_to_ids(paths: Mapping[str, tuple[str, ...]]) -> tuple[Splits, dict[str, str]]:
    """Replace paths by ids that are unique in all splits; and id -> path."""
    ids = name_images(path for members in paths.values() for path in members)
    splits = {name: tuple(ids[path] for path in members) for name, members in paths.items()}
    return splits, {name: path for path, name in ids.items()}


def split_files(base: Path) -> list[Path]:
    """The list files of the first place with any: splits, its v5 (else its last subfolder), ImageSets, `base`."""
    for folder in _split_folders(base):
        files = _text_files(folder)
        if folder.name.lower() == "main":
            # VOC's Main also has <class>_train.txt, which lists the presence of a class and is not a split.
            ends = tuple(f"_{name}" for name in ("train", "val", "trainval", "test", *(path.stem for path in files)))
            files = [path for path in files if not path.stem.endswith(ends)]
        if files:
            return files
    return [path for path in _text_files(base) if canonical_name(path.stem) in USUAL_NAMES]  # not classes.txt, README


def _refuse_unread_lists(files: Iterable[Path], expected: str) -> None:
    """Raise `UserError` rather than make random splits when the user has some."""
    paths = [str(path) for path in files]
    if paths:
        raise UserError(
            f"{shown(paths)}: cannot be read as split lists; expected in the folder 'splits': {expected}, with one "
            "image name per line; or name the files, e.g. --set subsetMap=train:FILE,validation:FILE,test:FILE"
        )


def _unread_lists(base: Path | None, ids: Collection[str]) -> list[Path]:
    """Files that look like lists of splits but are not read. train_1.txt beside train_1.jpg is a label, not a list."""
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
