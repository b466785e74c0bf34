"""AP of classes learned one group after another: base, novel, their harmonic mean, and what was forgotten."""

from collections.abc import Collection
from typing import Any, NamedTuple

from eval.metrics import ApResult, ClassAp


class GroupAp(NamedTuple):
    """Means over the classes of one group that have ground truth; None where there is none."""

    ap50: float | None
    ap50_95: float | None
    n_gt: int  # ground truths that count
    n_classes: int  # classes with ground truth, those in the means


class HarmonicAp(NamedTuple):
    """Harmonic mean of base and novel: 0 when both are 0, None when a group has no figure."""

    ap50: float | None
    ap50_95: float | None


class GroupedAp(NamedTuple):
    """The figures of each group."""

    base: GroupAp
    novel: GroupAp
    all: GroupAp
    harmonic: HarmonicAp

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """What `eval/SPLIT/metrics.json` holds under "groups"."""
        return {name: group._asdict() for name, group in self._asdict().items()}


class Forgetting(NamedTuple):
    """What a student lost on the base classes; negative points and more than 100 per cent are a gain.

    None where teacher or student has no figure, and per cent also where the teacher has 0.
    """

    points_ap50: float | None  # 100 * (teacher - student)
    points_ap50_95: float | None
    kept_ap50: float | None  # per cent, 100 * student / teacher
    kept_ap50_95: float | None


def group_ap(ap: ApResult, base: Collection[str]) -> GroupedAp:
    """Figures of the classes named in `base`, of the others (novel), and of all.

    Names in `base` that were not measured are passed over. A class without ground truth is in no mean; a group without
    any has None for figures.
    """
    of_base = _mean([one for name, one in ap.per_class.items() if name in base])
    of_novel = _mean([one for name, one in ap.per_class.items() if name not in base])
    harmonic = HarmonicAp(harmonic_mean(of_base.ap50, of_novel.ap50), harmonic_mean(of_base.ap50_95, of_novel.ap50_95))
    return GroupedAp(of_base, of_novel, _mean(list(ap.per_class.values())), harmonic)


def harmonic_mean(base: float | None, novel: float | None) -> float | None:
    """2BN / (B + N): near the worse of the two; 0 when both are 0, None when one is missing."""
    if base is None or novel is None:
        return None
    return 2 * base * novel / (base + novel) if base + novel > 0 else 0.0


def forgetting(teacher: GroupedAp | ApResult, student: GroupedAp | ApResult, base: Collection[str]) -> Forgetting:
    """What the student lost of what the teacher knew about the classes in `base`.

    Of `Groups` their own base is taken. Raises `ValueError` when the two were measured on different numbers of base
    classes: means over other classes do not say what was forgotten.
    """
    before, after = _base_of(teacher, base), _base_of(student, base)
    if before.n_classes and after.n_classes and before.n_classes != after.n_classes:
        raise ValueError(
            f"teacher measured on {before.n_classes} base classes, student on {after.n_classes}: "
            "evaluate both on the same split and classes"
        )
    return Forgetting(
        _points(before.ap50, after.ap50),
        _points(before.ap50_95, after.ap50_95),
        _per_cent(before.ap50, after.ap50),
        _per_cent(before.ap50_95, after.ap50_95),
    )


def _mean(classes: list[ClassAp]) -> GroupAp:
    known = [(one.ap50, one.ap50_95) for one in classes if one.ap50 is not None and one.ap50_95 is not None]
    n_gt = sum(one.n_gt for one in classes)
    if not known:
        return GroupAp(None, None, n_gt, 0)
    ap50, ap50_95 = (sum(column) / len(known) for column in zip(*known, strict=True))
    return GroupAp(ap50, ap50_95, n_gt, len(known))


def _base_of(measured: GroupedAp | ApResult, base: Collection[str]) -> GroupAp:
    return measured.base if isinstance(measured, GroupedAp) else group_ap(measured, base).base


def _points(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else 100 * (before - after)


def _per_cent(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None or before == 0 else 100 * after / before
