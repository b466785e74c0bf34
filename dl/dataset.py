"""Annotations -> samples: read the image, then augment it or letterbox it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset

from config.errors import UserError
from config.fields import nearest
from dl.annotations import Annotation
from dl.augment import AugmentRanges, apply_plan, draw_plan, letterbox
from dl.images import read_image
from ops.batch import Sample

# Streams drawn from one seed must differ in their first number: numpy pads seeds with zeros, so [1, 2] is [1, 2, 0].
AUGMENT_STREAM, ORDER_STREAM = 1, 2


def random_stream(stream: int, seed: int, *place: int) -> np.random.Generator:
    """A generator that depends on these numbers alone, not on what was drawn before or by which worker."""
    return np.random.default_rng([stream, seed % 2**64, *place])


class DetectionDataset(Dataset[Sample]):
    """Samples of the network's size. `ranges` None: letterboxed, with the inverse; else augmented.

    A key is (epoch, index): the augmentation of an image is drawn from (seed, epoch, index) and nothing else.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        input_shape: tuple[int, int],
        seed: int = 0,
        ranges: AugmentRanges | None = None,
    ) -> None:
        self.annotations = list(annotations)
        self.input_shape = input_shape
        self.seed = seed
        self.ranges = ranges

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Raises `UserError` with the image's path when it cannot be read any more."""
        epoch, index = key
        annotation = self.annotations[index]
        image = read_image(annotation.image_path, (annotation.width, annotation.height))
        if self.ranges is None:
            canvas, placed = letterbox(image, self.input_shape)
            boxes = placed.apply(annotation.boxes)
            return Sample(canvas, boxes, annotation.labels, annotation.image_id, placed)
        rng = random_stream(AUGMENT_STREAM, self.seed, epoch, index)
        plan = draw_plan(rng, image.shape[:2], self.input_shape, self.ranges)
        canvas, boxes, labels = apply_plan(plan, image, annotation.boxes, annotation.labels)
        return Sample(canvas, boxes, labels, annotation.image_id)


def select_classes(
    annotations: Sequence[Annotation],
    class_list: Sequence[str],
    selected: Sequence[str] | None,
    unselected_images: str = "keep",
) -> list[Annotation]:
    """Labels of the selected classes only; label numbers stay those of `class_list`. None selects all.

    An image that held only other classes stays as background with "keep": the default, because so the teacher of the
    assignment was trained, and the network learns that those objects are none of its own. "drop" leaves it out, so
    that classes to be learned later are not taught as background. Images that never had objects stay either way.
    Raises `UserError` for a class that is not listed.
    """
    if selected is None:
        return list(annotations)
    for name in selected:
        if name not in class_list:
            raise UserError(f"trainSelectedClasses: '{name}' is not in the class list{nearest(name, class_list)}")
    chosen = np.array([class_list.index(name) for name in selected], dtype=np.int64)
    kept = []
    for annotation in annotations:
        is_chosen = np.isin(annotation.labels, chosen)
        if unselected_images == "drop" and len(is_chosen) and not is_chosen.any():
            continue
        parts = (annotation.boxes[is_chosen], annotation.labels[is_chosen], annotation.difficult[is_chosen])
        kept.append(replace(annotation, **dict(zip(("boxes", "labels", "difficult"), parts, strict=True))))
    return kept
