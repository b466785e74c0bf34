"""Which annotation file belongs to which image, by their paths alone."""

import os
from collections import defaultdict
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import NamedTuple

from dl.files import IMAGE_SUFFIXES, walk_files
from dl.splits import canonical_name, hinted_names
from dl.tree import KIND_FOLDERS

Key = tuple[str, ...]  # folders and stem


class Pairs(NamedTuple):
    """The annotation of each image, images with several, and annotations whose image is not there."""

    annotation_of: dict[str, str]
    ambiguous: dict[str, list[str]]  # image -> the annotations that all fit
    unused: list[str]


def pair(images: Iterable[str], annotations: Iterable[str]) -> Pairs:
    """Find the annotation of each image; paths are relative and written with `/`.

    The stems agree, and so do the folders apart from those that only say what lies in them: images/train/a.jpg has
    labels/train/a.txt. Names that differ in upper and lower case, or in the word for a split (val, validation), are
    paired when nothing fits better. Last come images whose stem is unique, and annotations that lie in no folder or,
    where the images lie in none, in folders of splits: images/a.jpg has annotations/train/a.xml.
    """
    images_left, annotations_left = dict.fromkeys(images), dict.fromkeys(annotations)
    num_of_stem = _grouped(images_left, _stem_key)
    pairs = Pairs({}, {}, [])
    for key_of in (_exact_key, _folded_key, _stem_key):
        fitting = _grouped(annotations_left, key_of)
        for key, members in _grouped(images_left, key_of).items():
            found = fitting.get(key, [])
            if key_of is _stem_key:
                found = [path for path in found if len(num_of_stem[key]) == 1 and _may_differ(members[0], path)]
            for image in members if found else ():
                _choose(image, found, pairs)
                del images_left[image]
            for path in found:
                del annotations_left[path]
    pairs.unused.extend(annotations_left)
    return pairs


def paired_annotations(folder: Path, suffixes: Container[str]) -> int:
    """How many annotations below a folder, whose names end in one of the suffixes, have an image there."""
    pairs = pair(walk_files(folder, IMAGE_SUFFIXES), walk_files(folder, suffixes))
    return len(set(pairs.annotation_of.values()))


def _choose(image: str, found: list[str], pairs: Pairs) -> None:
    """Of several the one in the usual folder, else the one beside the image."""
    stems = [os.path.splitext(path)[0] for path in found]
    for wanted in (usual_place(image), os.path.splitext(image)[0]):
        if wanted in stems:
            pairs.annotation_of[image] = found[stems.index(wanted)]
            return
    if len(found) > 1:
        pairs.ambiguous[image] = found
    else:
        pairs.annotation_of[image] = found[0]


def _may_differ(image: str, annotation: str) -> bool:
    """Whether two paths of one stem may mean the same although their folders differ."""
    folders = _exact_key(annotation)[:-1]
    return not folders or (len(_exact_key(image)) == 1 and all(map(hinted_names, folders)))


def usual_place(image: str) -> str:
    """Where the label of an image lies, without suffix: the last folder `images` becomes `labels`, else beside it."""
    *folders, name = image.split("/")
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        folders[last] = "labels"
    return "/".join([*folders, os.path.splitext(name)[0]])


def _grouped(paths: Iterable[str], key_of: Callable[[str], Key]) -> dict[Key, list[str]]:
    groups: dict[Key, list[str]] = defaultdict(list)
    for path in paths:
        groups[key_of(path)].append(path)
    return groups


def _exact_key(path: str) -> Key:
    *folders, name = path.split("/")
    return *(folder for folder in folders if folder.lower() not in KIND_FOLDERS), os.path.splitext(name)[0]


def _folded_key(path: str) -> Key:
    *folders, stem = _exact_key(path)
    return *(canonical_name(folder).lower() for folder in folders), stem.lower()


def _stem_key(path: str) -> Key:
    return (_exact_key(path)[-1].lower(),)
