"""What the data set holds, and what of it cannot be learned."""

from collections.abc import Iterator, Sequence

import numpy as np

from config.mconfig import ModelConfig
from debug.doctor.finding import LOOK, OK, WRONG, Finding
from dl.annotations import Annotation
from dl.check import CheckedData
from dl.report import DataReport
from ops.text import counted, shown

_MANY_NEGATIVES = 0.5  # share of images without objects above which one should know why
_MANY_LOST = 0.02  # share of a split's boxes above which the annotations must have a fault
_FEW = 10  # objects of a class below which nothing much will be learned


def examine_data(data: CheckedData) -> Iterator[Finding]:
    """The table of all splits, which has passed the check of its files; then what looks like a mistake in it."""
    parts = ", ".join(f"{name} {report.images}" for name, report in data.report.splits.items())
    yield Finding(OK, "data", f"every file was read; images: {parts}", (*data.report.rows(), *data.report.notes))
    for remark in data.report.remarks:
        yield Finding(LOOK, "data", remark)
    for name, report in data.report.splits.items():
        if report.lost_share > _MANY_LOST:
            reasons = ", ".join(f"{count} {why}" for why, count in report.dropped.most_common())
            yield Finding(
                WRONG, "boxes", f"{100 * report.lost_share:.1f} % of the boxes of '{name}' cannot be used ({reasons}): "
                "correct the annotations; the files are named above",
            )  # fmt: skip
    yield from _skipped(data.report)
    yield from (Finding(WRONG, "data", sentence) for sentence in data.report.copies)


def examine_labels(mcfg: ModelConfig, annotations: Sequence[Annotation]) -> Iterator[Finding]:
    """`annotations`: what training sees, with the labels it sees."""
    class_list = tuple(mcfg.classList or ())
    labels = np.concatenate([np.zeros(0, dtype=np.int64), *(one.labels for one in annotations)])
    counts = np.bincount(labels, minlength=len(class_list)).tolist()
    seen = mcfg.distilSelectedClasses if mcfg.modelName == "distillation" else None
    wanted = seen or mcfg.trainSelectedClasses or class_list
    none = [name for name, count in zip(class_list, counts, strict=True) if name in wanted and count == 0]
    few = [
        f"{name} ({count})"
        for name, count in zip(class_list, counts, strict=True)
        if name in wanted and 0 < count < _FEW
    ]
    if none:
        yield Finding(
            WRONG, "labels", f"no object of {shown(none)} is trained on: such a class is never found; add images, or "
            "take it out of classList",
        )  # fmt: skip
    if few:
        yield Finding(LOOK, "labels", f"fewer than {_FEW} objects of {shown(few)}: add images of these classes")
    negatives = sum(len(one.labels) == 0 for one in annotations)
    if negatives > _MANY_NEGATIVES * len(annotations):
        yield Finding(
            LOOK, "labels", f"{negatives} of {len(annotations)} images have no object: are their labels missing, or "
            "their classes not in classList? unselectedImages=drop leaves out those with other classes only",
        )  # fmt: skip
    if not none and not few and negatives <= _MANY_NEGATIVES * len(annotations):
        least = min((count, name) for name, count in zip(class_list, counts, strict=True) if name in wanted)
        what = f"{counted(len(labels), 'object')} of {counted(len(wanted), 'class', 'classes')} to train on"
        yield Finding(OK, "labels", f"{what}, {least[0]} of the rarest ({least[1]})")


def _skipped(report: DataReport) -> Iterator[Finding]:
    if report.skipped:
        yield Finding(LOOK, "data", f"{counted(len(report.skipped), 'file')} skipped (badFiles=skip): mend them")
