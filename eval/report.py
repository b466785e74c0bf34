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

_Row = tuple[str, str, str, str, str]


def ap_table(result: EvalResult) -> str:
    """Aligned plain text, without a newline at the end. A class or group without ground truth shows a dash."""
    classes, summary = _class_rows(result), _summary_rows(result)
    rows = [_HEADINGS, *classes, *summary]
    lines = align_columns(rows if result.groups else [(name, *figures) for name, _, *figures in rows])
    head, body, last = lines[0], lines[1 : 1 + len(classes)], lines[1 + len(classes) :]
    rule = "-" * display_width(head)
    weights = f", weights {result.weights}" if result.weights else ""
    title = f"Average precision on '{result.split}' ({_STYLES[result.ap_style]}){weights}"
    noun = "image" if result.images_expected == 1 else "images"
    images = f"{result.images_evaluated} of {result.images_expected} {noun} evaluated"
    return "\n".join([title, head, rule, *body, rule, *last, *_notes(result), images, *_confusion_lines(result)])


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


def _class_rows(result: EvalResult) -> list[_Row]:
    base = result.base_names or ()
    return [
        (name, "base" if name in base else "novel", str(ap.n_gt), _figure(ap.ap50), _figure(ap.ap50_95))
        for name, ap in result.ap.per_class.items()
    ]


def _summary_rows(result: EvalResult) -> list[_Row]:
    total = sum(ap.n_gt for ap in result.ap.per_class.values())
    overall = ("all classes", "", str(total), _figure(result.map50), _figure(result.map50_95))
    groups = result.groups
    if groups is None:
        return [overall]
    base, novel = (
        (f"{name} classes", "", str(group.n_gt), _figure(group.ap50), _figure(group.ap50_95))
        for name, group in (("base", groups.base), ("novel", groups.novel))
    )
    harmonic = ("harmonic mean", "", "", _figure(groups.harmonic.ap50), _figure(groups.harmonic.ap50_95))
    return [base, novel, overall, harmonic]


def _confusion_lines(result: EvalResult) -> list[str]:
    """As what the objects of each group were found; no line without groups."""
    confusion = result.confusion
    if confusion is None:
        return []
    thresholds = f"score >= {confusion.score_threshold:g}, IoU >= {confusion.min_iou:g}"
    return [
        f"Confusion of the groups (detections with {thresholds}):",
        _counts_line(confusion.novel, "novel", "base"),
        _counts_line(confusion.base, "base", "novel"),
    ]


def _counts_line(counts: ConfusionCounts, group: str, other_group: str) -> str:
    if counts.n_gt == 0:
        return f"  no {group} objects"
    return (
        f"  {counted(counts.n_gt, f'{group} object')}: {counts.as_itself} found with the right class, "
        f"{counts.as_same_group} as another {group} class, {counts.as_other_group} as a {other_group} class, "
        f"{counts.missed} missed"
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
