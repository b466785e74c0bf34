"""The stages of a training image: the transforms of the recipe and the built-in augmentation, built and checked."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from config.errors import UserError
from config.parts import PartText
from dl.mosaic import MOSAIC_GREY
from dl.transforms import BuiltIn, Transform
from ops.batch import Sample

_TRIALS = 8  # so that a transform with a probability is really executed


def checked(transform: Transform, before: Sample, after: Any) -> Sample:
    """The result of a transform. Raises `UserError` with its class if it is not a sample that Mars can train on."""
    name = type(transform).__name__
    if not isinstance(after, Sample):
        raise UserError(f"transforms: {name} returned {type(after).__name__}, but a Sample is required")
    if after.image.dtype != np.uint8 or after.image.shape != before.image.shape:
        raise UserError(
            f"transforms: {name} returned an image of {after.image.dtype} {after.image.shape}, but the size must stay "
            f"uint8 {before.image.shape}"
        )
    boxes, labels = np.asarray(after.boxes, dtype=np.float32), np.asarray(after.labels, dtype=np.int64)
    if boxes.shape != (len(labels), 4) or not (boxes[:, 2:] >= boxes[:, :2]).all() or not np.isfinite(boxes).all():
        raise UserError(
            f"transforms: {name} returned boxes of shape {boxes.shape} for {len(labels)} labels, or a box that is not "
            "finite or has x1 > x2 or y1 > y2; a box is (x1, y1, x2, y2) in pixels"
        )
    # What the transform may have left out when it made a new sample.
    kept = {"image_id": before.image_id, "labelled": before.labelled, "letterbox": None}
    return replace(after, boxes=boxes, labels=labels, **kept)


def build_transforms(parts: Sequence[PartText]) -> list[Transform]:
    """The transforms of the config field `transforms`, with the place of the built-in augmentation among them.

    Raises `UserError` for a class that is missing or no transform, for wrong values, and for two `BuiltIn`.
    """
    transforms = [part.build("transforms", "dl.transforms", kind=Transform) for part in parts]
    for part, transform in zip(parts, transforms, strict=True):
        _try(part, transform)
    places = sum(isinstance(transform, BuiltIn) for transform in transforms)
    if places > 1:
        raise UserError("transforms: holds BuiltIn() twice; keep one of them")
    return transforms if places else [BuiltIn(), *transforms]


def _try(part: PartText, transform: Any) -> None:
    """Call a transform on two small images. Raises `UserError` with the error, before a training has begun."""
    if not 0 <= getattr(transform, "probability", 0) <= 1:
        raise UserError(f"transforms={part}: probability must be from 0 to 1")
    boxes = np.array([[8, 8, 24, 20], [30, 34, 60, 60]], dtype=np.float32)
    image = np.full((64, 64, 3), MOSAIC_GREY, dtype=np.uint8)
    sample = Sample(image, boxes, np.zeros(2, dtype=np.int64), "a test image")
    empty = Sample(image, boxes[:0], np.zeros(0, dtype=np.int64), "a test image without objects")
    more = (lambda: sample,) if getattr(transform, "uses_partners", False) else ()
    for seed in range(0 if isinstance(transform, BuiltIn) else _TRIALS):
        for tried in (sample, empty):
            try:
                copied = replace(tried, image=image.copy(), boxes=tried.boxes.copy())
                checked(transform, tried, transform(copied, np.random.default_rng(seed), *more))
            except UserError as error:
                raise UserError(f"transforms={part}: {str(error).removeprefix('transforms: ')}") from error
            except Exception as error:
                kind = type(error).__name__
                raise UserError(f"transforms={part}: fails on a test image ({kind}: {error}); correct it") from error
