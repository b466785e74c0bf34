"""95 % intervals: of a mean over few-shot splits (Student's t), of a difference of AP50 on one split (bootstrap).

The bootstrap resamples the test images many times. Whether a detection is right does not change then, so only the
precision-recall curve is computed again, with a weight for each image: how often it was drawn.

Legend: I images, C classes, D detections of a class, P right ones among them, S resamples.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from faster_coco_eval import mask
from jaxtyping import Bool, Float64, Int64, Num

from dl.annotations import Annotation
from eval.matching import match_greedily, pair_up
from eval.metrics import COCO_MAX_DETECTIONS, RECALLS
from eval.predictor import Detections

_MIN_IOU = 0.5
_LIMITS = (2.5, 97.5)  # percentiles of a 95 % interval
_Z = 1.959964  # 97.5 % quantile of the normal distribution
# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom
_T = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


class ClassCurve(NamedTuple):
    """The detections of one class over all images, by falling score, matched at IoU .5."""

    scores: Float64[np.ndarray, " D"]
    is_right: Bool[np.ndarray, " D"]
    is_ignored: Bool[np.ndarray, " D"]  # on a difficult object: neither right nor wrong
    images: Int64[np.ndarray, " D"]
    n_gt: Int64[np.ndarray, " I"]  # objects that count, per image


class Curves(NamedTuple):
    """The detections of one evaluated run, matched; `ap50_of` computes AP50 from them for any image weights."""

    class_names: tuple[str, ...]
    image_ids: tuple[str, ...]
    per_class: tuple[ClassCurve, ...]


class Interval(NamedTuple):
    """A value and its 95 % interval; None where there are too few values."""

    mean: float | None
    low: float | None
    high: float | None


def class_curves(
    annotations: Sequence[Annotation], detections: Sequence[Detections], class_names: Sequence[str]
) -> Curves:
    """Match every detection once, by the rules of `eval.metrics.coco_ap`. Raises `ValueError` as `pair_up` does."""
    pairs = pair_up(annotations, detections)
    image_ids = tuple(annotation.image_id for annotation, _ in pairs)
    return Curves(tuple(class_names), image_ids, tuple(_curve(pairs, label) for label in range(len(class_names))))


def ap50_of(curves: Curves, image_weights: Num[np.ndarray, "S I"]) -> Float64[np.ndarray, "S C"]:
    """AP50 of each class (COCO, 101 recall points) when each image counts as often as its weight says.

    Each row is one set of weights. With all weights 1 the result is that of `coco_ap`. With whole weights it is that of
    a data set that contains each image as often as its weight says. Only the order of detections with equal scores may
    differ. NaN for a class without ground truth under its weights. Raises `ValueError` for another number of images.
    """
    num_sets, num_images = image_weights.shape
    if num_images != len(curves.image_ids):
        raise ValueError(f"image_weights has {num_images} images, but the run has {len(curves.image_ids)}")
    weights = image_weights.astype(np.float64)
    ap50 = np.zeros((num_sets, len(curves.per_class)))
    for label, curve in enumerate(curves.per_class):
        ap50[:, label] = _weighted_ap(curve, weights)
    return ap50


def image_bootstrap(
    run_a: Curves,
    run_b: Curves,
    is_base: Sequence[bool],
    num_resamples: int = 1000,
    seed: int = 0,
    statistic: str = "harmonic",
) -> Interval:
    """The difference in AP50 between run a and run b, with its 95 % percentile interval.

    A resample draws the test images with replacement, the same images for both runs. The interval does not cover other
    training splits: for those use `mean_interval` of the differences of several splits. `statistic`: the mean AP50 over
    "base", "novel" or "all" classes with ground truth, or the "harmonic" mean of base and novel. `mean` is the
    difference on the original images. Resamples without ground truth in a required group are left out; None when the
    original images have none. Raises `ValueError` for runs on different images, classes or ground truth.
    """
    if len(is_base) != len(run_a.class_names):
        raise ValueError(f"is_base has {len(is_base)} classes, but the runs have {len(run_a.class_names)}")
    test_a, test_b = (
        (run.class_names, run.image_ids, [curve.n_gt.tolist() for curve in run.per_class]) for run in (run_a, run_b)
    )
    if test_a != test_b:
        raise ValueError("the two runs were evaluated on different images, classes or ground truth")
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples}: must be 1 or more")
    num_images = len(run_a.image_ids)
    draws = np.random.default_rng(seed).integers(0, max(num_images, 1), (num_resamples, num_images))
    weights = np.ones((1 + num_resamples, num_images))  # row 0: the original images
    weights[1:] = [np.bincount(row, minlength=num_images) for row in draws]
    in_base = np.array(is_base, dtype=bool)
    ap_a, ap_b = (_statistic(statistic, ap50_of(run, weights), in_base) for run in (run_a, run_b))
    observed, *resampled = (ap_a - ap_b).tolist()
    if math.isnan(observed):
        return Interval(None, None, None)
    known = [difference for difference in resampled if not math.isnan(difference)]
    return Interval(observed, *(np.percentile(known, _LIMITS).tolist() if known else (None, None)))


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of a few independent values and its 95 % interval by Student's t. One value: no interval; no value: no mean.

    A percentile bootstrap would be wrong here: with five values its interval covers the true mean in 83 % of cases.
    """
    if len(values) == 0:
        return Interval(None, None, None)
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, None, None)
    half = t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: from a table up to 30 degrees of freedom, above with an error below .01."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    return _Z + (_Z**3 + _Z) / (4 * freedom)  # Abramowitz and Stegun 26.7.5, first term


def _curve(pairs: Sequence[tuple[Annotation, Detections]], label: int) -> ClassCurve:
    """Match the detections of one class on every image, at most `COCO_MAX_DETECTIONS` of each."""
    scores, rights, ignored = [np.zeros(0)], [np.zeros(0, dtype=bool)], [np.zeros(0, dtype=bool)]
    n_gt = np.zeros(len(pairs), dtype=np.int64)
    for image, (annotation, found) in enumerate(pairs):
        is_object, of_class = annotation.labels == label, np.flatnonzero(found.labels.numpy() == label)
        difficult = annotation.difficult[is_object]
        n_gt[image] = np.count_nonzero(~difficult)
        all_scores = found.scores.numpy()[of_class].astype(np.float64)
        best = np.argsort(-all_scores, kind="stable")[:COCO_MAX_DETECTIONS]
        overlaps = _overlaps(found.boxes.numpy()[of_class[best]], annotation.boxes[is_object], difficult)
        # COCO takes the last of equal IoUs, `match_greedily` the first: hence the reversed columns.
        is_right = match_greedily(overlaps[:, ~difficult][:, ::-1], _MIN_IOU) >= 0
        scores.append(all_scores[best])
        rights.append(is_right)
        # Any number of detections may lie on a difficult object.
        ignored.append(~is_right & (overlaps[:, difficult] >= _MIN_IOU).any(axis=1))
    images = np.repeat(np.arange(len(pairs)), np.array([len(part) for part in scores[1:]], dtype=np.int64))
    joined = np.concatenate(scores)
    order = np.argsort(-joined, kind="stable")
    is_right, is_ignored = np.concatenate(rights)[order], np.concatenate(ignored)[order]
    return ClassCurve(joined[order], is_right, is_ignored, images[order], n_gt)


def _overlaps(boxes: np.ndarray, objects: np.ndarray, difficult: np.ndarray) -> Float64[np.ndarray, "D T"]:
    """IoU as COCO computes it: for difficult objects (its crowds), the share of the detection that lies on them."""
    if not len(boxes) or not len(objects):
        return np.zeros((len(boxes), len(objects)))  # the library returns an empty list
    boxes, objects = boxes.astype(np.float64), objects.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    objects[:, 2:] -= objects[:, :2]
    return np.asarray(mask.iou(boxes, objects, difficult.tolist()))


def _weighted_ap(curve: ClassCurve, weights: Float64[np.ndarray, "S I"]) -> Float64[np.ndarray, " S"]:
    """AP50 under each set of weights, NaN without ground truth."""
    # Recall rises only at right detections, and precision has its peaks there: the curve is computed at these P points.
    num_objects = weights @ curve.n_gt.astype(np.float64)
    hits = weights[:, curve.images[curve.is_right]].cumsum(axis=1)  # (S, P)
    # For each image, how many of its detections count up to each right detection: (I, P)
    ranks, counted = np.flatnonzero(curve.is_right), np.flatnonzero(~curve.is_ignored)
    counts = np.zeros((weights.shape[1], len(ranks) + 1))  # the last column: after the last right detection
    np.add.at(counts, (curve.images[counted], np.searchsorted(ranks, counted)), 1)
    num_detections = weights @ counts[:, :-1].cumsum(axis=1)
    precision = np.divide(hits, num_detections, out=np.zeros_like(hits), where=num_detections > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = np.divide(hits, num_objects[:, None], out=np.zeros_like(hits), where=num_objects[:, None] > 0)
    levels = np.searchsorted(RECALLS, recall, side="right")  # number of recall points reached so far
    total = (np.diff(levels, axis=1, prepend=0) * envelope).sum(axis=1)
    return np.where(num_objects > 0, total / len(RECALLS), np.nan)


def _statistic(name: str, ap50: Float64[np.ndarray, "S C"], is_base: Bool[np.ndarray, " C"]) -> np.ndarray:
    """The statistic of each resample (S,); NaN where a required group has no class with ground truth."""
    members = {"base": is_base, "novel": ~is_base, "all": np.ones_like(is_base)}
    if name in members:
        return _mean(ap50[:, members[name]])
    if name != "harmonic":
        raise ValueError(f"statistic={name!r}: give one of harmonic, {', '.join(members)}")
    base, novel = _mean(ap50[:, is_base]), _mean(ap50[:, ~is_base])
    total = base + novel
    return np.divide(2 * base * novel, total, out=total.copy(), where=total != 0)  # 0 where both are 0


def _mean(ap50: np.ndarray) -> np.ndarray:
    """Mean of each row over the values that are not NaN; NaN when all are."""
    known = ~np.isnan(ap50)
    count = known.sum(axis=1)
    return np.divide(np.where(known, ap50, 0).sum(axis=1), count, out=np.full(len(ap50), np.nan), where=count > 0)
