"""Annotations -> samples: read the image, then augment it or letterbox it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset

from config.errors import UserError
from config.fields import nearest
from dl.annotations import Annotation
from dl.augment import AugmentRanges, apply_plan, draw_plan, letterbox
from dl.faults import DataFault
from dl.image_cache import FileImages, Images
from dl.mosaic import ModernRanges, MosaicPlan, apply_mosaic, draw_mosaic
from ops.batch import Sample

# Streams drawn from one seed must differ in their first number: numpy pads seeds with zeros, so [1, 2] is [1, 2, 0].
AUGMENT_STREAM, ORDER_STREAM = 1, 2

Key = tuple[int, int]  # epoch, index


def random_stream(stream: int, seed: int, *place: int) -> np.random.Generator:
    """A generator that depends on these numbers alone, not on what was drawn before or by which worker."""
    return np.random.default_rng([stream, seed % 2**64, *place])


class DetectionDataset(Dataset[Sample]):
    """Samples of the network's size. `ranges` None: letterboxed, with the inverse; else augmented.

    A key is (epoch, index): the augmentation of an image, and the images it is joined with, are drawn from (seed,
    epoch, index) and nothing else. `images` None: read from their files.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        input_shape: tuple[int, int],
        seed: int = 0,
        ranges: AugmentRanges | ModernRanges | None = None,
        images: Images | None = None,
    ) -> None:
        self.annotations = list(annotations)
        self.sizes = np.array([(one.height, one.width) for one in annotations], dtype=np.int64).reshape(-1, 2)
        self.input_shape = input_shape
        self.seed = seed
        self.ranges = ranges
        self.images = FileImages() if images is None else images
        self._alike = _alike(self.annotations)

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: Key) -> Sample:
        """Raises `DataFault` with the image's path when it, or one it is joined with, cannot be read any more."""
        faults: dict[str, str] = {}
        sample = self.load(key, faults)
        if sample is None or faults:
            raise DataFault(next(iter(faults.values())))
        return sample

    def load(self, key: Key, faults: dict[str, str]) -> Sample | None:
        """The sample, None when its own image cannot be read; where another one of a mosaic cannot, it is grey.

        Every image that could not be read is entered in `faults`: image id -> sentence that starts with the path.
        """
        epoch, index = key
        annotation = self.annotations[index]
        rng = random_stream(AUGMENT_STREAM, self.seed, epoch, index)
        if isinstance(self.ranges, ModernRanges):
            alike = None if self._alike is None else self._alike[index]
            plan = draw_mosaic(rng, index, self.sizes, self.input_shape, self.ranges, epoch, alike)
            return self._joined(plan, index, faults)
        image = self._read(annotation, faults)
        if image is None:
            return None
        if self.ranges is None:
            canvas, placed = letterbox(image, self.input_shape)
            boxes, labels = placed.apply(annotation.boxes), annotation.labels
            return Sample(canvas, boxes, labels, annotation.image_id, placed, annotation.labelled)
        plan = draw_plan(rng, image.shape[:2], self.input_shape, self.ranges)
        drawn = apply_plan(plan, image, annotation.boxes, annotation.labels)
        return Sample(*drawn, annotation.image_id, labelled=annotation.labelled)

    def _joined(self, plan: MosaicPlan, index: int, faults: dict[str, str]) -> Sample | None:
        images = [self._read(self.annotations[tile.index], faults) for tile in plan.tiles]
        readable = [(tile, image) for tile, image in zip(plan.tiles, images, strict=True) if image is not None]
        tiles = tuple(tile for tile, _ in readable)
        if any(tile.index == index for tile in plan.tiles) and not any(tile.index == index for tile in tiles):
            return None
        parts = [self.annotations[tile.index] for tile in tiles]
        boxes, labels = [part.boxes for part in parts], [part.labels for part in parts]
        drawn = apply_mosaic(replace(plan, tiles=tiles), [image for _, image in readable], boxes, labels)
        own = self.annotations[index]
        return Sample(*drawn, own.image_id, labelled=own.labelled)  # that of every tile, see _alike

    def _read(self, annotation: Annotation, faults: dict[str, str]) -> np.ndarray | None:
        try:
            return self.images.read(annotation)
        except DataFault as fault:
            faults[annotation.image_id] = str(fault)
            return None


def _alike(annotations: Sequence[Annotation]) -> list[np.ndarray] | None:
    """Of each image the numbers of those on which the same classes are labelled; None where that is no question.

    Only such images are joined: where one of four leaves a class without labels, nothing could be said about that
    class on the other three.
    """
    if all(one.labelled is None for one in annotations):
        return None
    keys = [b"" if one.labelled is None else one.labelled.tobytes() for one in annotations]
    numbers = {key: np.array([n for n, other in enumerate(keys) if other == key]) for key in set(keys)}
    return [numbers[key] for key in keys]


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
