"""Splits: their names, random splits, and small parts of a split for few-shot training and replay.

Whole images are chosen, and every object of a chosen image counts, except difficult objects. The order of the images
depends only on the seed and their ids. So a choice is the same on every machine, in whatever order a split is listed.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from config.errors import UserError
from dl.annotations import Annotation

USUAL_NAMES = ("train", "validation", "test", "small")
VALIDATION_SHARE = 0.15
TEST_SHARE = 0.15

# Words that may stand beside the name of a split in the name of a folder.
_FOLDER_WORDS = frozenset(
    ("images", "image", "imgs", "img", "set", "data", "dataset", "split", "labels", "annotations")
)
_ALIASES = {
    "training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test",
}  # fmt: skip


def canonical_name(name: str) -> str:
    """val, valid, Val -> validation; a name without an alias is returned unchanged."""
    lower = name.lower()
    return _ALIASES.get(lower, lower if lower in USUAL_NAMES else name)


def find_split(name: str, splits: Collection[str]) -> str | None:
    """The key of `splits` that `name` means: the name itself, else an alias of it; None if there is none."""
    if name in splits:
        return name
    by_canonical = {canonical_name(key): key for key in splits}
    return by_canonical.get(canonical_name(name))


def hinted_names(text: str) -> set[str]:
    """The splits named by the words of a text: bird_val -> validation, train2017 -> train, classes -> none."""
    words = {canonical_name(word) for word in re.split(r"[^a-z]+", text.lower())}
    return words & {"train", "validation", "test", "trainval"}


def split_of_folder(name: str) -> str | None:
    """The split that a folder is named after: train, val2017, images_test; but not train_station or test_site.

    Beside the split's name only numbers and general words (images, set) are allowed.
    """
    words = [canonical_name(word) for word in re.split(r"[^a-z0-9]+|(?<=[a-z])(?=[0-9])", name.lower()) if word]
    split_names = [word for word in words if word in ("train", "validation", "test", "trainval", "small")]
    remaining = [word for word in words if word not in split_names]
    is_plain = all(word.isdigit() or word in _FOLDER_WORDS for word in remaining)
    return (
        split_names[0] if len(split_names) == 1 and is_plain and (split_names[0] != "small" or not remaining) else None
    )


def make_splits(ids: Iterable[str], seed: int) -> dict[str, tuple[str, ...]]:
    """Random 70 % train, 15 % validation, 15 % test, at least one image each. Raises `UserError` below three images."""
    order = ranked(ids, seed)
    if len(order) < 3:
        raise UserError(f"{len(order)} images: at least three are needed for train, validation and test")
    num_validation = max(1, round(VALIDATION_SHARE * len(order)))
    num_test = max(1, round(TEST_SHARE * len(order)))
    held_out = num_validation + num_test
    return {
        "train": tuple(sorted(order[held_out:])),
        "validation": tuple(sorted(order[:num_validation])),
        "test": tuple(sorted(order[num_validation:held_out])),
    }


def carve_validation(train: Iterable[str], fixed: Iterable[str], seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split `train` into (train, validation): 15 % of its images, at least one, become validation.

    `fixed` images stay where they are, e.g. those of `small`, which is also trained on. Raises `UserError` if no image
    can be moved.
    """
    train, fixed = tuple(train), set(fixed)
    free = [image for image in ranked(train, seed) if image not in fixed]
    count = min(max(1, round(VALIDATION_SHARE * len(set(train)))), len(free))
    validation = set(free[:count])
    rest = tuple(image for image in train if image not in validation)
    if not validation or not rest:
        raise UserError(
            f"{len(set(train))} training images are too few to take validation images from; add a validation list"
        )
    return rest, tuple(sorted(validation))


def ranked(ids: Iterable[str], seed: int) -> list[str]:
    """Ids in a random order that depends only on the seed.

    The order comes from hashes, not from a random generator: it is the same on every machine and with every version,
    and a new image hardly changes it.
    """
    return sorted(set(ids), key=lambda image: (hashlib.sha256(f"{seed}/{image}".encode()).digest(), image))


class ClassCounts(NamedTuple):
    """One number per class, in label order."""

    objects: tuple[int, ...]  # without difficult objects
    images: tuple[int, ...]  # with at least one such object
    difficult: tuple[int, ...]


def draw_shots(annotations: list[Annotation], num_classes: int, shots: int, seed: int) -> list[str]:
    """Choose images with `shots` objects of every class, or with all objects of a class that has fewer.

    Returns ids in the given order. Frequent classes get more objects, because they are on the images of rare classes;
    but no chosen image could be left out. Without annotations: an empty list.
    """
    assert shots > 0, shots
    order = _ranked_annotations(annotations, seed)
    counts = _counts_per_image(order, num_classes)
    available = counts.sum(axis=0)
    needed = np.minimum(shots, available)
    chosen, have = set[int](), np.zeros_like(needed)
    for label in np.argsort(available, kind="stable"):  # rarest class first: its images also have frequent classes
        for index in np.flatnonzero(counts[:, label]).tolist():
            if have[label] >= needed[label]:
                break
            if index not in chosen:
                chosen.add(index)
                have += counts[index]
    for index in sorted(chosen, reverse=True):
        if (have - counts[index] >= needed).all():
            chosen.remove(index)
            have -= counts[index]
    return _ids_in_order(annotations, [order[index] for index in chosen])


def draw_share(annotations: list[Annotation], share: float, seed: int) -> list[str]:
    """Choose `share` (above 0, at most 1) of the images, at least one. Returns ids in the given order."""
    assert 0 < share <= 1, share
    return _ids_in_order(annotations, _ranked_annotations(annotations, seed)[: max(1, round(share * len(annotations)))])


def draw_replay(annotations: list[Annotation], class_indexes: Collection[int], count: int, seed: int) -> list[str]:
    """Choose `count` images with balanced numbers of objects of these classes. Returns ids in the given order.

    Repeatedly the class with the fewest objects gets its next image. An image without an object of these classes is
    never chosen, so the result may have fewer images.
    """
    order = _ranked_annotations(annotations, seed)
    labels = sorted(set(class_indexes))
    every_label = [*labels, *(int(label) for annotation in order for label in annotation.labels)]
    num_classes = 1 + max(every_label, default=0)
    counts = _counts_per_image(order, num_classes)
    waiting = {label: iter(np.flatnonzero(counts[:, label]).tolist()) for label in labels}
    chosen, have = set[int](), np.zeros(num_classes, dtype=np.int64)
    while len(chosen) < count and waiting:
        label = min(waiting, key=have.__getitem__)  # the first of several
        index = next((index for index in waiting[label] if index not in chosen), None)
        if index is None:
            del waiting[label]
        else:
            chosen.add(index)
            have += counts[index]
    return _ids_in_order(annotations, [order[index] for index in chosen])


def count_objects(annotations: Sequence[Annotation], num_classes: int) -> ClassCounts:
    """Count objects and images of each class. Without images: zeros."""
    counts = _counts_per_image(annotations, num_classes)
    difficult = _bincounts([annotation.labels[annotation.difficult] for annotation in annotations], num_classes)
    totals = (counts.sum(axis=0), np.count_nonzero(counts, axis=0), difficult.sum(axis=0))
    return ClassCounts(*(tuple(total.tolist()) for total in totals))


def _ranked_annotations(annotations: Sequence[Annotation], seed: int) -> list[Annotation]:
    by_id = {annotation.image_id: annotation for annotation in annotations}
    return [by_id[image_id] for image_id in ranked(by_id, seed)]


def _counts_per_image(annotations: Sequence[Annotation], num_classes: int) -> Int64[np.ndarray, "N C"]:
    """Objects by image and class, without difficult objects."""
    return _bincounts([annotation.labels[~annotation.difficult] for annotation in annotations], num_classes)


def _bincounts(labels: Sequence[Int64[np.ndarray, " _"]], num_classes: int) -> Int64[np.ndarray, "N C"]:
    rows = [np.bincount(row, minlength=num_classes) for row in labels]
    return np.array(rows, dtype=np.int64).reshape(len(rows), num_classes)


def _ids_in_order(annotations: Sequence[Annotation], chosen: Sequence[Annotation]) -> list[str]:
    """Ids of the chosen annotations, in the order of all annotations."""
    names = {annotation.image_id for annotation in chosen}
    return [annotation.image_id for annotation in annotations if annotation.image_id in names]
