"""95 % intervals: of a mean over few-shot splits (Student's t), of a difference of AP50 on one split (bootstrap).

The bootstrap resamples the test images many times. Whether a detection is right does not change then, so only the
precision-recall curve is computed again, with a weight for each image: how often it was drawn.

Legend: I images, C classes, D detections of a class, P right ones among them, S resamples.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num

from dl.annotations import Annotation
from eval.matching import match_greedily, pair_up
from eval.metrics import COCO_MAX_DETECTIONS
from eval.predictor import Detections

STATISTICS = ("harmonic", "base", "novel", "all")
_RECALLS = np.linspace(0, 1, 101)
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


def ap50_of(curves: Curves, image_weights: Num[np.ndarray, "*S I"]) -> Float64[np.ndarray, "*S C"]:
    """AP50 of each class (COCO, 101 recall points) when each image counts as often as its weight says.

    Accepts one set of weights or several. With all weights 1 the result is that of `coco_ap`. With whole weights it is
    that of a data set that contains each image as often as its weight says. Only the order of detections with equal
    scores may differ. NaN for a class without ground truth under its weights. Raises `ValueError` for another number
    of images.
    """
    *sets, num_images = image_weights.shape
    if num_images != len(curves.image_ids):
        raise ValueError(f"image_weights has {num_images} images, but the run has {len(curves.image_ids)}")
    rows = image_weights.reshape(math.prod(sets), num_images).astype(np.float64)
    ap50 = np.zeros((len(rows), len(curves.per_class)))
    for label, curve in enumerate(curves.per_class):
        ap50[:, label] = _weighted_ap(curve, rows)
    return ap50.reshape(*sets, len(curves.per_class))


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
    _check_same_test_data(run_a, run_b, is_base)
    if statistic not in STATISTICS:
        raise ValueError(f"statistic={statistic!r}: give one of {', '.join(STATISTICS)}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples}: must be 1 or more")
    num_images = len(run_a.image_ids)
    draws = np.random.default_rng(seed).integers(0, max(num_images, 1), (num_resamples, num_images))
    weights = np.ones((1 + num_resamples, num_images))  # row 0: the original images
    weights[1:] = [np.bincount(row, minlength=num_images) for row in draws]
    in_base = np.array(is_base, dtype=bool)
    ap_a, ap_b = (_statistic(statistic, ap50_of(run, weights), in_base) for run in (run_a, run_b))
    differences = ap_a - ap_b
    return _percentiles(float(differences[0]), differences[1:])


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
    scores, rights, ignored = [np.zeros(0)], [np.zeros(0, dtype=bool)], [np.zeros(0, dtype=bool)]
    n_gt = np.zeros(len(pairs), dtype=np.int64)
    for image, (annotation, found) in enumerate(pairs):
        is_object, of_class = annotation.labels == label, np.flatnonzero(found.labels.numpy() == label)
        difficult = annotation.difficult[is_object]
        n_gt[image] = np.count_nonzero(~difficult)
        all_scores = found.scores.numpy()[of_class].astype(np.float64)
        best = np.argsort(-all_scores, kind="stable")[:COCO_MAX_DETECTIONS]
        is_right, is_ignored = _outcomes(found.boxes.numpy()[of_class[best]], annotation.boxes[is_object], difficult)
        scores.append(all_scores[best])
        rights.append(is_right)
        ignored.append(is_ignored)
    images = np.repeat(np.arange(len(pairs)), np.array([len(part) for part in scores[1:]], dtype=np.int64))
    joined = np.concatenate(scores)
    order = np.argsort(-joined, kind="stable")
    is_right, is_ignored = np.concatenate(rights)[order], np.concatenate(ignored)[order]
    return ClassCurve(joined[order], is_right, is_ignored, images[order], n_gt)


def _outcomes(boxes: np.ndarray, objects: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right and ignored, (D,) bool each, for the boxes of one image and class, the highest score first.

    A box is right when it is matched to an object that is not difficult. Otherwise it is ignored when it lies on a
    difficult object, which any number of boxes may do.
    """
    overlaps = _overlaps(boxes.astype(np.float64), objects.astype(np.float64), difficult)
    # COCO takes the last of equal IoUs, `match_greedily` the first: hence the reversed columns.
    is_right = match_greedily(overlaps[:, ~difficult][:, ::-1], _MIN_IOU) >= 0
    return is_right, ~is_right & (overlaps[:, difficult] >= _MIN_IOU).any(axis=1)


def _overlaps(boxes: np.ndarray, objects: np.ndarray, difficult: np.ndarray) -> np.ndarray:
    """IoU (D, T) of boxes and objects; for difficult objects the share of the box that lies on them, as in COCO."""
    low = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], objects[None, :, 2:])
    inter = (high - low).clip(min=0).prod(axis=2)
    box_area, object_area = ((corners[:, 2:] - corners[:, :2]).prod(axis=1) for corners in (boxes, objects))
    union = np.where(difficult[None, :], box_area[:, None], box_area[:, None] + object_area[None, :] - inter)
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def _weighted_ap(curve: ClassCurve, weights: Float64[np.ndarray, "S I"]) -> Float64[np.ndarray, " S"]:
    """AP50 under each set of weights, NaN without ground truth."""
    # Recall rises only at right detections, and precision has its peaks there: the curve is computed at these P points.
    num_objects = weights @ curve.n_gt.astype(np.float64)
    hits = weights[:, curve.images[curve.is_right]].cumsum(axis=1)  # (S, P)
    num_detections = weights @ _cumulative_counts(curve, weights.shape[1])
    precision = np.divide(hits, num_detections, out=np.zeros_like(hits), where=num_detections > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = np.divide(hits, num_objects[:, None], out=np.zeros_like(hits), where=num_objects[:, None] > 0)
    levels = np.searchsorted(_RECALLS, recall, side="right")  # number of recall points reached so far
    total = (np.diff(levels, axis=1, prepend=0) * envelope).sum(axis=1)
    return np.where(num_objects > 0, total / len(_RECALLS), np.nan)


def _cumulative_counts(curve: ClassCurve, num_images: int) -> Float64[np.ndarray, "I P"]:
    """How many detections of each image are right or wrong, up to each right detection."""
    ranks = np.flatnonzero(curve.is_right)
    counts = np.zeros((num_images, len(ranks) + 1))  # the last column: after the last right detection
    counted = np.flatnonzero(~curve.is_ignored)
    np.add.at(counts, (curve.images[counted], np.searchsorted(ranks, counted)), 1)
    return counts[:, :-1].cumsum(axis=1)


def _statistic(name: str, ap50: Float64[np.ndarray, "S C"], is_base: Bool[np.ndarray, " C"]) -> np.ndarray:
    """The statistic of each resample (S,); NaN where a required group has no class with ground truth."""
    if name != "harmonic":
        members = {"base": is_base, "novel": ~is_base, "all": np.ones_like(is_base)}
        return _mean(ap50[:, members[name]])
    base, novel = _mean(ap50[:, is_base]), _mean(ap50[:, ~is_base])
    total = base + novel
    return np.divide(2 * base * novel, total, out=total.copy(), where=total != 0)  # 0 where both are 0


def _mean(ap50: np.ndarray) -> np.ndarray:
    """Mean of each row over the values that are not NaN; NaN when all are."""
    known = ~np.isnan(ap50)
    count = known.sum(axis=1)
    return np.divide(np.where(known, ap50, 0).sum(axis=1), count, out=np.full(len(ap50), np.nan), where=count > 0)


def _percentiles(observed: float, resampled: np.ndarray) -> Interval:
    known = resampled[~np.isnan(resampled)]
    if math.isnan(observed):
        return Interval(None, None, None)
    if known.size == 0:
        return Interval(observed, None, None)
    low, high = np.percentile(known, _LIMITS).tolist()
    return Interval(observed, low, high)


def _check_same_test_data(run_a: Curves, run_b: Curves, is_base: Sequence[bool]) -> None:
    if len(is_base) != len(run_a.class_names):
        raise ValueError(f"is_base has {len(is_base)} classes, but the runs have {len(run_a.class_names)}")
    is_same = (run_a.class_names, run_a.image_ids) == (run_b.class_names, run_b.image_ids)
    curves = zip(run_a.per_class, run_b.per_class, strict=True) if is_same else ()
    if not is_same or not all(np.array_equal(a.n_gt, b.n_gt) for a, b in curves):
        raise ValueError("the two runs were evaluated on different images, classes or ground truth")
