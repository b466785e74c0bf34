"""Several methods of learning new classes compared: AP of base and novel classes, forgetting, confidence intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dl.annotations import Annotation
from eval.bootstrap import Curves, Interval, class_curves, image_bootstrap, mean_interval
from eval.groups import Forgetting, GroupConfusion, GroupedAp, forgetting, group_ap, group_confusion
from eval.metrics import coco_ap
from eval.predictor import Detections
from ops.text import align_columns

COLUMNS = ("base", "novel", "all", "harmonic")


class MeasuredRun(NamedTuple):
    """Results of one trained network on the test split."""

    groups: GroupedAp
    confusion: GroupConfusion
    curves: Curves


@dataclass(frozen=True)
class Method:
    """One method of learning new classes, with one run for each few-shot split."""

    name: str
    description: str  # in a few words
    runs: tuple[MeasuredRun, ...]

    def values(self, group: str, metric: str = "ap50") -> list[float]:
        """The metric of a group, for every run that has it."""
        values = (getattr(getattr(run.groups, group), metric) for run in self.runs)
        return [value for value in values if value is not None]


def measure_run(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    base: Sequence[str],
    score_threshold: float,
) -> MeasuredRun:
    """AP of COCO by groups, the confusion of the groups (scores from `score_threshold`), and curves for intervals."""
    return MeasuredRun(
        group_ap(coco_ap(annotations, detections, class_names), base),
        group_confusion(annotations, detections, [name in base for name in class_names], score_threshold),
        class_curves(annotations, detections, class_names),
    )


def compare_methods(
    methods: Sequence[Method], main: str, baselines: Sequence[str], is_base: Sequence[bool]
) -> dict[str, Any]:
    """The difference in AP50 between method `main` and each baseline with as many runs, with its 95 % interval.

    With several splits: Student's t over the differences of each split. With one split: a bootstrap over the test
    images. Names without a method are ignored.
    """
    by_name = {method.name: method for method in methods}
    if main not in by_name:
        return {}
    runs = by_name[main].runs
    compared = [by_name[name] for name in baselines if name in by_name and len(by_name[name].runs) == len(runs)]

    def difference(baseline: Method, group: str) -> Interval:
        if len(runs) == 1:
            return image_bootstrap(runs[0].curves, baseline.runs[0].curves, is_base, statistic=group)
        pairs = [
            (getattr(ours.groups, group).ap50, getattr(theirs.groups, group).ap50)
            for ours, theirs in zip(runs, baseline.runs, strict=True)
        ]
        return mean_interval([a - b for a, b in pairs if a is not None and b is not None])

    groups = ("harmonic", "base", "novel")
    return {method.name: {group: difference(method, group) for group in groups} for method in compared}


def interval_kind(methods: Sequence[Method], main: str) -> str:
    """How the intervals of `compare_methods` were computed."""
    num_splits = next(len(method.runs) for method in methods if method.name == main)
    if num_splits == 1:
        return (
            "bootstrap over the test images of one few-shot split; results on other splits can differ by more: "
            "add --draws 5"
        )
    return f"Student's t over {num_splits} few-shot splits"


def increment_table(teacher: Method, methods: Sequence[Method], compared: Mapping[str, Any], main: str) -> str:
    """AP50 in per cent, one row per method; for several splits the mean and half the width of its 95 % interval."""
    rows = [["", *COLUMNS, "lost", "kept", "novel taken for base", "base for novel", "harmonic AP50-95"]]
    rows += [_row(method, teacher) for method in (teacher, *methods)]
    lines = align_columns(rows)
    for name, groups in compared.items():
        texts = []
        for group, (mean, low, high) in groups.items():
            if mean is None or low is None or high is None:
                texts.append(f"{group} -")
            else:
                texts.append(f"{group} {100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
        lines.append(f"{main} - {name}: {', '.join(texts)}")
    lines += [f"95 % intervals of differences: {interval_kind(methods, main)}"] if compared else []
    lines += [f"{method.name}: {method.description}" for method in (teacher, *methods)]
    return "\n".join(lines)


def increments_dict(
    teacher: Method, methods: Sequence[Method], compared: Mapping[str, Any], main: str
) -> dict[str, Any]:
    """The same results as plain values, run by run. Means and 95 % intervals are of AP50."""
    return {
        "ways": {
            method.name: {
                "what": method.description,
                "means": {group: mean_interval(method.values(group))._asdict() for group in COLUMNS},
                "runs": [
                    {
                        "groups": run.groups.to_dict(),
                        "forgetting": _forgetting(teacher, run)._asdict(),
                        "confusion": run.confusion.to_dict(),
                    }
                    for run in method.runs
                ],
            }
            for method in (teacher, *methods)
        },
        "differences": {
            name: {group: interval._asdict() for group, interval in groups.items()} for name, groups in compared.items()
        },
        "intervals": interval_kind(methods, main) if compared else None,
    }


def base_novel_pairs(methods: Sequence[Method]) -> dict[str, list[tuple[float, float]]]:
    """Base and novel AP50 of every run that has both, for `eval.plots.plot_base_novel`."""
    pairs = {method.name: [(run.groups.base.ap50, run.groups.novel.ap50) for run in method.runs] for method in methods}
    return {
        name: [(base, novel) for base, novel in of_method if base is not None and novel is not None]
        for name, of_method in pairs.items()
    }


def _row(method: Method, teacher: Method) -> list[str]:
    losses = [_forgetting(teacher, run) for run in method.runs]
    novel, base = (
        [getattr(run.confusion, group).shares()["as_other_group"] for run in method.runs] for group in ("novel", "base")
    )
    return [
        method.name,
        *(_interval_text(method, group) for group in COLUMNS),
        _mean_text([loss.points_ap50 for loss in losses]),
        _mean_text([loss.kept_ap50 for loss in losses], " %"),
        *(_mean_text([None if share is None else 100 * share for share in shares], " %") for shares in (novel, base)),
        _interval_text(method, "harmonic", "ap50_95"),
    ]


def _forgetting(teacher: Method, run: MeasuredRun) -> Forgetting:
    return forgetting(teacher.runs[0].groups.base, run.groups.base)


def _interval_text(method: Method, group: str, metric: str = "ap50") -> str:
    """The mean in per cent and half the width of its 95 % interval."""
    mean, _, high = mean_interval([100 * value for value in method.values(group, metric)])
    if mean is None:
        return "-"
    return f"{mean:.1f}" if high is None else f"{mean:.1f} +- {high - mean:.1f}"


def _mean_text(values: Sequence[float | None], unit: str = "") -> str:
    present = [value for value in values if value is not None]
    return f"{sum(present) / len(present):.1f}{unit}" if present else "-"
