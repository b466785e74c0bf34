"""Average precision by four definitions: COCO's, VOC 2007's, Ultralytics' and the assignment's.

Whatever the definition, a class without ground truth has no AP (None) and is left out of the means.
Boxes are xyxy in pixels of the image as read; widths are right - left, no +1.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster

from dl.annotations import Annotation
from eval.matching import pair_up
from eval.predictor import ASSIGNMENT_SELECTION, Detections
from eval.ultralytics_ap import areas, judge_all
from ops.boxes import pairwise_iou
from ops.nms import select_detections

COCO_MAX_DETECTIONS = 100  # an image and class, as in every published COCO figure
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


class ClassAp(NamedTuple):
    """AP of one class, 0 to 1 (the assignment's may exceed 1); None without ground truth."""

    ap50: float | None
    ap50_95: float | None  # mean over IoU .50, .55, ... .95
    n_gt: int  # ground truths that count


class ApResult(NamedTuple):
    """AP over all classes, and class by class in the order of the class list. Means are None without any truth."""

    map50: float | None
    map50_95: float | None
    per_class: dict[str, ClassAp]


class _Matches(NamedTuple):
    """All detections of one class over all images, in the order image by image, D of them, and the truth they meet."""

    scores: np.ndarray  # (D,)
    overlaps: np.ndarray  # (D,) largest IoU with a truth of the class on the image, 0 without one
    truths: np.ndarray  # (D,) that truth's number over all images, -1 without one
    on_difficult: np.ndarray  # (D,) bool: that truth is difficult
    n_gt: int  # truths that are not difficult
    n_difficult: int


def average_precision(
    style: str,
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    min_iou: float = 0.5,
) -> ApResult:
    """AP by the definition named `style`: coco, voc07, ultralytics or assignment (which alone heeds `min_iou`)."""
    if style == "assignment":
        return assignment_ap(annotations, detections, class_names, min_iou)
    by_style = {"coco": coco_ap, "voc07": voc07_ap, "ultralytics": ultralytics_ap}
    return by_style[style](annotations, detections, class_names)


def coco_ap(
    annotations: Sequence[Annotation], detections: Sequence[Detections], class_names: Sequence[str]
) -> ApResult:
    """COCO's AP: greedy matching by score, 101 recall points, ten IoU thresholds, 100 detections an image and class.

    Equal to pycocotools. Difficult objects are COCO's crowds: a detection that lies on one is neither right nor wrong.
    `annotations` and `detections` hold the same images, each once, in any order, else `ValueError`.
    """
    pairs = pair_up(annotations, detections)
    counts = _count_truths(annotations, len(class_names))
    scores = [_coco_scores(pairs, label) if counts[label] else (None, None) for label in range(len(class_names))]
    return _collect(class_names, counts, scores)


def _coco_scores(pairs: Sequence[tuple[Annotation, Detections]], label: int) -> tuple[float, float]:
    """AP50 and AP50-95 of one class.

    Class by class, because the library makes half a gigabyte of dictionaries out of 600,000 detections, and no class
    asks about another one's.
    """
    truth = _coco_of(pairs, label)
    evaluation = COCOeval_faster(truth, truth.loadRes(_coco_results(pairs, label)), "bbox", print_function=_say_nothing)
    evaluation.params.maxDets = [COCO_MAX_DETECTIONS]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"].reshape(len(IOU_THRESHOLDS), -1)  # (T, 101)
    return float(precision[0].mean()), float(precision.mean())


def voc07_ap(
    annotations: Sequence[Annotation], detections: Sequence[Detections], class_names: Sequence[str]
) -> ApResult:
    """VOC 2007's AP: the mean over recall 0, .1, ... 1 of the best precision at that recall or beyond.

    A detection meets the truth of its class that it overlaps most, also if that one is taken: the second on a truth is
    wrong. On a difficult truth it is neither right nor wrong. (Everingham et al. 2010, section 4.2.) `ap50_95` is the
    same at ten thresholds, which VOC itself never asks for.
    """

    def ap_at(matches: _Matches, threshold: float) -> float:
        right, wrong = _voc_verdicts(matches, threshold)
        hits, misses = np.cumsum(right), np.cumsum(wrong)
        precision = hits / np.maximum(hits + misses, 1)
        # recall >= tenth / 10 in whole numbers: 3 of 10 reach .3, which floats deny
        reached = [precision[hits * 10 >= tenth * matches.n_gt] for tenth in range(11)]
        return float(sum(tail.max() for tail in reached if tail.size) / 11)

    all_matches = _match(pair_up(annotations, detections), len(class_names))
    counts = [matches.n_gt for matches in all_matches]
    return _collect(class_names, counts, [_scores_of(ap_at, matches, 0.5, matches.n_gt) for matches in all_matches])


def ultralytics_ap(
    annotations: Sequence[Annotation], detections: Sequence[Detections], class_names: Sequence[str]
) -> ApResult:
    """Ultralytics' AP, as its `val` prints it, see `eval.ultralytics_ap`. Difficult objects count, in `n_gt` too."""
    verdicts = judge_all(pair_up(annotations, detections))
    counts = _count_truths(annotations, len(class_names), with_difficult=True)
    figures: list[tuple[float | None, float | None]] = [(None, None)] * len(class_names)
    for label, count in enumerate(counts):
        if count:
            ap = areas(verdicts.is_right[verdicts.labels == label], count)
            figures[label] = (float(ap[0]), float(ap.mean()))
    return _collect(class_names, counts, figures)


def assignment_ap(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    min_iou: float = 0.5,
) -> ApResult:
    """The course assignment's own figure. For comparison with the figures of that course; it is not average precision.

    It keeps detections with a score above .2, after suppression at .4 whatever the class, at most 50 an image. It takes
    them image by image instead of sorting them by score, never marks a truth as found (three boxes on one object are
    three hits, so recall and AP may exceed 1), knows no difficult objects (all count, in `n_gt` too), and lays
    trapezoids under the raw precision-recall points from (0, 1) on, without an envelope. `ap50` is at `min_iou`.
    """

    def ap_at(matches: _Matches, threshold: float) -> float:
        hits = np.cumsum(matches.overlaps >= threshold)
        recall = np.concatenate(([0.0], hits / (matches.n_gt + matches.n_difficult)))
        precision = np.concatenate(([1.0], hits / np.arange(1, hits.size + 1)))
        return float(((recall[1:] - recall[:-1]) * (precision[1:] + precision[:-1]) / 2).sum())

    selected = [_assignment_selection(found, len(class_names)) for found in detections]
    all_matches = _match(pair_up(annotations, selected), len(class_names))
    counts = [matches.n_gt + matches.n_difficult for matches in all_matches]
    scores = [_scores_of(ap_at, matches, min_iou, n) for matches, n in zip(all_matches, counts, strict=True)]
    return _collect(class_names, counts, scores)


def _collect(
    class_names: Sequence[str], counts: Sequence[int], scores: Sequence[tuple[float | None, float | None]]
) -> ApResult:
    """Per-class figures and their means over the classes that have ground truth."""
    per_class = {name: ClassAp(*pair, n) for name, pair, n in zip(class_names, scores, counts, strict=True)}

    def mean(values: list[float | None]) -> float | None:
        present = [value for value in values if value is not None]
        return float(np.mean(present)) if present else None

    return ApResult(mean([pair[0] for pair in scores]), mean([pair[1] for pair in scores]), per_class)


def _scores_of(
    ap_at: Callable[[_Matches, float], float], matches: _Matches, threshold: float, n_gt: int
) -> tuple[float | None, float | None]:
    """AP at `threshold` and the mean over the ten thresholds, or two None without ground truth."""
    if n_gt == 0:
        return None, None
    return ap_at(matches, threshold), float(np.mean([ap_at(matches, t) for t in IOU_THRESHOLDS]))


def _count_truths(annotations: Sequence[Annotation], num_classes: int, with_difficult: bool = False) -> list[int]:
    counts = np.zeros(num_classes, dtype=int)
    for annotation in annotations:
        counts += np.bincount(annotation.labels[~annotation.difficult | with_difficult], minlength=num_classes)
    return counts.tolist()


def _coco_of(pairs: Sequence[tuple[Annotation, Detections]], label: int) -> COCO:
    """The truth of one class, as the library wants it; it has seen no other."""
    rows = []
    for image, (annotation, _) in enumerate(pairs):
        ours = annotation.labels == label
        boxes = annotation.boxes[ours].astype(np.float64)
        for box, size, difficult in zip(boxes, boxes[:, 2:] - boxes[:, :2], annotation.difficult[ours], strict=True):
            bbox = [*box[:2].tolist(), *size.tolist()]
            # number from 1: a truth numbered 0 reads as "no match"
            row = {"id": len(rows) + 1, "image_id": image, "category_id": label, "bbox": bbox}
            rows.append(row | {"area": bbox[2] * bbox[3], "iscrowd": int(difficult)})
    images = [{"id": image, "width": a.width, "height": a.height} for image, (a, _) in enumerate(pairs)]
    content = {"info": {}, "images": images, "categories": [{"id": label, "name": str(label)}], "annotations": rows}
    return COCO(content, print_function=_say_nothing)


def _coco_results(pairs: Sequence[tuple[Annotation, Detections]], label: int) -> list[dict]:
    """The detections of one class, on each image no more than are looked at."""
    rows = []
    for image, (_, found) in enumerate(pairs):
        mine = np.flatnonzero(found.labels.numpy() == label)
        scores = found.scores.numpy()[mine]
        best = np.argsort(-scores, kind="stable")[:COCO_MAX_DETECTIONS]
        boxes = found.boxes.numpy()[mine[best]].astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        for bbox, score in zip(boxes.tolist(), scores[best].tolist(), strict=True):
            # without a segmentation of its own the library would build one of every box
            rows.append({"image_id": image, "category_id": label, "bbox": bbox, "score": score, "segmentation": []})
    return rows


def _say_nothing(*_args: object) -> None:
    """The library reports its progress line by line."""


def _match(pairs: Sequence[tuple[Annotation, Detections]], num_classes: int) -> list[_Matches]:
    """Every detection with the truth of its class that it overlaps most, class by class."""
    return [_match_class(pairs, label) for label in range(num_classes)]


def _match_class(pairs: Sequence[tuple[Annotation, Detections]], label: int) -> _Matches:
    scores, overlaps, truths, on_difficult, n_gt, n_difficult = [], [], [], [], 0, 0
    for annotation, found in pairs:
        mine, ours = found.labels == label, annotation.labels == label
        difficult = annotation.difficult[ours]
        overlap, truth = _best_overlaps(found.boxes[mine], annotation.boxes[ours])
        scores.append(found.scores[mine].numpy())
        overlaps.append(overlap)
        truths.append(np.where(truth >= 0, truth + n_gt + n_difficult, -1))
        on_difficult.append(difficult[truth] if difficult.size else np.zeros(truth.shape, dtype=bool))
        n_difficult += int(difficult.sum())
        n_gt += int((~difficult).sum())

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts) if parts else np.zeros(0)

    return _Matches(joined(scores), joined(overlaps), joined(truths), joined(on_difficult), n_gt, n_difficult)


def _best_overlaps(boxes: torch.Tensor, truths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest IoU of each box and the truth it is with; 0 and -1 when there is no truth."""
    if len(truths) == 0:
        return np.zeros(len(boxes)), np.full(len(boxes), -1)
    best = pairwise_iou(boxes.double(), torch.from_numpy(truths).double()).max(dim=1)
    return best.values.numpy(), best.indices.numpy()


def _voc_verdicts(matches: _Matches, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong (D,) bool each, by falling score; a detection on a difficult truth is neither."""
    order = np.argsort(-matches.scores, kind="stable")
    meets = matches.overlaps[order] >= threshold
    on_difficult = meets & matches.on_difficult[order].astype(bool)
    candidates = np.flatnonzero(meets & ~on_difficult)
    _, first = np.unique(matches.truths[order][candidates], return_index=True)  # the best-scored one on each truth
    right = np.zeros(order.size, dtype=bool)
    right[candidates[first]] = True
    return right, ~right & ~on_difficult


def _assignment_selection(found: Detections, num_classes: int) -> Detections:
    scores = torch.zeros(len(found.scores), num_classes)
    scores[torch.arange(len(found.scores)), found.labels] = found.scores
    kept = select_detections(
        found.boxes,
        scores,
        ASSIGNMENT_SELECTION["score_threshold"],
        ASSIGNMENT_SELECTION["nms_iou"],
        ASSIGNMENT_SELECTION["max_detections"],
        class_agnostic=True,
    )
    return Detections(found.image_id, *kept)
