"""Which detection is matched to which ground-truth object.

Legend: D or K detections, T ground-truth objects.

Average precision, the confusion of groups, painted images and the error analysis match by one rule, `match_greedily`.
They differ in the IoUs that they pass to it: which objects take part, whether classes must agree (the IoU of a pair
that must not match is set to 0), and whether the IoU is computed in single or double precision.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64

from dl.annotations import Annotation
from eval.predictor import Detections
from ops.boxes import pairwise_iou
from ops.text import shown

_SMALLEST_IOU = 1e-9  # boxes that do not touch never match, also at min_iou=0


def match_greedily(overlaps: Float[np.ndarray, "D T"], min_iou: float) -> Int64[np.ndarray, " D"]:
    """The object that each detection is matched to, -1 for none. Every object is matched once at most.

    `overlaps` are IoUs, the detection with the highest score in row 0. Each detection in turn takes the object with the
    largest IoU among those that are still free, if that IoU is at least `min_iou`; of equal IoUs it takes the first.
    """
    return match_at_thresholds(overlaps, [min_iou])[:, 0]


def match_at_thresholds(overlaps: Float[np.ndarray, "D T"], thresholds: Sequence[float]) -> Int64[np.ndarray, "D L"]:
    """`match_greedily` for each of these thresholds, in rising order."""
    matched = np.full((len(overlaps), len(thresholds)), -1, dtype=np.int64)
    detections, objects = np.nonzero(overlaps >= max(thresholds[0], _SMALLEST_IOU))
    found = overlaps[detections, objects]
    # All pairs in the order in which they are tried. The sort is stable, so that of equal IoUs the first object leads.
    order = np.lexsort((-found, detections))
    columns = (detections[order].tolist(), objects[order].tolist(), found[order].tolist())
    pairs = list(zip(*columns, strict=True))  # found and sorted once for all thresholds
    # In the precision of the IoUs, as numpy compares them: a single precision IoU of .7 is a little below .7.
    for level, threshold in enumerate(np.asarray(thresholds, dtype=overlaps.dtype).tolist()):
        taken: set[int] = set()
        last = -1  # the detection that was matched last; its other pairs are skipped
        for detection, truth, overlap in pairs:
            if overlap >= threshold and detection != last and truth not in taken:
                matched[detection, level] = truth
                taken.add(truth)
                last = detection
    return matched


def best_first(detections: Detections, min_score: float = -math.inf) -> Detections:
    """The detections of at least `min_score`, by falling score; those of equal score stay in their order."""
    order = detections.scores.argsort(descending=True, stable=True)
    order = order[detections.scores[order] >= min_score]
    return Detections(detections.image_id, *(part[order] for part in detections[1:]))


def class_overlaps(detections: Detections, annotation: Annotation) -> Float32[np.ndarray, "K T"]:
    """IoU of each detection with each object of one image; 0 where their classes differ."""
    overlaps = pairwise_iou(detections.boxes, torch.from_numpy(annotation.boxes).float()).numpy()
    return np.where(detections.labels.numpy()[:, None] == annotation.labels[None, :], overlaps, np.float32(0))


def pair_up(annotations: Sequence[Annotation], detections: Sequence[Detections]) -> list[tuple[Annotation, Detections]]:
    """Ground truth and detections of each image, in the order of `annotations`.

    Raises `ValueError` with the names of images that occur twice, that have no detections (an image without any has an
    empty entry) or that have no annotation: a mean over other images than those of the split would be wrong.
    """
    by_image = {found.image_id: found for found in detections}
    expected = {annotation.image_id for annotation in annotations}
    if len(by_image) != len(detections) or len(expected) != len(annotations):
        raise ValueError(
            f"images that occur twice: {_repeated(detections)} in the detections, {_repeated(annotations)} in the "
            "ground truth"
        )
    if expected != by_image.keys():
        raise ValueError(
            f"images without detections: {_listed(expected - by_image.keys())}; "
            f"images without ground truth: {_listed(by_image.keys() - expected)}"
        )
    return [(annotation, by_image[annotation.image_id]) for annotation in annotations]


def _repeated(items: Sequence[Annotation] | Sequence[Detections]) -> str:
    visited: set[str] = set()
    return _listed({item.image_id for item in items if item.image_id in visited or visited.add(item.image_id)})


def _listed(image_ids: set[str]) -> str:
    return shown(sorted(image_ids), most=10) or "none"
