"""The table a person reads: one row a class, then all of them, then how many images that rests on."""

from eval.evaluator import EvalResult
from ops.text import align_columns, display_width

_STYLES = {
    "coco": "COCO's definition",
    "voc07": "VOC 2007, 11 points",
    "ultralytics": "as Ultralytics computes it",
    "assignment": "the assignment's own figure, not average precision",
}
_HEADINGS = ("class", "objects", "AP50", "AP50-95")


def ap_table(result: EvalResult) -> str:
    """Aligned plain text, without a newline at the end. A class without ground truth shows a dash."""
    rows = [(name, str(one.n_gt), _figure(one.ap50), _figure(one.ap50_95)) for name, one in result.ap.per_class.items()]
    total = sum(one.n_gt for one in result.ap.per_class.values())
    overall = ("all classes", str(total), _figure(result.map50), _figure(result.map50_95))
    head, *body, last = align_columns([_HEADINGS, *rows, overall])
    rule = "-" * display_width(head)
    return "\n".join([_title(result), head, rule, *body, rule, last, _images(result)])


def _title(result: EvalResult) -> str:
    weights = f", weights {result.weights}" if result.weights else ""
    return f"Average precision on '{result.split}' ({_STYLES[result.ap_style]}){weights}"


def _images(result: EvalResult) -> str:
    noun = "image" if result.images_expected == 1 else "images"
    return f"{result.images_evaluated} of {result.images_expected} {noun} evaluated"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
