"""The table of an evaluation as text: one row per class, the means, the number of images.

When classes were learned in groups, it also shows the group of each class, the AP of the groups and their confusion.
"""

from collections.abc import Sequence

from dl.annotations import Annotation
from eval.evaluator import EvalResult
from eval.groups import ConfusionCounts
from ops.text import align_columns, counted, display_width

_STYLES = {
    "coco": "COCO definition",
    "voc07": "VOC 2007, 11 points",
    "ultralytics": "as Ultralytics computes it",
    "assignment": "metric of the assignment, not average precision",
}
_HEADINGS = ("class", "group", "objects", "AP50", "AP50-95")


def ap_table(result: EvalResult) -> str:
    """Aligned plain text, without a newline at the end. A class or group without ground truth shows a dash."""
    base, groups = result.base_names or (), result.groups
    classes = [_row(name, "base" if name in base else "novel", *ap) for name, ap in result.ap.per_class.items()]
    num_objects = sum(ap.n_gt for ap in result.ap.per_class.values())
    summary = [_row("all classes", "", result.map50, result.map50_95, num_objects)]
    if groups is not None:
        by_group = [
            _row(f"{name} classes", "", group.ap50, group.ap50_95, group.n_gt)
            for name, group in (("base", groups.base), ("novel", groups.novel))
        ]
        summary = [*by_group, *summary, _row("harmonic mean", "", *groups.harmonic)]
    rows = [_HEADINGS, *classes, *summary]
    lines = align_columns(rows if groups else [(name, *figures) for name, _, *figures in rows])
    head, body, last = lines[0], lines[1 : 1 + len(classes)], lines[1 + len(classes) :]
    rule = "-" * display_width(head)
    weights = f", weights {result.weights}" if result.weights else ""
    title = f"Average precision on '{result.split}' ({_STYLES[result.ap_style]}){weights}"
    noun = "image" if result.images_expected == 1 else "images"
    lines = [title, head, rule, *body, rule, *last, *_notes(result)]
    lines += [f"{name}: {'-' if value is None else f'{value:.4f}'}" for name, value in result.more_metrics.items()]
    lines.append(f"{result.images_evaluated} of {result.images_expected} {noun} evaluated")
    if (confusion := result.confusion) is not None:
        thresholds = f"score >= {confusion.score_threshold:g}, IoU >= {confusion.min_iou:g}"
        lines.append(f"Confusion of the groups (detections with {thresholds}):")
        lines.append(_counts_line(confusion.novel, "novel", "base"))
        lines.append(_counts_line(confusion.base, "base", "novel"))
    return "\n".join(lines)


def _row(
    name: str, group: str, ap50: float | None, ap50_95: float | None, n_gt: int | None = None
) -> tuple[str, str, str, str, str]:
    ap50_text, ap50_95_text = ("-" if value is None else f"{value:.4f}" for value in (ap50, ap50_95))
    return name, group, "" if n_gt is None else str(n_gt), ap50_text, ap50_95_text


def reason_without_ap(split: str, annotations: Sequence[Annotation]) -> str:
    """Why no AP can be computed on these images by the rules of COCO; empty when at least one object counts."""
    num_objects = sum(len(annotation.labels) for annotation in annotations)
    num_difficult = sum(int(annotation.difficult.sum()) for annotation in annotations)
    if num_objects == 0:
        return f"no image of '{split}' has an object"
    if num_objects == num_difficult:
        return f"no object of '{split}' counts: all {num_objects} are marked difficult (in COCO: iscrowd)"
    return ""


def _notes(result: EvalResult) -> list[str]:
    """What a reader must know about the numbers: there is no AP, or the test is not independent."""
    name, notes = result.split, []
    if result.map50 is None:
        reason = reason_without_ap(name, result.annotations) or f"no object of '{name}' counts"
        notes.append(f"AP cannot be computed: {reason}. It is missing (null in metrics.json), not 0.")
    if result.test_is_validation:
        notes.append(f"Not an independent test: the best weights were chosen on the images of '{name}'.")
    return notes


def _counts_line(counts: ConfusionCounts, group: str, other_group: str) -> str:
    if counts.n_gt == 0:
        return f"  no {group} objects"
    return (
        f"  {counted(counts.n_gt, f'{group} object')}: {counts.as_itself} found with the right class, "
        f"{counts.as_same_group} as another {group} class, {counts.as_other_group} as a {other_group} class, "
        f"{counts.missed} missed"
    )
