"""What looks like a mistake in a data set although each of its files can be read: a sentence each, with file names."""

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from dl.annotations import EMPTY, IN_FIRST_PIXEL, OUTSIDE, SWAPPED
from dl.report import SplitReport
from ops.text import counted, shown

# What labelImg writes at the beginning of every classes.txt.
LABELIMG_CLASSES = (
    "dog", "person", "cat", "tv", "car", "meatballs", "marinara sauce", "tomato soup", "chicken noodle soup",
    "french onion soup", "chicken breast", "ribs", "pulled pork", "hamburger", "cavity",
)  # fmt: skip

_WAYS_OUT = {
    SWAPPED: "write the smaller x and y first",
    OUTSIDE: "do these annotations belong to these images, and are the coordinates pixels of the image as it is?",
    EMPTY: "draw them again, or remove them",
    IN_FIRST_PIXEL: "such coordinates are fractions of the image's size; multiply them by its width and height",
}


class BoxFaults(NamedTuple):
    """Of one annotation: the file to name, and the boxes that were dropped or written twice."""

    file: str
    dropped: Mapping[str, int]  # why -> boxes
    repeats: int


def about_boxes(faults: Collection[BoxFaults], num_kept: int) -> Iterator[str]:
    """Files with boxes that were dropped, for each reason, and files with objects that are written twice."""
    total: Counter[str] = sum((Counter(fault.dropped) for fault in faults), Counter())
    for why, count in total.most_common():
        files = [fault.file for fault in faults if fault.dropped.get(why)]
        boxes = counted(count, "box", "boxes")
        yield f"{boxes} {why} in {counted(len(files), 'file')}: {shown(files)}; {_WAYS_OUT[why]}"
    twice = [fault.file for fault in faults if fault.repeats]
    if twice:
        objects = counted(sum(fault.repeats for fault in faults), "object")
        files = counted(len(twice), "file")
        yield f"{objects} written twice (same class and box) in {files}, counted once: {shown(twice)}; remove copies"
    if lost := total.total():
        yield f"{100 * lost / (lost + num_kept):.1f} % of all boxes are lost"


def about_classes(class_list: Sequence[str], report: SplitReport, split: str, has_numbers: bool) -> Iterator[str]:
    """Classes that the training split has no object of, with the mistake that they point to.

    `has_numbers`: the annotations name classes by numbers, which may be shifted.
    """
    none = [name for name in class_list if not report.per_class[name]]
    if not none or not report.objects:
        return
    used = [name for name in class_list if report.per_class[name]]
    text = f"{len(none)} of {len(class_list)} classes have no object in '{split}' and so are never found: {shown(none)}"
    examples = {name.replace("_", " ") for name in none} & set(LABELIMG_CLASSES)
    if len(examples) == len(LABELIMG_CLASSES):
        setting = shlex.quote(f"classList={','.join(used)}")
        text += (
            "; fifteen of them are the examples that labelImg puts first into every classes.txt: leave them out with "
            f"--set {setting} (the numbers in the labels stay as they are, so keep this classes.txt)"
        )
    elif has_numbers and len(none) == 1 and len(class_list) > 2 and none[0] in (class_list[0], class_list[-1]):
        place, start = ("first", 1) if none[0] == class_list[0] else ("last", 0)
        text += (
            f"; it is the {place} of the list, and all others have objects: are the class numbers of the labels "
            f"shifted by one, as if the list began with {start}?"
        )
    yield text
