"""The report of the data check: counts per split as an aligned table, and warnings about likely mistakes."""

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dl.annotations import DROPPED, EMPTY, IN_FIRST_PIXEL, OUTSIDE, SWAPPED
from ops.text import align_columns, counted, shown

_MAX_LISTED = 20
# The classes that labelImg writes at the beginning of every classes.txt.
LABELIMG_CLASSES = (
    "dog", "person", "cat", "tv", "car", "meatballs", "marinara sauce", "tomato soup", "chicken noodle soup",
    "french onion soup", "chicken breast", "ribs", "pulled pork", "hamburger", "cavity",
)  # fmt: skip
_HOW_TO_FIX = {
    SWAPPED: "write the smaller x and y first",
    OUTSIDE: "do these annotations belong to these images, and are the coordinates in pixels of the original image?",
    EMPTY: "draw these boxes again, or remove them",
    IN_FIRST_PIXEL: "the coordinates look like fractions of the image size; multiply them by its width and height",
}


def listed(lines: Sequence[str]) -> list[str]:
    """The lines, indented; at most the first twenty, and then the number of further lines."""
    more = len(lines) - _MAX_LISTED
    return [f"  {line}" for line in lines[:_MAX_LISTED]] + ([f"  and {more} more"] if more > 0 else [])


@dataclass
class SplitReport:
    """Counts of one split. `objects` are those that are used; most other fields count changes and removals."""

    images: int = 0
    objects: int = 0
    per_class: Counter[str] = field(default_factory=Counter)
    without_objects: int = 0  # images that are negatives
    difficult: int = 0
    clipped: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # one of dl.annotations.DROPPED -> boxes
    ignored: Counter[str] = field(default_factory=Counter)  # class outside the class list -> objects
    listed_twice: int = 0  # image names
    copies: int = 0  # images that are equal to another image of the split, byte for byte
    shared_with_other_split: int = 0  # images that are equal to one of a split that must be separate, byte for byte
    multi_frame: int = 0  # images with several frames or pages; only the first is used
    ambiguous_rotation: int = 0
    without_size: int = 0
    without_label_file: int = 0  # images that are negatives
    duplicate_objects: int = 0  # objects with the same class and box as another object of the image
    polygons: int = 0
    skipped: int = 0

    @property
    def dropped_share(self) -> float:
        """The share of boxes of known classes that cannot be used; 0 if there are no boxes."""
        num_dropped = self.dropped.total()
        return num_dropped / (self.objects + num_dropped) if num_dropped else 0.0


@dataclass(frozen=True)
class DataReport:
    """Counts per split, skipped files, warnings and notes."""

    class_list: tuple[str, ...]
    splits: dict[str, SplitReport]
    skipped: tuple[str, ...] = ()  # errors of files skipped by badFiles=skip, each with its file
    warnings: tuple[str, ...] = ()  # unused files and likely mistakes, one sentence each
    notes: tuple[str, ...] = ()  # about image files, one sentence each
    copies: tuple[str, ...] = ()  # the same image in two splits that must be separate, one sentence for each pair

    def table(self) -> str:
        """The rows, a line with "!" for each warning, the skipped files, and the notes.

        `copies` are not part of it, because they are logged as warnings.
        """
        skipped = ["skipped (badFiles=skip):", *listed(self.skipped)] if self.skipped else []
        return "\n".join([*self.rows(), *(f"! {warning}" for warning in self.warnings), *skipped, *self.notes])

    def rows(self) -> list[str]:
        """An aligned table: rows are classes and the kinds of problems that occurred, columns are splits."""
        splits = list(self.splits.values())
        all_ignored = sum((split.ignored for split in splits), Counter())
        problems = [
            ("images without objects (negatives)", [split.without_objects for split in splits]),
            ("  of these without a label file", [split.without_label_file for split in splits]),
            ("duplicate objects, counted once", [split.duplicate_objects for split in splits]),
            ("polygons, used as boxes", [split.polygons for split in splits]),
            ("boxes clipped at the image border", [split.clipped for split in splits]),
            *((f"boxes {why}, dropped", [split.dropped[why] for split in splits]) for why in DROPPED),
            *(
                (f"'{name}' is not in the class list, ignored", [split.ignored[name] for split in splits])
                for name, _ in all_ignored.most_common()
            ),
            ("difficult objects (trained on, not evaluated)", [split.difficult for split in splits]),
            ("image names listed twice", [split.listed_twice for split in splits]),
            ("images identical to another image of the split", [split.copies for split in splits]),
            ("images identical to an image of another split", [split.shared_with_other_split for split in splits]),
            ("images with several frames, only the first is used", [split.multi_frame for split in splits]),
            ("EXIF rotation applied, not confirmed by <size>", [split.ambiguous_rotation for split in splits]),
            ("annotations without <size>", [split.without_size for split in splits]),
            ("images skipped (badFiles=skip)", [split.skipped for split in splits]),
        ]
        rows = [
            ("images", [split.images for split in splits]),
            ("objects", [split.objects for split in splits]),
            *((f"  {name}", [split.per_class[name] for split in splits]) for name in self.class_list),
            *((f"! {label}", values) for label, values in problems if any(values)),
        ]
        return align_columns([["", *self.splits], *([label, *map(str, values)] for label, values in rows)])


class BoxProblems(NamedTuple):
    """Of one annotation: the file to name, its dropped boxes and its duplicate objects."""

    file: str
    dropped: Mapping[str, int]  # reason -> boxes
    duplicates: int


def box_warnings(problems: Collection[BoxProblems], num_valid: int) -> Iterator[str]:
    """Warnings about dropped boxes (one for each reason) and duplicate objects, with file names."""
    total: Counter[str] = sum((Counter(problem.dropped) for problem in problems), Counter())
    for reason, count in total.most_common():
        files = [problem.file for problem in problems if problem.dropped.get(reason)]
        boxes = counted(count, "box", "boxes")
        yield f"{boxes} {reason} in {counted(len(files), 'file')}: {shown(files)}; {_HOW_TO_FIX[reason]}"
    files = [problem.file for problem in problems if problem.duplicates]
    if files:
        objects = counted(sum(problem.duplicates for problem in problems), "duplicate object")
        yield (
            f"{objects} (same class and box) in {counted(len(files), 'file')}, counted once: {shown(files)}; remove "
            "the duplicates"
        )
    if num_dropped := total.total():
        yield f"{100 * num_dropped / (num_dropped + num_valid):.1f} % of all boxes are dropped"


def class_warnings(class_list: Sequence[str], report: SplitReport, split: str, has_numbers: bool) -> Iterator[str]:
    """A warning about classes without an object in the training split, with the likely mistake.

    `has_numbers`: the annotations write classes as numbers, which may be shifted.
    """
    unused = [name for name in class_list if not report.per_class[name]]
    if not unused or not report.objects:
        return
    used = [name for name in class_list if report.per_class[name]]
    text = (
        f"{len(unused)} of {len(class_list)} classes have no object in '{split}' and cannot be learned: {shown(unused)}"
    )
    examples = {name.replace("_", " ") for name in unused} & set(LABELIMG_CLASSES)
    if len(examples) == len(LABELIMG_CLASSES):
        setting = shlex.quote(f"classList={','.join(used)}")
        text += (
            "; fifteen of them are the example classes that labelImg writes first into every classes.txt: leave them "
            f"out with --set {setting} (the numbers in the labels do not change, so keep this classes.txt)"
        )
    elif has_numbers and len(unused) == 1 and len(class_list) > 2 and unused[0] in (class_list[0], class_list[-1]):
        place, start = ("first", 1) if unused[0] == class_list[0] else ("last", 0)
        text += (
            f"; it is the {place} class of the list, and all other classes have objects: are the class numbers of the "
            f"labels shifted by one, as if the list began with {start}?"
        )
    yield text
