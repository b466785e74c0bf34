"""Average precision as Ultralytics counts it: which detections are right at which overlap, and the area they earn.

It differs from COCO's in this: the points of the curve are joined by straight lines, which fall to zero at the highest
recall reached and not behind it, and trapezoids are summed up (so a flawless detector gets .995); every detection is
looked at, where COCO takes 100 an image and class; difficult objects are objects like any other.

The rules are those of 8.4.190. Earlier releases paired detections and truths by overlap, the largest first, where this
one goes by score; the two differ where one detection overlaps two truths of its class.

Legend: D detections, T truths, L = 10 overlaps asked for.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64

from dl.annotations import Annotation
from eval.matching import match_greedily
from eval.predictor import Detections
from ops.boxes import pairwise_iou

OVERLAPS = np.linspace(0.5, 0.95, 10, dtype=np.float32)  # (L,); single precision, as the overlaps compared with them
_RECALLS = np.linspace(0, 1, 101)


class Verdicts(NamedTuple):
    """All detections of all images, by falling score."""

    labels: np.ndarray  # (D,)
    is_right: np.ndarray  # (D, L) bool


def judge_all(pairs: Sequence[tuple[Annotation, Detections]]) -> Verdicts:
    """Every detection of every image, judged.

    Those that share a score stand in the order that numpy's plain sort gives all scores at once, which may change from
    one processor to another: no order is more right, and any other would give another figure than Ultralytics' own.
    """
    labels: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]  # of no image, so that none at all is no special case
    scores: list[np.ndarray] = [np.zeros(0, dtype=np.float32)]
    is_right = [np.zeros((0, len(OVERLAPS)), dtype=bool)]
    for annotation, found in pairs:
        order = found.scores.argsort(descending=True, stable=True)
        found = Detections(found.image_id, found.boxes[order], found.scores[order], found.labels[order])
        labels.append(found.labels.numpy())
        # There, one image without detections turns all scores to double precision, which sorts equal ones otherwise.
        scores.append(found.scores.numpy() if len(order) else np.zeros(0))
        is_right.append(_judge_image(annotation, found))
    order = np.argsort(-np.concatenate(scores))
    return Verdicts(np.concatenate(labels)[order], np.concatenate(is_right)[order])


def _judge_image(annotation: Annotation, found: Detections) -> np.ndarray:
    overlaps = pairwise_iou(found.boxes.float(), torch.from_numpy(annotation.boxes).float()).numpy()
    is_right = np.zeros((len(overlaps), len(OVERLAPS)), dtype=bool)
    for label in set(annotation.labels.tolist()):
        mine = np.flatnonzero(found.labels.numpy() == label)
        is_right[mine] = right_at_each_threshold(overlaps[np.ix_(mine, annotation.labels == label)])
    return is_right


def right_at_each_threshold(overlaps: Float32[np.ndarray, "D T"]) -> Bool[np.ndarray, "D L"]:
    """Which detections of one image and class are right at each of `OVERLAPS`. `overlaps`: the best score in row 0.

    The thresholds are single precision numbers as the IoUs are, so that an IoU of exactly .85 reaches .85.
    """
    return np.stack([match_greedily(overlaps, min_iou) >= 0 for min_iou in OVERLAPS.tolist()], axis=1)


def areas(is_right: Bool[np.ndarray, "D L"], num_truths: int) -> Float64[np.ndarray, " L"]:
    """AP of one class at each of `OVERLAPS`, from its detections over all images by falling score.

    No detection: zeros. `num_truths` is at least 1: a class without truth has no AP.
    """
    if len(is_right) == 0:
        return np.zeros(len(OVERLAPS))
    hits = is_right.cumsum(axis=0)
    recall, precision = hits / num_truths, hits / np.arange(1, len(hits) + 1)[:, None]
    return np.array([_area(*curve) for curve in zip(recall.T, precision.T, strict=True)])


def _area(recall: Float[np.ndarray, " D"], precision: Float[np.ndarray, " D"]) -> float:
    """Under straight lines from (0, 1) through the best precision at each recall or beyond, then down to 0 at once."""
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    along = np.concatenate(([0.0], recall, [recall[-1], 1.0]))
    heights = np.interp(_RECALLS, along, np.concatenate(([1.0], best_from_here, [0.0, 0.0])))
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(_RECALLS)).sum())
