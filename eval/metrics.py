"""Average precision (AP) by four definitions: COCO, VOC 2007, Ultralytics and the course assignment.

In all of them, a class without ground truth has no AP (None) and is left out of the means. Boxes are xyxy in pixels of
the image as read; width = right - left, without +1.

Legend: D detections, T ground-truth objects, L = 10 IoU thresholds.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Bool, Float32, Float64, Int64

from dl.annotations import Annotation
from eval.matching import best_first, match_at_thresholds, pair_up
from eval.predictor import ASSIGNMENT_SELECTION, Detections
from ops.boxes import pairwise_iou
from ops.nms import select_detections

COCO_MAX_DETECTIONS = 100  # per image and class, as in all published COCO results
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
# Ultralytics compares IoUs and thresholds in single precision.
_FLOAT32_THRESHOLDS = np.linspace(0.5, 0.95, 10, dtype=np.float32)
RECALLS = np.linspace(0, 1, 101)

_Pairs = Sequence[tuple[Annotation, Detections]]


class ClassAp(NamedTuple):
    """AP of one class, from 0 to 1 (that of the assignment can exceed 1); None without ground truth."""

    ap50: float | None
    ap50_95: float | None  # mean over IoU .50, .55, ... .95
    n_gt: int  # ground-truth objects that count


@runtime_checkable
class Metric(Protocol):
    """A metric that a recipe adds to every evaluation: `mcfg.metrics = [SmallRecall()]`."""

    @property
    def name(self) -> str:
        """In metrics.json and below the table."""
        ...

    def __call__(self, truth: Sequence[Annotation], detections: Sequence[Detections]) -> float | None:
        """The value for all images of a split, in the same order; None where it has no meaning."""


class ApResult(NamedTuple):
    """Mean AP over all classes, and AP per class in the order of the class list. Without ground truth: means None."""

    map50: float | None
    map50_95: float | None
    per_class: dict[str, ClassAp]


class _BestOverlaps(NamedTuple):
    """All detections of one class, image after image, and the object of the class that each overlaps most."""

    scores: np.ndarray  # (D,)
    overlaps: np.ndarray  # (D,) largest IoU with an object of the class on the image, 0 without one
    objects: np.ndarray  # (D,) number of that object, different for all objects of all images
    on_difficult: np.ndarray  # (D,) bool: that object is difficult


def average_precision(
    style: str,
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    min_iou: float = 0.5,
) -> ApResult:
    """AP by the definition named `style`: coco, voc07, ultralytics or assignment. Only assignment uses `min_iou`."""
    if style == "assignment":
        return assignment_ap(annotations, detections, class_names, min_iou)
    by_style = {"coco": coco_ap, "voc07": voc07_ap, "ultralytics": ultralytics_ap}
    return by_style[style](annotations, detections, class_names)


def coco_ap(
    annotations: Sequence[Annotation], detections: Sequence[Detections], class_names: Sequence[str]
) -> ApResult:
    """AP of COCO: greedy matching by score, 101 recall points, ten IoU thresholds, 100 detections per image and class.

    Equal to pycocotools. Difficult objects are treated as COCO's crowds: a detection on one of them is ignored.
    `annotations` and `detections` contain the same images, each once, in any order; otherwise `ValueError`.
    """
    pairs = pair_up(annotations, detections)
    counts = _count_objects(annotations, len(class_names))
    return _collect(class_names, counts, lambda label: _coco_scores(pairs, label))


def _coco_scores(pairs: _Pairs, label: int) -> tuple[float, float]:
    """AP50 and AP50-95 of one class."""
    # One class at a time: the library makes half a gigabyte of dictionaries for 600,000 detections.
    objects, detections = [], []
    for image, (annotation, found) in enumerate(pairs):
        is_object = annotation.labels == label
        bboxes = _to_bboxes(annotation.boxes[is_object])
        for bbox, difficult in zip(bboxes, annotation.difficult[is_object], strict=True):
            # ids start at 1: the library takes a match with id 0 for "no match"
            row = {"id": len(objects) + 1, "image_id": image, "category_id": label, "bbox": bbox}
            objects.append(row | {"area": bbox[2] * bbox[3], "iscrowd": int(difficult)})
        of_class = np.flatnonzero(found.labels.numpy() == label)
        scores = found.scores.numpy()[of_class]
        best = np.argsort(-scores, kind="stable")[:COCO_MAX_DETECTIONS]
        bboxes = _to_bboxes(found.boxes.numpy()[of_class[best]])
        for bbox, score in zip(bboxes, scores[best].tolist(), strict=True):
            row = {"image_id": image, "category_id": label, "bbox": bbox, "score": score}
            detections.append(row | {"segmentation": []})  # without it the library would build one for each box
    images = [{"id": image, "width": a.width, "height": a.height} for image, (a, _) in enumerate(pairs)]
    content = {"info": {}, "images": images, "categories": [{"id": label, "name": str(label)}], "annotations": objects}
    truth = COCO(content, print_function=_ignore)
    evaluation = COCOeval_faster(truth, truth.loadRes(detections), "bbox", print_function=_ignore)
    evaluation.params.maxDets = [COCO_MAX_DETECTIONS]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"].reshape(len(IOU_THRESHOLDS), -1)  # (L, 101)
    return float(precision[0].mean()), float(precision.mean())


def _to_bboxes(corners: Float32[np.ndarray, "N 4"]) -> list[list[float]]:
    """x, y, width, height in float64."""
    boxes = corners.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes.tolist()


def _ignore(*_args: object) -> None:
    """Instead of `print`: the library reports its progress line by line."""


def voc07_ap(
    annotations: Sequence[Annotation], detections: Sequence[Detections], class_names: Sequence[str]
) -> ApResult:
    """AP of VOC 2007: the mean over recall 0, .1, ... 1 of the best precision at that recall or a higher one.

    A detection is compared with the object of its class that it overlaps most, even if another detection has found it
    already: the second detection of an object is wrong. A detection of a difficult object is ignored. (Everingham et
    al. 2010, section 4.2.) `ap50_95` is the mean at ten IoU thresholds, which VOC itself does not define.
    """

    def ap_at(matches: _BestOverlaps, num_objects: int, threshold: float) -> float:
        order = np.argsort(-matches.scores, kind="stable")
        is_match = matches.overlaps[order] >= threshold
        on_difficult = is_match & matches.on_difficult[order]
        candidates = np.flatnonzero(is_match & ~on_difficult)
        _, first = np.unique(matches.objects[order][candidates], return_index=True)  # the best score on each object
        is_right = np.zeros(order.size, dtype=bool)
        is_right[candidates[first]] = True
        hits, misses = np.cumsum(is_right), np.cumsum(~is_right & ~on_difficult)
        precision = hits / np.maximum(hits + misses, 1)
        # recall >= tenth / 10 in whole numbers: in floating point, 3 of 10 do not reach .3
        reached = [precision[hits * 10 >= tenth * num_objects] for tenth in range(11)]
        return float(sum(tail.max() for tail in reached if tail.size) / 11)

    counts = _count_objects(annotations, len(class_names))
    return _collect_overlaps(pair_up(annotations, detections), class_names, counts, ap_at)


def ultralytics_ap(
    annotations: Sequence[Annotation], detections: Sequence[Detections], class_names: Sequence[str]
) -> ApResult:
    """AP as `val` of Ultralytics 8.4.190 prints it.

    It differs from COCO in three points. The points of the precision-recall curve are joined by straight lines that
    fall to zero at the highest recall, and the area is a sum of trapezoids, so that a perfect detector gets .995. All
    detections count, not only 100 per image and class. Difficult objects count as all others, in `n_gt` too.
    Earlier releases matched the largest IoU first, this one the highest score first; the two differ where a detection
    overlaps two objects of its class.
    """
    labels, is_right = _ultralytics_outcomes(pair_up(annotations, detections))
    counts = _count_objects(annotations, len(class_names), with_difficult=True)

    def scores_of(label: int) -> tuple[float, float]:
        ap = _ultralytics_areas(is_right[labels == label], counts[label])
        return float(ap[0]), float(ap.mean())

    return _collect(class_names, counts, scores_of)


def _ultralytics_outcomes(pairs: _Pairs) -> tuple[Int64[np.ndarray, " D"], Bool[np.ndarray, "D L"]]:
    """Labels of all detections by falling score, and whether each is right at each threshold."""
    labels: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]  # the first entry is empty: for no images at all
    scores: list[np.ndarray] = [np.zeros(0, dtype=np.float32)]
    outcomes = [np.zeros((0, len(_FLOAT32_THRESHOLDS)), dtype=bool)]
    for annotation, found in pairs:
        found = best_first(found)
        overlaps = pairwise_iou(found.boxes.float(), torch.from_numpy(annotation.boxes).float()).numpy()
        is_right = np.zeros((len(overlaps), len(_FLOAT32_THRESHOLDS)), dtype=bool)
        for label in set(annotation.labels.tolist()):  # each class is matched on its own
            rows = np.flatnonzero(found.labels.numpy() == label)
            is_right[rows] = right_at_each_threshold(overlaps[np.ix_(rows, annotation.labels == label)])
        outcomes.append(is_right)
        labels.append(found.labels.numpy())
        # In Ultralytics an image without detections converts all scores to double precision, and then numpy sorts equal
        # scores in another order.
        scores.append(found.scores.numpy() if len(found.scores) else np.zeros(0))
    # The plain sort of numpy, as Ultralytics calls it: its order of equal scores depends on the processor. Any other
    # order would be as correct but would give another AP than Ultralytics.
    order = np.argsort(-np.concatenate(scores))
    return np.concatenate(labels)[order], np.concatenate(outcomes)[order]


def right_at_each_threshold(overlaps: Float32[np.ndarray, "D T"]) -> Bool[np.ndarray, "D L"]:
    """Which detections of one image and class are right at IoU .5, .55, ... .95. `overlaps`: the best score in row 0.

    The thresholds are single precision numbers as the IoUs are, so that an IoU of exactly .85 reaches .85.
    """
    return match_at_thresholds(overlaps, _FLOAT32_THRESHOLDS.tolist()) >= 0


def _ultralytics_areas(is_right: Bool[np.ndarray, "D L"], num_objects: int) -> Float64[np.ndarray, " L"]:
    """AP of one class at each threshold, from its detections over all images by falling score; zeros without any.

    The area under straight lines from (0, 1) through the best precision at each recall or a higher one, then down to 0.
    """
    if len(is_right) == 0:
        return np.zeros(len(_FLOAT32_THRESHOLDS))
    hits = is_right.cumsum(axis=0)
    recalls, precisions = hits / num_objects, hits / np.arange(1, len(hits) + 1)[:, None]
    areas = []
    for recall, precision in zip(recalls.T, precisions.T, strict=True):
        best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
        x = np.concatenate(([0.0], recall, [recall[-1], 1.0]))
        heights = np.interp(RECALLS, x, np.concatenate(([1.0], best_from_here, [0.0, 0.0])))
        areas.append(float(((heights[1:] + heights[:-1]) / 2 * np.diff(RECALLS)).sum()))
    return np.array(areas)


def assignment_ap(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    min_iou: float = 0.5,
) -> ApResult:
    """The metric of the course assignment, for comparison with results of that course. It is not average precision.

    It keeps detections with a score above .2, after class-agnostic suppression at IoU .4, at most 50 per image. It
    counts them image by image instead of by falling score. It never marks an object as found: three boxes on one object
    are three hits, so recall and AP can exceed 1. Difficult objects count, in `n_gt` too. The area is a sum of
    trapezoids under the raw precision-recall points, beginning at (0, 1). `ap50` is measured at `min_iou`.
    """

    def ap_at(matches: _BestOverlaps, num_objects: int, threshold: float) -> float:
        hits = np.cumsum(matches.overlaps >= threshold)
        recall = np.concatenate(([0.0], hits / num_objects))
        precision = np.concatenate(([1.0], hits / np.arange(1, hits.size + 1)))
        return float(((recall[1:] - recall[:-1]) * (precision[1:] + precision[:-1]) / 2).sum())

    selected = []
    for found in detections:
        scores = torch.zeros(len(found.scores), len(class_names))
        scores[torch.arange(len(found.scores)), found.labels] = found.scores
        selected.append(Detections(found.image_id, *select_detections(found.boxes, scores, **ASSIGNMENT_SELECTION)))
    counts = _count_objects(annotations, len(class_names), with_difficult=True)
    return _collect_overlaps(pair_up(annotations, selected), class_names, counts, ap_at, min_iou)


def _count_objects(annotations: Sequence[Annotation], num_classes: int, with_difficult: bool = False) -> list[int]:
    counts = np.zeros(num_classes, dtype=int)
    for annotation in annotations:
        counts += np.bincount(annotation.labels[~annotation.difficult | with_difficult], minlength=num_classes)
    return counts.tolist()


def _collect(
    class_names: Sequence[str], counts: Sequence[int], scores_of: Callable[[int], tuple[float, float]]
) -> ApResult:
    """AP per class, and the means over the classes that have ground truth. `scores_of`: label -> AP50 and AP50-95."""
    scores = {label: scores_of(label) for label, count in enumerate(counts) if count}
    per_class = {
        name: ClassAp(*scores.get(label, (None, None)), n)
        for label, (name, n) in enumerate(zip(class_names, counts, strict=True))
    }
    if not scores:
        return ApResult(None, None, per_class)
    map50, map50_95 = (float(np.mean(column)) for column in zip(*scores.values(), strict=True))
    return ApResult(map50, map50_95, per_class)


def _collect_overlaps(
    pairs: _Pairs,
    class_names: Sequence[str],
    counts: Sequence[int],
    ap_at: Callable[[_BestOverlaps, int, float], float],
    threshold: float = 0.5,
) -> ApResult:
    """`_collect` with `ap_at`: overlaps of a class, its number of objects, IoU threshold -> AP."""

    def scores_of(label: int) -> tuple[float, float]:
        matches, count = _best_overlaps(pairs, label), counts[label]
        return ap_at(matches, count, threshold), float(np.mean([ap_at(matches, count, t) for t in IOU_THRESHOLDS]))

    return _collect(class_names, counts, scores_of)


def _best_overlaps(pairs: _Pairs, label: int) -> _BestOverlaps:
    parts, num_objects = [], 0
    for annotation, found in pairs:
        is_detection, is_object = found.labels == label, annotation.labels == label
        objects = torch.from_numpy(annotation.boxes[is_object])
        overlaps = pairwise_iou(found.boxes[is_detection].double(), objects.double()).numpy()
        overlaps = np.pad(overlaps, ((0, 0), (0, 1)))  # a last column of zeros: the image may have no such object
        best = overlaps.argmax(axis=1)
        on_difficult = np.append(annotation.difficult[is_object], False)[best]
        parts.append((found.scores[is_detection].numpy(), overlaps.max(axis=1), num_objects + best, on_difficult))
        num_objects += overlaps.shape[1]
    return _BestOverlaps(*(np.concatenate(column) for column in zip(*parts, strict=True)))
