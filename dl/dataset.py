"""Annotations -> samples: read the image, then augment or letterbox it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset

from dl.annotations import Annotation
from dl.augment import AugmentRanges, apply_plan, draw_plan, letterbox
from dl.files import DataError
from dl.image_cache import FileImages, Images
from dl.mosaic import ModernRanges, MosaicPlan, apply_mosaic, draw_mosaic
from ops.batch import Sample

# Random streams of one seed must differ in their first number: numpy pads seeds with zeros, so [1, 2] is [1, 2, 0].
AUGMENT_STREAM, ORDER_STREAM = 1, 2

SampleKey = tuple[int, int]  # epoch, index


def random_stream(stream: int, seed: int, *place: int) -> np.random.Generator:
    """A random generator that depends only on these numbers, not on earlier random numbers or the worker process."""
    return np.random.default_rng([stream, seed % 2**64, *place])


class DetectionDataset(Dataset[Sample]):
    """Samples of the network's input size. `ranges` None: letterboxed, with the inverse; else augmented.

    A key is (epoch, index). The augmentation of an image, and its partners in a mosaic, depend only on (seed, epoch,
    index). `images` None: images are read from their files.
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
        sizes = [(annotation.height, annotation.width) for annotation in annotations]
        self.sizes = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        self.input_shape = input_shape
        self.seed = seed
        self.ranges = ranges
        self.images = FileImages() if images is None else images
        self._same_group = _group_by_labelled_classes(self.annotations)

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Raises `DataError` with the path of the image, or of its partner in a mosaic, that cannot be read."""
        errors: dict[str, str] = {}
        sample = self.load(key, errors)
        if sample is None or errors:
            raise DataError(next(iter(errors.values())))
        return sample

    def load(self, key: SampleKey, errors: dict[str, str]) -> Sample | None:
        """The sample; None if its own image is unreadable. An unreadable partner in a mosaic stays grey.

        Every unreadable image is added to `errors`: image id -> error message that starts with the path.
        """
        epoch, index = key
        annotation = self.annotations[index]
        rng = random_stream(AUGMENT_STREAM, self.seed, epoch, index)
        if isinstance(self.ranges, ModernRanges):
            same_group = None if self._same_group is None else self._same_group[index]
            plan = draw_mosaic(rng, index, self.sizes, self.input_shape, self.ranges, epoch, same_group)
            return self._load_mosaic(plan, index, errors)
        image = self._read(annotation, errors)
        if image is None:
            return None
        if self.ranges is None:
            canvas, inverse = letterbox(image, self.input_shape)
            boxes, labels = inverse.apply(annotation.boxes), annotation.labels
            return Sample(canvas, boxes, labels, annotation.image_id, inverse, annotation.labelled)
        plan = draw_plan(rng, image.shape[:2], self.input_shape, self.ranges)
        augmented = apply_plan(plan, image, annotation.boxes, annotation.labels)
        return Sample(*augmented, annotation.image_id, labelled=annotation.labelled)

    def _load_mosaic(self, plan: MosaicPlan, index: int, errors: dict[str, str]) -> Sample | None:
        images = [self._read(self.annotations[tile.index], errors) for tile in plan.tiles]
        readable = [(tile, image) for tile, image in zip(plan.tiles, images, strict=True) if image is not None]
        tiles = tuple(tile for tile, _ in readable)
        if any(tile.index == index for tile in plan.tiles) and not any(tile.index == index for tile in tiles):
            return None
        parts = [self.annotations[tile.index] for tile in tiles]
        boxes, labels = [part.boxes for part in parts], [part.labels for part in parts]
        augmented = apply_mosaic(replace(plan, tiles=tiles), [image for _, image in readable], boxes, labels)
        own = self.annotations[index]
        return Sample(*augmented, own.image_id, labelled=own.labelled)  # every tile has the same labelled classes

    def _read(self, annotation: Annotation, errors: dict[str, str]) -> np.ndarray | None:
        try:
            return self.images.read(annotation)
        except DataError as error:
            errors[annotation.image_id] = str(error)
            return None


def _group_by_labelled_classes(annotations: Sequence[Annotation]) -> list[np.ndarray] | None:
    """For each image, the indexes of images with the same labelled classes; None if every class is labelled everywhere.

    Only images of the same group are joined in a mosaic. If a class were unlabelled on one of four images, the loss
    would have to ignore it on the other three, too.
    """
    if all(annotation.labelled is None for annotation in annotations):
        return None
    keys = [b"" if annotation.labelled is None else annotation.labelled.tobytes() for annotation in annotations]
    groups = {group: np.array([index for index, key in enumerate(keys) if key == group]) for group in set(keys)}
    return [groups[key] for key in keys]
