"""Results for base and novel classes when a detector learns classes in groups: AP, forgetting, confusion of groups.

Base classes are those learned first; all other classes are novel.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from dl.annotations import Annotation
from eval.matching import best_first, match_greedily, pair_up
from eval.metrics import ApResult, ClassAp
from eval.predictor import Detections
from ops.boxes import pairwise_iou


class GroupAp(NamedTuple):
    """Means over the classes of one group that have ground truth; None when no class has any."""

    ap50: float | None
    ap50_95: float | None
    n_gt: int  # ground-truth objects that count
    n_classes: int  # classes with ground truth, which are those in the means


class HarmonicAp(NamedTuple):
    """Harmonic mean of base and novel: 0 when both are 0, None when a group has no AP."""

    ap50: float | None
    ap50_95: float | None


class GroupedAp(NamedTuple):
    """AP of each group."""

    base: GroupAp
    novel: GroupAp
    all: GroupAp
    harmonic: HarmonicAp

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The entry "groups" of `eval/SPLIT/metrics.json`."""
        return {name: group._asdict() for name, group in self._asdict().items()}


class Forgetting(NamedTuple):
    """How much AP of the base classes a student has lost. Negative points and more than 100 per cent are a gain.

    None where teacher or student has no AP; the percentage is also None where the AP of the teacher is 0.
    """

    points_ap50: float | None  # 100 * (teacher - student)
    points_ap50_95: float | None
    kept_ap50: float | None  # per cent, 100 * student / teacher
    kept_ap50_95: float | None


class ConfusionCounts(NamedTuple):
    """How many objects of a group were found with their class, with another class of the group, with a class of the
    other group, or not at all. Every object is in exactly one of the four counts."""

    as_itself: int
    as_same_group: int  # as another class of its group
    as_other_group: int
    missed: int

    @property
    def n_gt(self) -> int:
        return sum(self)

    def shares(self) -> dict[str, float | None]:
        """Each count divided by the number of objects; None without objects."""
        return {name: count / self.n_gt if self.n_gt else None for name, count in self._asdict().items()}


class GroupConfusion(NamedTuple):
    """The counts of base and of novel objects, and the thresholds of the detections that were counted."""

    base: ConfusionCounts
    novel: ConfusionCounts
    score_threshold: float
    min_iou: float

    def to_dict(self) -> dict[str, Any]:
        """The entry "confusion" of `eval/SPLIT/metrics.json`."""
        groups = {
            name: {"n_gt": counts.n_gt, **counts._asdict(), "shares": counts.shares()}
            for name, counts in (("base", self.base), ("novel", self.novel))
        }
        return {**groups, "score_threshold": self.score_threshold, "min_iou": self.min_iou}


def group_ap(ap: ApResult, base: Collection[str]) -> GroupedAp:
    """AP of the classes named in `base`, of all other classes (novel), and of all classes together.

    Names in `base` that were not evaluated are ignored. A class without ground truth is in no mean.
    """
    of_base = _mean([class_ap for name, class_ap in ap.per_class.items() if name in base])
    of_novel = _mean([class_ap for name, class_ap in ap.per_class.items() if name not in base])
    harmonic = HarmonicAp(harmonic_mean(of_base.ap50, of_novel.ap50), harmonic_mean(of_base.ap50_95, of_novel.ap50_95))
    return GroupedAp(of_base, of_novel, _mean(list(ap.per_class.values())), harmonic)


def harmonic_mean(base: float | None, novel: float | None) -> float | None:
    """2BN / (B + N), which is close to the smaller of the two; 0 when both are 0, None when one is missing."""
    if base is None or novel is None:
        return None
    return 2 * base * novel / (base + novel) if base + novel > 0 else 0.0


def forgetting(teacher: GroupAp, student: GroupAp) -> Forgetting:
    """How much AP of the base classes the student has lost.

    Raises `ValueError` when the two were evaluated on different numbers of base classes, for such means cannot be
    compared.
    """
    if teacher.n_classes and student.n_classes and teacher.n_classes != student.n_classes:
        raise ValueError(
            f"the teacher was evaluated on {teacher.n_classes} base classes, the student on {student.n_classes}: "
            "evaluate both on the same split and classes"
        )
    pairs = ((teacher.ap50, student.ap50), (teacher.ap50_95, student.ap50_95))
    points = [None if old is None or new is None else 100 * (old - new) for old, new in pairs]
    kept = [None if old is None or new is None or old == 0 else 100 * new / old for old, new in pairs]
    return Forgetting(*points, *kept)


def group_confusion(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    is_base: Sequence[bool],
    score_threshold: float,
    min_iou: float = 0.5,
) -> GroupConfusion:
    """Count as what each object that is not difficult was found. `is_base`: for each label, is it a base class?

    Detections of at least `score_threshold` are matched with `match_greedily` whatever their class. A matched object is
    found as the class of its detection. Raises `ValueError` as `eval.matching.pair_up` does.
    """
    in_base = np.array(is_base, dtype=bool)
    counts = np.zeros((2, len(ConfusionCounts._fields)), dtype=np.int64)  # row 0: novel, row 1: base
    for annotation, found in pair_up(annotations, detections):
        labels = annotation.labels[~annotation.difficult]
        boxes = annotation.boxes[~annotation.difficult]
        found = best_first(found, score_threshold)
        overlaps = pairwise_iou(found.boxes.double(), torch.from_numpy(boxes).double()).numpy()
        matched = match_greedily(overlaps, min_iou)
        found_as = np.full(len(boxes), -1, dtype=np.int64)  # -1: missed
        found_as[matched[matched >= 0]] = found.labels.numpy()[matched >= 0]
        is_in_base = in_base[labels]
        # missed, as_itself, as_same_group, otherwise as_other_group: their places in `ConfusionCounts`
        outcomes = np.select([found_as < 0, found_as == labels, in_base[found_as] == is_in_base], [3, 0, 1], 2)
        np.add.at(counts, (is_in_base.astype(int), outcomes), 1)
    novel, base = (ConfusionCounts(*row) for row in counts.tolist())
    return GroupConfusion(base, novel, score_threshold, min_iou)


def _mean(classes: list[ClassAp]) -> GroupAp:
    pairs = [(ap.ap50, ap.ap50_95) for ap in classes if ap.ap50 is not None and ap.ap50_95 is not None]
    n_gt = sum(ap.n_gt for ap in classes)
    if not pairs:
        return GroupAp(None, None, n_gt, 0)
    ap50, ap50_95 = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return GroupAp(ap50, ap50_95, n_gt, len(pairs))
