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
    compared = [by_name[name] for name in baselines if name in by_name]
    return {
        method.name: {group: _difference(runs, method.runs, is_base, group) for group in ("harmonic", "base", "novel")}
        for method in compared
        if len(method.runs) == len(runs)
    }


def _difference(
    runs_a: Sequence[MeasuredRun], runs_b: Sequence[MeasuredRun], is_base: Sequence[bool], group: str
) -> Interval:
    if len(runs_a) == 1:
        return image_bootstrap(runs_a[0].curves, runs_b[0].curves, is_base, statistic=group)
    pairs = [
        (getattr(a.groups, group).ap50, getattr(b.groups, group).ap50) for a, b in zip(runs_a, runs_b, strict=True)
    ]
    return mean_interval([a - b for a, b in pairs if a is not None and b is not None])


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
        differences = ", ".join(f"{group} {_difference_text(interval)}" for group, interval in groups.items())
        lines.append(f"{main} - {name}: {differences}")
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
    confusions = [run.confusion for run in method.runs]
    return [
        method.name,
        *(_interval_text(mean_interval([100 * value for value in method.values(group)])) for group in COLUMNS),
        _mean_text([loss.points_ap50 for loss in losses]),
        _mean_text([loss.kept_ap50 for loss in losses], " %"),
        _mean_text([_per_cent(confusion.novel.shares()["as_other_group"]) for confusion in confusions], " %"),
        _mean_text([_per_cent(confusion.base.shares()["as_other_group"]) for confusion in confusions], " %"),
        _interval_text(mean_interval([100 * value for value in method.values("harmonic", "ap50_95")])),
    ]


def _forgetting(teacher: Method, run: MeasuredRun) -> Forgetting:
    return forgetting(teacher.runs[0].groups, run.groups, ())


def _per_cent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _interval_text(interval: Interval) -> str:
    if interval.mean is None:
        return "-"
    half = "" if interval.high is None else f" +- {interval.high - interval.mean:.1f}"
    return f"{interval.mean:.1f}{half}"


def _mean_text(values: Sequence[float | None], unit: str = "") -> str:
    present = [value for value in values if value is not None]
    return f"{sum(present) / len(present):.1f}{unit}" if present else "-"


def _difference_text(interval: Interval) -> str:
    if interval.mean is None or interval.low is None or interval.high is None:
        return "-"
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
