"""Small parts of a split: so many objects a class, a share of its images, or a few balanced ones to replay.

Whole images are drawn, and every object on a drawn image counts, but for those marked difficult. Images come in an
order that depends on the seed and their ids alone: a draw is the same on every machine, however the split is listed.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from dl.annotations import Annotation
from dl.splits import ranked


class ClassCounts(NamedTuple):
    """One number a class, in label order."""

    objects: tuple[int, ...]  # without those marked difficult
    images: tuple[int, ...]  # with at least one such object
    difficult: tuple[int, ...]


def draw_shots(annotations: list[Annotation], num_classes: int, shots: int, seed: int) -> list[str]:
    """Ids of images that hold `shots` objects of every class, or all of a class that has fewer; in the given order.

    Common classes end up with more, for they stand on the images of rare ones; but no image could be left out. Nothing
    to draw from: an empty list.
    """
    assert shots > 0, shots
    order = _ranked(annotations, seed)
    counts = _counts(order, num_classes)
    available = counts.sum(axis=0)
    needed = np.minimum(shots, available)
    taken, have = set[int](), np.zeros_like(needed)
    for label in np.argsort(available, kind="stable"):  # rarest first: its images bring common classes along
        for index in np.flatnonzero(counts[:, label]).tolist():
            if have[label] >= needed[label]:
                break
            if index not in taken:
                taken.add(index)
                have += counts[index]
    for index in sorted(taken, reverse=True):
        if (have - counts[index] >= needed).all():
            taken.remove(index)
            have -= counts[index]
    return _ids(annotations, [order[index] for index in taken])


def draw_share(annotations: list[Annotation], share: float, seed: int) -> list[str]:
    """Ids of `share` (above 0, at most 1) of the images, but at least one; in the given order. Of none: none."""
    assert 0 < share <= 1, share
    return _ids(annotations, _ranked(annotations, seed)[: max(1, round(share * len(annotations)))])


def draw_replay(annotations: list[Annotation], class_indexes: Collection[int], count: int, seed: int) -> list[str]:
    """Ids of `count` images, balanced over these classes; in the given order.

    Again and again the class with the fewest objects so far gets its next image. An image without an object of theirs
    is never taken, so there may be fewer.
    """
    order = _ranked(annotations, seed)
    labels = sorted(set(class_indexes))
    num_classes = 1 + max([*labels, *(int(label) for one in order for label in one.labels)], default=0)
    counts = _counts(order, num_classes)
    waiting = {label: iter(np.flatnonzero(counts[:, label]).tolist()) for label in labels}
    taken, have = set[int](), np.zeros(num_classes, dtype=np.int64)
    while len(taken) < count and waiting:
        label = min(waiting, key=have.__getitem__)  # of several the first
        index = next((index for index in waiting[label] if index not in taken), None)
        if index is None:
            del waiting[label]
        else:
            taken.add(index)
            have += counts[index]
    return _ids(annotations, [order[index] for index in taken])


def count_objects(annotations: Sequence[Annotation], num_classes: int) -> ClassCounts:
    """What these images hold of each class. No images: zeros."""
    counts = _counts(annotations, num_classes)
    difficult = _by_class([one.labels[one.difficult] for one in annotations], num_classes)
    totals = (counts.sum(axis=0), np.count_nonzero(counts, axis=0), difficult.sum(axis=0))
    return ClassCounts(*(tuple(total.tolist()) for total in totals))


def _ranked(annotations: Sequence[Annotation], seed: int) -> list[Annotation]:
    by_id = {one.image_id: one for one in annotations}
    return [by_id[image_id] for image_id in ranked(by_id, seed)]


def _counts(annotations: Sequence[Annotation], num_classes: int) -> Int64[np.ndarray, "N C"]:
    """Objects by image and class, without those marked difficult."""
    return _by_class([one.labels[~one.difficult] for one in annotations], num_classes)


def _by_class(labels: Sequence[Int64[np.ndarray, " _"]], num_classes: int) -> Int64[np.ndarray, "N C"]:
    rows = [np.bincount(one, minlength=num_classes) for one in labels]
    return np.array(rows, dtype=np.int64).reshape(len(rows), num_classes)


def _ids(annotations: Sequence[Annotation], drawn: Sequence[Annotation]) -> list[str]:
    """Of the drawn ones, in the order of all."""
    names = {one.image_id for one in drawn}
    return [one.image_id for one in annotations if one.image_id in names]
