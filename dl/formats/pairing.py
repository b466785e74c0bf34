"""The images of a data set in several folders: which annotation belongs to which image, and image ids.

Paths are relative to a folder and use `/`.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Container, Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from config.errors import UserError
from dl.files import IMAGE_SUFFIXES, image_id, walk_files
from dl.splits import canonical_name, hinted_names

IMAGE_FOLDERS = ("images", "jpegimages", "image", "imgs", "img")
ANNOTATION_FOLDERS = ("annotations", "annotation", "xmls", "xml")
LABEL_FOLDERS = ("labels", "label")
# Folder names that only say what kind of file is inside. An image and its annotation may differ in them.
KIND_FOLDERS = frozenset((*IMAGE_FOLDERS, *ANNOTATION_FOLDERS, *LABEL_FOLDERS))

PathKey = tuple[str, ...]  # folders and stem


class ImageTree:
    """The images below `folder`.

    `known` are the image paths that the annotations name. With None the files on disk are used; they are listed once,
    and only if they are needed.
    """

    def __init__(self, folder: Path, known: Collection[str] | None = None) -> None:
        self.folder = folder
        self._known = None if known is None else set(known)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """All image paths, sorted."""
        return tuple(walk_files(self.folder, IMAGE_SUFFIXES) if self._known is None else sorted(self._known))

    def find(self, line: str, list_folder: Path | None = None) -> str:
        """Find the image that a line of a list names.

        The line may be a path relative to the tree or to `list_folder`, an absolute path, or only a file name. A line
        that fits no image is returned unchanged; the data check reports it. Raises `UserError` if a file name fits
        several images.
        """
        text = line.strip().replace("\\", "/")
        for start in (self.folder, list_folder):
            path = self.relative_path(os.path.join(start, text)) if start else None
            if path is None:
                continue
            if path in self._known if self._known is not None else os.path.isfile(self.folder / path):
                return path
        found = self._paths_of_stem.get(image_id(text, self._paths_of_stem), [])
        exact = [path for path in found if f"/{path}".endswith("/" + text.lstrip("./"))]
        found = exact or found
        if len(found) > 1:
            raise UserError(
                f"{line}: several images below {self.folder} have this name ({', '.join(found[:3])}); write the "
                "folder and the suffix, too"
            )
        return found[0] if found else text

    def relative_path(self, path: str | Path) -> str | None:
        """The path relative to the tree's folder; None if it is outside."""
        text = os.path.normpath(path)
        front = str(self.folder) + os.sep
        return text[len(front) :].replace(os.sep, "/") if text.startswith(front) else None

    @cached_property
    def _paths_of_stem(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            index[image_id(path)].append(path)
        return index


def name_images(paths: Iterable[str]) -> dict[str, str]:
    """Map each path to its image id: the stem; if stems are equal, folder and stem (train/1); else the whole path."""

    def with_folder(path: str) -> str:
        *folders, stem = os.path.splitext(path)[0].split("/")
        return "/".join(folder for folder in folders if folder.lower() not in IMAGE_FOLDERS) + "/" + stem

    paths = list(dict.fromkeys(paths))
    ids = {path: image_id(path) for path in paths}
    for rename in (with_folder, str):
        counts = Counter(ids.values())
        ids = {path: rename(path) if counts[name] > 1 else name for path, name in ids.items()}
    return ids


class Pairs(NamedTuple):
    """The annotation of each image; images with several annotations; annotations without an image."""

    annotation_of: dict[str, str]
    ambiguous: dict[str, list[str]]  # image -> all annotations that fit
    unused: list[str]


def pair(images: Iterable[str], annotations: Iterable[str]) -> Pairs:
    """Find the annotation of each image by paths alone.

    Stems must be equal. Folders must be equal, too, except folders that only name the kind of file: images/train/a.jpg
    belongs to labels/train/a.txt. If nothing fits exactly, upper and lower case and the word for a split (val,
    validation) may differ. The last step pairs images with a unique stem with annotations that are in no folder; and
    if the images are in no folder, with annotations in folders of splits: images/a.jpg, annotations/train/a.xml.
    """
    images_left, annotations_left = dict.fromkeys(images), dict.fromkeys(annotations)
    images_of_stem = _grouped(images_left, _stem_key)
    pairs = Pairs({}, {}, [])
    for key_of in (_exact_key, _folded_key, _stem_key):
        fitting = _grouped(annotations_left, key_of)
        for key, members in _grouped(images_left, key_of).items():
            found = fitting.get(key, [])
            if key_of is _stem_key:
                is_unique = len(images_of_stem[key]) == 1
                found = [path for path in found if is_unique and _may_differ_in_folders(members[0], path)]
            for image in members if found else ():
                _choose_annotation(image, found, pairs)
                del images_left[image]
            for path in found:
                del annotations_left[path]
    pairs.unused.extend(annotations_left)
    return pairs


def count_annotated(image_dir: Path, annotation_dir: Path, suffixes: Container[str]) -> int:
    """Count the annotation files with one of the suffixes that have an image."""
    pairs = pair(walk_files(image_dir, IMAGE_SUFFIXES), walk_files(annotation_dir, suffixes))
    return len(set(pairs.annotation_of.values()))


def usual_label_path(image: str) -> str:
    """The usual label path of an image, without suffix: the last folder `images` becomes `labels`."""
    *folders, name = image.split("/")
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        folders[last] = "labels"
    return "/".join([*folders, os.path.splitext(name)[0]])


def _choose_annotation(image: str, found: list[str], pairs: Pairs) -> None:
    """Of several annotations take the one in the usual folder, else the one beside the image."""
    stems = [os.path.splitext(path)[0] for path in found]
    for expected in (usual_label_path(image), os.path.splitext(image)[0]):
        if expected in stems:
            pairs.annotation_of[image] = found[stems.index(expected)]
            return
    if len(found) > 1:
        pairs.ambiguous[image] = found
    else:
        pairs.annotation_of[image] = found[0]


def _may_differ_in_folders(image: str, annotation: str) -> bool:
    """Whether an image and an annotation of the same stem may belong together although their folders differ."""
    folders = _exact_key(annotation)[:-1]
    return not folders or (len(_exact_key(image)) == 1 and all(map(hinted_names, folders)))


def _grouped(paths: Iterable[str], key_of: Callable[[str], PathKey]) -> dict[PathKey, list[str]]:
    groups: dict[PathKey, list[str]] = defaultdict(list)
    for path in paths:
        groups[key_of(path)].append(path)
    return groups


def _exact_key(path: str) -> PathKey:
    *folders, name = path.split("/")
    return *(folder for folder in folders if folder.lower() not in KIND_FOLDERS), os.path.splitext(name)[0]


def _folded_key(path: str) -> PathKey:
    *folders, stem = _exact_key(path)
    return *(canonical_name(folder).lower() for folder in folders), stem.lower()


def _stem_key(path: str) -> PathKey:
    return (_exact_key(path)[-1].lower(),)
