"""Several ways to learn new classes, side by side: base and novel classes, what was forgotten, and how sure that is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dl.annotations import Annotation
from eval.bootstrap import Curves, Interval, class_curves, image_bootstrap, mean_interval
from eval.confusion import GroupConfusion, group_confusion
from eval.groups import Forgetting, GroupedAp, forgetting, group_ap
from eval.metrics import coco_ap
from eval.predictor import Detections
from ops.text import align_columns

COLUMNS = ("base", "novel", "all", "harmonic")


class MeasuredRun(NamedTuple):
    """One trained network on the test split."""

    groups: GroupedAp
    confusion: GroupConfusion
    curves: Curves


@dataclass(frozen=True)
class Method:
    """One way to learn: its runs, one a draw of the small split."""

    name: str
    description: str  # in a few words
    runs: tuple[MeasuredRun, ...]

    def values(self, group: str, figure: str = "ap50") -> list[float]:
        """The figure of every run that has one."""
        found = (getattr(getattr(run.groups, group), figure) for run in self.runs)
        return [value for value in found if value is not None]


def measure_run(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    base: Sequence[str],
    score_threshold: float,
) -> MeasuredRun:
    """COCO's AP by groups, which group is taken for which (above `score_threshold`), and what intervals need."""
    return MeasuredRun(
        group_ap(coco_ap(annotations, detections, class_names), base),
        group_confusion(annotations, detections, [name in base for name in class_names], score_threshold),
        class_curves(annotations, detections, class_names),
    )


def compare_methods(
    ways: Sequence[Method], ours: str, others: Sequence[str], is_base: Sequence[bool]
) -> dict[str, Any]:
    """How much higher `ours` is than each of the others with as many runs, AP50, with its 95 % interval.

    Several splits: Student's t over the differences, split by split. One split: a bootstrap over the test images.
    """
    by_name = {way.name: way for way in ways}
    if ours not in by_name:
        return {}
    pairs = [by_name[name] for name in others if name in by_name]
    return {
        way.name: {
            group: _compared(by_name[ours].runs, way.runs, is_base, group) for group in ("harmonic", "base", "novel")
        }
        for way in pairs
        if len(way.runs) == len(by_name[ours].runs)
    }


def _compared(
    runs_a: Sequence[MeasuredRun], runs_b: Sequence[MeasuredRun], is_base: Sequence[bool], group: str
) -> Interval:
    if len(runs_a) == 1:
        return image_bootstrap(runs_a[0].curves, runs_b[0].curves, is_base, statistic=group)
    pairs = [
        (getattr(a.groups, group).ap50, getattr(b.groups, group).ap50) for a, b in zip(runs_a, runs_b, strict=True)
    ]
    return mean_interval([a - b for a, b in pairs if a is not None and b is not None])


def interval_kind(ways: Sequence[Method], ours: str) -> str:
    """What the intervals of `comparison` are about."""
    splits = next(len(way.runs) for way in ways if way.name == ours)
    if splits == 1:
        return "bootstrap over the test images of one small split; other splits may differ by more: give --draws 5"
    return f"Student's t over {splits} small splits"


def increment_table(teacher: Method, ways: Sequence[Method], compared: Mapping[str, Any], ours: str) -> str:
    """AP50 in per cent, a row each; a mean of several draws with half the width of its 95 % interval."""
    rows = [["", *COLUMNS, "lost", "kept", "novel taken for base", "base for novel", "harmonic AP50-95"]]
    rows += [_row(way, teacher) for way in (teacher, *ways)]
    lines = align_columns(rows)
    for name, groups in compared.items():
        figures = ", ".join(f"{group} {_difference(interval)}" for group, interval in groups.items())
        lines.append(f"{ours} - {name}: {figures}")
    lines += [f"95 % intervals of differences: {interval_kind(ways, ours)}"] if compared else []
    lines += [f"{way.name}: {way.description}" for way in (teacher, *ways)]
    return "\n".join(lines)


def increments_dict(teacher: Method, ways: Sequence[Method], compared: Mapping[str, Any], ours: str) -> dict[str, Any]:
    """The same as plain values, run by run; means and 95 % intervals are of AP50."""
    return {
        "ways": {
            way.name: {
                "what": way.description,
                "means": {group: mean_interval(way.values(group))._asdict() for group in COLUMNS},
                "runs": [
                    {
                        "groups": run.groups.to_dict(),
                        "forgetting": _lost(teacher, run)._asdict(),
                        "confusion": run.confusion.to_dict(),
                    }
                    for run in way.runs
                ],
            }
            for way in (teacher, *ways)
        },
        "differences": {
            name: {group: interval._asdict() for group, interval in groups.items()} for name, groups in compared.items()
        },
        "intervals": interval_kind(ways, ours) if compared else None,
    }


def base_novel_pairs(ways: Sequence[Method]) -> dict[str, list[tuple[float, float]]]:
    """Base and novel AP50 of every run that has both, for `eval.plots.plot_base_novel`."""
    pairs = {way.name: [(run.groups.base.ap50, run.groups.novel.ap50) for run in way.runs] for way in ways}
    return {
        name: [(base, novel) for base, novel in of_way if base is not None and novel is not None]
        for name, of_way in pairs.items()
    }


def _row(way: Method, teacher: Method) -> list[str]:
    lost = [_lost(teacher, run) for run in way.runs]
    return [
        way.name,
        *(_figure(mean_interval([100 * value for value in way.values(group)])) for group in COLUMNS),
        _mean([one.points_ap50 for one in lost]),
        _mean([one.kept_ap50 for one in lost], " %"),
        _mean([_per_cent(run.confusion.novel.shares()["as_other_group"]) for run in way.runs], " %"),
        _mean([_per_cent(run.confusion.base.shares()["as_other_group"]) for run in way.runs], " %"),
        _figure(mean_interval([100 * value for value in way.values("harmonic", "ap50_95")])),
    ]


def _lost(teacher: Method, run: MeasuredRun) -> Forgetting:
    return forgetting(teacher.runs[0].groups, run.groups, ())


def _per_cent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _figure(interval: Interval) -> str:
    if interval.mean is None:
        return "-"
    half = "" if interval.high is None else f" +- {interval.high - interval.mean:.1f}"
    return f"{interval.mean:.1f}{half}"


def _mean(values: Sequence[float | None], unit: str = "") -> str:
    present = [value for value in values if value is not None]
    return f"{sum(present) / len(present):.1f}{unit}" if present else "-"


def _difference(interval: Interval) -> str:
    if interval.mean is None or interval.low is None or interval.high is None:
        return "-"
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
