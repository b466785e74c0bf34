"""A data set that was found: its folders, classes and splits, and who reads one image's annotation."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from config.checks import LONGEST_CLASS_NAME, MOST_CLASSES
from config.errors import UserError
from dl.annotations import Written
from dl.faults import name_fault
from dl.lists import Wanted
from ops.text import shown

FORMATS = {"voc": "Pascal VOC xml", "coco": "COCO json", "yolo": "YOLO labels"}  # in the order in which they win


@runtime_checkable
class Reader(Protocol):
    """Finds one image and what was written about it, whatever the format."""

    def image(self, image_id: str) -> Path:
        """Where the image lies. Raises `DataFault` when that cannot be told."""
        ...

    def written(self, image_id: str, size: tuple[int, int] | None) -> tuple[Path, Written]:
        """The annotation's file and its content in pixels of the upright image.

        `size` is that image's (width, height), None when it cannot be read: then only faults matter. Raises
        `DataFault` that starts with the path.
        """
        ...

    def faults(self) -> list[str]:
        """What is wrong with the annotations and belongs to no image."""
        ...

    def remarks(self) -> list[str]:
        """What is left over, a sentence each: annotations without an image, images without an entry."""
        ...


@dataclass(frozen=True)
class DataSource:
    """Where a data set lies. Splits hold image ids as listed, duplicates too: `dl.check` counts and removes them."""

    image_dir: Path
    annotation_dir: Path
    class_list: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]
    reader: Reader = field(compare=False, repr=False)
    notes: list[str] = field(default_factory=list)  # what was decided for the user, to be said once
    format: str = "voc"
    # Image id -> path below image_dir; empty where an id is a file's stem in image_dir itself.
    files: Mapping[str, str] = field(default_factory=dict)


class Search(NamedTuple):
    """What is known before a layout is looked into: folders, None where the config names none, and its wishes."""

    base: Path | None
    image_dir: Path | None
    annotation_dir: Path | None
    class_list: tuple[str, ...] | None
    wanted: Wanted
    suffix: str
    notes: list[str]


def checked_classes(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The names, stripped. Raises `UserError` for none, too many, an empty or unfit one, or one twice."""
    names = tuple(name.strip() for name in names)
    if not names or not all(names):
        raise UserError(f"{where}: {'an empty class name' if names else 'no class in it'}; give one name per class")
    if len(names) > MOST_CLASSES:
        raise UserError(
            f"{where}: lists {len(names)} classes, and at most {MOST_CLASSES} are trained; is it the right file?"
        )
    if fault := next((fault for name in names if (fault := name_fault(name, LONGEST_CLASS_NAME))), ""):
        raise UserError(f"{where}: the class {fault}")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise UserError(f"{where}: class {shown(twice)} is listed twice")
    return names
