"""What a data set holds and what was amended, as one aligned table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from dl.annotations import DROPPED
from ops.text import align_columns

_MOST_PRINTED = 20


def listed(lines: Sequence[str]) -> list[str]:
    """The lines, indented; of many the first twenty and how many more there are."""
    more = len(lines) - _MOST_PRINTED
    return [f"  {line}" for line in lines[:_MOST_PRINTED]] + ([f"  and {more} more"] if more > 0 else [])


@dataclass
class SplitReport:
    """Counts of one split. `objects` are those that are kept; the rest say what was amended or left out."""

    images: int = 0
    objects: int = 0
    per_class: Counter[str] = field(default_factory=Counter)
    without_objects: int = 0  # images that are negatives
    difficult: int = 0
    clipped: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # why, one of dl.annotations.DROPPED -> boxes
    ignored: Counter[str] = field(default_factory=Counter)  # class outside the list -> objects
    duplicates: int = 0
    copies: int = 0  # images that equal another one of the split, byte for byte
    shared: int = 0  # images that equal one of a split that must be apart, byte for byte
    framed: int = 0  # images of several frames or pages, of which the first is used
    ambiguous_turn: int = 0
    without_size: int = 0
    unlabelled: int = 0  # images without a label file, which are negatives
    repeats: int = 0  # objects of a class and box that another object of the image has, too
    outlines: int = 0  # polygons
    skipped: int = 0

    @property
    def lost_share(self) -> float:
        """Of the boxes of known classes, the share that cannot be used; 0 where there are none."""
        lost = self.dropped.total()
        return lost / (self.objects + lost) if lost else 0.0


@dataclass(frozen=True)
class DataReport:
    """Counts per split, the files that were skipped, and what else must be known about the images."""

    class_list: tuple[str, ...]
    splits: dict[str, SplitReport]
    skipped: tuple[str, ...] = ()  # faults passed over because of badFiles=skip, each naming its file
    remarks: tuple[str, ...] = ()  # sentences about the whole: files that belong to nothing, what looks like a mistake
    notes: tuple[str, ...] = ()  # about image files, a sentence each
    copies: tuple[str, ...] = ()  # the same image in two splits that must be apart, a sentence for each pair

    def table(self) -> str:
        """The rows, a line for each remark, which begins with "!", then what was skipped, and the notes.

        The sentences of `copies` are warnings of their own.
        """
        skipped = ["skipped (badFiles=skip):", *listed(self.skipped)] if self.skipped else []
        return "\n".join([*self.rows(), *(f"! {remark}" for remark in self.remarks), *skipped, *self.notes])

    def rows(self) -> list[str]:
        """Classes and warnings down, splits across, aligned; no row for a warning that did not occur."""
        splits = self.splits.values()
        rows = [
            ("images", [split.images for split in splits]),
            ("objects", [split.objects for split in splits]),
            *((f"  {name}", [split.per_class[name] for split in splits]) for name in self.class_list),
            *((f"! {label}", values) for label, values in self._warnings()),
        ]
        return align_columns([["", *self.splits], *([label, *map(str, values)] for label, values in rows)])

    def _warnings(self) -> list[tuple[str, list[int]]]:
        splits = list(self.splits.values())
        rows = [
            ("images without objects (negatives)", [split.without_objects for split in splits]),
            ("  of them without a label file", [split.unlabelled for split in splits]),
            ("objects written twice, counted once", [split.repeats for split in splits]),
            ("polygons, of which the box is used", [split.outlines for split in splits]),
            ("boxes clipped at the image's border", [split.clipped for split in splits]),
            *((f"boxes {why}, dropped", [split.dropped[why] for split in splits]) for why in DROPPED),
            *self._ignored_rows(splits),
            ("difficult objects (trained on, not evaluated)", [split.difficult for split in splits]),
            ("names listed twice", [split.duplicates for split in splits]),
            ("images identical to another one of the split", [split.copies for split in splits]),
            ("images identical to one of another split", [split.shared for split in splits]),
            ("images of several frames, the first is used", [split.framed for split in splits]),
            ("EXIF turn that <size> cannot confirm (turned)", [split.ambiguous_turn for split in splits]),
            ("annotations without <size>", [split.without_size for split in splits]),
            ("images skipped (badFiles=skip)", [split.skipped for split in splits]),
        ]
        return [(label, values) for label, values in rows if any(values)]

    @staticmethod
    def _ignored_rows(splits: list[SplitReport]) -> list[tuple[str, list[int]]]:
        total = sum((split.ignored for split in splits), Counter())
        return [
            (f"'{name}' is not in the class list, ignored", [split.ignored[name] for split in splits])
            for name, _ in total.most_common()
        ]
