"""The table a person reads: one row a class, then all of them, then how many images that rests on.

Where classes were learned one group after another, it also says which are base and which novel, how the groups do, and
whether they are mixed up.
"""

from collections.abc import Sequence

from dl.annotations import Annotation
from eval.confusion import ConfusionCounts
from eval.evaluator import EvalResult
from eval.groups import GroupAp
from ops.text import align_columns, display_width

_STYLES = {
    "coco": "COCO's definition",
    "voc07": "VOC 2007, 11 points",
    "ultralytics": "as Ultralytics computes it",
    "assignment": "the assignment's own figure, not average precision",
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
    notes = [*_nothing_to_measure(result), *_chosen_on_it(result)]
    return "\n".join([_title(result), head, rule, *body, rule, *last, *notes, _images(result), *_mixed_up(result)])


def reason_without_ap(split: str, annotations: Sequence[Annotation]) -> str:
    """The reason why no AP can be measured on these images by COCO's rules; empty when at least one object counts."""
    num_objects = sum(len(annotation.labels) for annotation in annotations)
    num_difficult = sum(int(annotation.difficult.sum()) for annotation in annotations)
    if num_objects == 0:
        return f"no image of '{split}' has an object"
    if num_objects == num_difficult:
        return f"no object of '{split}' counts: all {num_objects} are marked difficult (in COCO: iscrowd)"
    return ""


def _nothing_to_measure(result: EvalResult) -> list[str]:
    """A line where there is no AP at all."""
    if result.map50 is not None:
        return []
    reason = reason_without_ap(result.split, result.annotations) or f"no object of '{result.split}' counts"
    return [f"There is nothing to measure: {reason}. The AP is left out (null in metrics.json), it is not 0."]


def _chosen_on_it(result: EvalResult) -> list[str]:
    """A line where the test images are the validation images."""
    if not result.test_is_validation:
        return []
    name = result.split
    return [f"The images of '{name}' are the validation images, which chose the best weights: no independent test."]


def _class_rows(result: EvalResult) -> list[_Row]:
    base = result.base_names or ()
    return [
        (name, "base" if name in base else "novel", str(one.n_gt), _figure(one.ap50), _figure(one.ap50_95))
        for name, one in result.ap.per_class.items()
    ]


def _summary_rows(result: EvalResult) -> list[_Row]:
    total = sum(one.n_gt for one in result.ap.per_class.values())
    overall = ("all classes", "", str(total), _figure(result.map50), _figure(result.map50_95))
    groups = result.groups
    if groups is None:
        return [overall]
    harmonic = ("harmonic mean", "", "", _figure(groups.harmonic.ap50), _figure(groups.harmonic.ap50_95))
    return [_group_row("base classes", groups.base), _group_row("novel classes", groups.novel), overall, harmonic]


def _group_row(name: str, group: GroupAp) -> _Row:
    return name, "", str(group.n_gt), _figure(group.ap50), _figure(group.ap50_95)


def _mixed_up(result: EvalResult) -> list[str]:
    """A line a group on what became of its objects; none without groups."""
    confusion = result.confusion
    if confusion is None:
        return []
    asked = f"a score of {confusion.score_threshold:g} or more and an overlap of {confusion.min_iou:g} or more"
    return [
        f"Mixed up, by detections with {asked}:",
        _fates_line(confusion.novel, "novel", "base"),
        _fates_line(confusion.base, "base", "novel"),
    ]


def _fates_line(fates: ConfusionCounts, group: str, other: str) -> str:
    if fates.n_gt == 0:
        return f"  no {group} objects"
    nouns = (f"{group} object", "itself") if fates.n_gt == 1 else (f"{group} objects", "themselves")
    return (
        f"  of {fates.n_gt} {nouns[0]} {fates.as_itself} found as {nouns[1]}, {fates.as_same_group} as another {group} "
        f"class, {fates.as_other_group} as a {other} class, {fates.missed} missed"
    )


def _title(result: EvalResult) -> str:
    weights = f", weights {result.weights}" if result.weights else ""
    return f"Average precision on '{result.split}' ({_STYLES[result.ap_style]}){weights}"


def _images(result: EvalResult) -> str:
    noun = "image" if result.images_expected == 1 else "images"
    return f"{result.images_evaluated} of {result.images_expected} {noun} evaluated"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
