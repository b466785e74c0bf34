"""Do base and novel classes get mixed up? What became of every object of either group."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from dl.annotations import Annotation
from eval.matching import best_first, match_greedily, pair_up
from eval.predictor import Detections
from ops.boxes import pairwise_iou


class ConfusionCounts(NamedTuple):
    """How many objects of one group were found as what; every object is in exactly one of the four."""

    as_itself: int
    as_same_group: int  # as another class of its group
    as_other_group: int
    missed: int

    @property
    def n_gt(self) -> int:
        return sum(self)

    def shares(self) -> dict[str, float | None]:
        """Each count by the number of objects; None without any."""
        return {name: count / self.n_gt if self.n_gt else None for name, count in self._asdict().items()}


class GroupConfusion(NamedTuple):
    """The fates of base and of novel objects, and which detections were asked."""

    base: ConfusionCounts
    novel: ConfusionCounts
    score_threshold: float
    min_iou: float

    def to_dict(self) -> dict[str, Any]:
        """What `eval/SPLIT/metrics.json` holds under "confusion"."""
        groups = {
            name: {"n_gt": fates.n_gt, **fates._asdict(), "shares": fates.shares()}
            for name, fates in (("base", self.base), ("novel", self.novel))
        }
        return {**groups, "score_threshold": self.score_threshold, "min_iou": self.min_iou}


def group_confusion(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    is_base: Sequence[bool],
    score_threshold: float,
    min_iou: float = 0.5,
) -> GroupConfusion:
    """What became of every object that is not difficult.

    Detections of at least `score_threshold` take their turn by score, whatever their class: each takes the object it
    overlaps most among those still free, if by at least `min_iou`. The object is then found as that class. `is_base`
    says of each label which group it is in. Raises `ValueError` as `eval.matching.pair_up` does.
    """
    in_base = np.array(is_base, dtype=bool)
    counts = np.zeros((2, len(ConfusionCounts._fields)), dtype=np.int64)  # novel, base
    for annotation, found in pair_up(annotations, detections):
        labels = annotation.labels[~annotation.difficult]
        found_as = _found_as(annotation.boxes[~annotation.difficult], found, score_threshold, min_iou)
        is_in_base = in_base[labels]
        conditions = [found_as < 0, found_as == labels, in_base[found_as] == is_in_base]
        np.add.at(counts, (is_in_base.astype(int), np.select(conditions, [3, 0, 1], 2)), 1)
    novel, base = (ConfusionCounts(*row) for row in counts.tolist())
    return GroupConfusion(base, novel, score_threshold, min_iou)


def _found_as(boxes: np.ndarray, found: Detections, score_threshold: float, min_iou: float) -> Int64[np.ndarray, " N"]:
    """The label that each truth is found as, -1 for those that are missed."""
    found = best_first(found, score_threshold)
    overlaps = pairwise_iou(found.boxes.double(), torch.from_numpy(boxes).double()).numpy()
    matched = match_greedily(overlaps, min_iou)
    found_as = np.full(len(boxes), -1, dtype=np.int64)
    found_as[matched[matched >= 0]] = found.labels.numpy()[matched >= 0]
    return found_as
