"""Annotations -> samples: read the image, then augment or letterbox it, and apply the transforms of the recipe."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from dl.annotations import Annotation
from dl.augment import AugmentRanges, apply_plan, draw_plan, letterbox
from dl.files import DataError
from dl.image_cache import FileImages, Images
from dl.mosaic import ModernRanges, apply_mosaic, draw_mosaic
from dl.stages import checked
from dl.transforms import BuiltIn, Transform
from ops.batch import Sample

# Random streams of one seed must differ in their first number: numpy pads seeds with zeros, so [1, 2] is [1, 2, 0].
AUGMENT_STREAM, ORDER_STREAM, TRANSFORM_STREAM = 1, 2, 3


class SampleKey(NamedTuple):
    """Which sample: its random numbers depend on epoch and index only."""

    epoch: int
    index: int  # of the image
    has_mosaic: bool | None = None  # whether the epoch may have mosaics; None: as in a run without trainMinutes


def random_stream(stream: int, seed: int, *place: int) -> np.random.Generator:
    """A random generator that depends only on these numbers, not on earlier random numbers or the worker process."""
    return np.random.default_rng([stream, seed % 2**64, *place])


class DetectionDataset(Dataset[Sample]):
    """Samples of the network's input size. `ranges` None: letterboxed, with the inverse; else augmented.

    A key is (epoch, index) or a `SampleKey`. The augmentation of an image, and its partners in a mosaic, depend only on
    (seed, epoch, index). `images` None: images are read from their files. `stages`: the transforms of the recipe, with
    the built-in augmentation, or the letterbox, at the place of `BuiltIn()`.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        input_shape: tuple[int, int],
        seed: int = 0,
        ranges: AugmentRanges | ModernRanges | None = None,
        images: Images | None = None,
        stages: Sequence[Transform] = (BuiltIn(),),
    ) -> None:
        self.annotations = list(annotations)
        sizes = [(annotation.height, annotation.width) for annotation in annotations]
        self.sizes = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        self.input_shape = input_shape
        self.seed = seed
        self.ranges = ranges
        self.images = FileImages() if images is None else images
        self.stages = list(stages)
        self._same_group = _group_by_labelled_classes(self.annotations)

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: SampleKey | tuple[int, int]) -> Sample:
        """Raises `DataError` with the path of the image, or of its partner in a mosaic, that cannot be read."""
        errors: dict[str, str] = {}
        sample = self.load(key, errors)
        if sample is None or errors:
            raise DataError(next(iter(errors.values())))
        return sample

    def load(self, key: SampleKey | tuple[int, int], errors: dict[str, str]) -> Sample | None:
        """The sample; None if its own image is unreadable. An unreadable partner in a mosaic stays grey.

        Every unreadable image is added to `errors`: image id -> error message that starts with the path.
        """
        epoch, index, has_mosaic = key if isinstance(key, SampleKey) else SampleKey(*key)
        if has_mosaic is None:
            has_mosaic = isinstance(self.ranges, ModernRanges) and self.ranges.has_mosaic(epoch)
        return self._after(len(self.stages), (epoch, index), index, has_mosaic, errors)

    def _after(
        self, num_stages: int, place: tuple[int, ...], index: int, has_mosaic: bool, errors: dict[str, str]
    ) -> Sample | None:
        """Image `index` after the first stages. `place` sets its random numbers: epoch and index, or more numbers for a
        partner of another image, so that the same image looks different there."""
        annotation = self.annotations[index]
        if not num_stages:
            if (image := self._read(annotation, errors)) is None:
                return None
            # Copies: a transform of a recipe may change the arrays in place.
            return _sample(image, annotation.boxes.copy(), annotation.labels.copy(), annotation)
        stage: Any = self.stages[num_stages - 1]

        def load(position: int, index: int) -> Sample | None:
            """The image itself (position 0), or a partner, after the stages before this one."""
            partner = (num_stages, position, index) if position else ()
            return self._after(num_stages - 1, (*place, *partner), index, has_mosaic, errors)

        if isinstance(stage, BuiltIn):
            return self._built_in(place, index, has_mosaic, load)
        sample = load(0, index)
        if sample is None:
            return None
        rng = random_stream(TRANSFORM_STREAM, self.seed, num_stages, *place)
        if not getattr(stage, "uses_partners", False):
            return checked(stage, sample, stage(sample, rng))
        group = range(len(self)) if self._same_group is None else self._same_group[index]
        positions = count(1)

        def load_partner() -> Sample | None:
            """Another image at random, which may be the same. Read only where the transform calls it."""
            return load(next(positions), int(group[rng.integers(len(group))]))

        return checked(stage, sample, stage(sample, rng, load_partner))

    def _built_in(
        self, place: tuple[int, ...], index: int, has_mosaic: bool, load: Callable[[int, int], Sample | None]
    ) -> Sample | None:
        """The built-in augmentation, or the letterbox. `load`: (position in the mosaic, image) -> the image."""
        own, rng = self.annotations[index], random_stream(AUGMENT_STREAM, self.seed, *place)
        if isinstance(self.ranges, ModernRanges):
            same_group = None if self._same_group is None else self._same_group[index]
            plan = draw_mosaic(rng, index, self.sizes, self.input_shape, self.ranges, has_mosaic, same_group)
            samples = [load(position, tile.index) for position, tile in enumerate(plan.tiles)]
            readable = [(tile, sample) for tile, sample in zip(plan.tiles, samples, strict=True) if sample is not None]
            tiles = tuple(tile for tile, _ in readable)
            if any(tile.index == index for tile in plan.tiles) and not any(tile.index == index for tile in tiles):
                return None
            parts = [(sample.image, sample.boxes, sample.labels) for _, sample in readable]
            images, boxes, labels = zip(*parts, strict=True) if parts else ((), (), ())
            # Every tile has the same labelled classes.
            return _sample(*apply_mosaic(replace(plan, tiles=tiles), images, boxes, labels), own)
        sample = load(0, index)
        if sample is None:
            return None
        if self.ranges is None:
            canvas, inverse = letterbox(sample.image, self.input_shape)
            return replace(sample, image=canvas, boxes=inverse.apply(sample.boxes), letterbox=inverse)
        plan = draw_plan(rng, sample.image.shape[:2], self.input_shape, self.ranges)
        return _sample(*apply_plan(plan, sample.image, sample.boxes, sample.labels), own)

    def _read(self, annotation: Annotation, errors: dict[str, str]) -> np.ndarray | None:
        try:
            return self.images.read(annotation)
        except DataError as error:
            errors[annotation.image_id] = str(error)
            return None


def _sample(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, annotation: Annotation) -> Sample:
    return Sample(image, boxes, labels, annotation.image_id, labelled=annotation.labelled)


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
