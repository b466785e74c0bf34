"""The table a person reads: one row a class, then all of them, then how many images that rests on."""

import unicodedata

from eval.evaluator import EvalResult

_STYLES = {
    "coco": "COCO's definition",
    "voc07": "VOC 2007, 11 points",
    "assignment": "the assignment's own figure, not average precision",
}
_HEADINGS = ("class", "objects", "AP50", "AP50-95")


def ap_table(result: EvalResult) -> str:
    """Aligned plain text, without a newline at the end. A class without ground truth shows a dash."""
    rows = [(name, str(one.n_gt), _figure(one.ap50), _figure(one.ap50_95)) for name, one in result.ap.per_class.items()]
    total = sum(one.n_gt for one in result.ap.per_class.values())
    overall = ("all classes", str(total), _figure(result.map50), _figure(result.map50_95))
    widths = [max(_width(row[column]) for row in [_HEADINGS, *rows, overall]) for column in range(len(_HEADINGS))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [_line(_HEADINGS, widths), rule, *(_line(row, widths) for row in rows), rule, _line(overall, widths)]
    return "\n".join([_title(result), *lines, _images(result)])


def _title(result: EvalResult) -> str:
    weights = f", weights {result.weights}" if result.weights else ""
    return f"Average precision on '{result.split}' ({_STYLES[result.ap_style]}){weights}"


def _images(result: EvalResult) -> str:
    noun = "image" if result.images_expected == 1 else "images"
    return f"{result.images_evaluated} of {result.images_expected} {noun} evaluated"


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    name = cells[0] + " " * (widths[0] - _width(cells[0]))
    return "  ".join([name, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _width(text: str) -> int:
    """Columns on a terminal: Chinese and other wide characters take two, combining ones none."""
    wide = sum(1 for char in text if unicodedata.east_asian_width(char) in "WF")
    return len(text) + wide - sum(1 for char in text if unicodedata.combining(char))
