"""What was found on disk: a `DataSource` with its folders, classes, splits, and a `Reader` for its images."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from config.checks import class_list
from config.errors import UserError
from config.mconfig import ModelConfig
from dl.annotations import RawAnnotation
from dl.files import DataError, walk_files
from dl.formats.pairing import ImageTree, Pairs, pair, usual_label_path
from ops.text import counted, shown

Size = tuple[int, int]  # width, height


class SplitRequest(NamedTuple):
    """What the config says about splits."""

    subset_map: Mapping[str, tuple[str, ...] | str]
    names: tuple[str, ...]  # of the training, validation and test split
    seed: int

    @classmethod
    def from_config(cls, mcfg: ModelConfig) -> "SplitRequest":
        names = (mcfg.trainSplitName, mcfg.validationSplitName, mcfg.testSplitName)
        return cls(mcfg.subsetMap, names, mcfg.splitSeed)


class Search(NamedTuple):
    """What is known before the search: folders (None if the config does not set them) and requests of the config."""

    base: Path | None  # dataDir
    image_dir: Path | None
    annotation_dir: Path | None
    class_list: tuple[str, ...] | None  # checked
    split_request: SplitRequest
    suffix: str
    notes: list[str]  # the search appends its decisions here


@runtime_checkable
class Reader(Protocol):
    """Finds images and reads their annotations, for any format."""

    errors: Sequence[str]  # of annotations that belong to no image

    def find_image(self, image_id: str) -> Path:
        """The path of the image. Raises `DataError` if there is none, or several."""
        ...

    def read_annotation(self, image_id: str, size: Size | None) -> tuple[Path, RawAnnotation]:
        """The path of the annotation and its content in pixels of the upright image.

        `size` is (width, height) of that image. It is None if the image is unreadable; then only errors of the
        annotation matter. Raises `DataError` that starts with the path.
        """
        ...

    def warnings(self) -> list[str]:
        """Annotations without an image, and images without an entry; one sentence for each kind."""
        ...


@dataclass(frozen=True)
class DataSource:
    """A data set on disk. Splits hold image ids as listed, also repeated ones: `dl.check` counts and removes those."""

    image_dir: Path
    annotation_dir: Path
    class_list: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]
    reader: Reader = field(compare=False, repr=False)
    notes: list[str] = field(default_factory=list)  # decisions that were made for the user, logged once
    format: str = ""  # its name in the config; `locate` sets it
    # Image id -> path below image_dir; empty if each id is the stem of a file in image_dir itself.
    files: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Format(Protocol):
    """One way to store a data set. A recipe adds its own: `mcfg.annotationFormat = CsvFormat`."""

    @property
    def title(self) -> str:
        """For messages, e.g. "COCO json"."""
        ...

    def is_in(self, folder: Path, /) -> bool:
        """Has the folder a data set of this format?"""
        ...

    def count_images(self, folder: Path, /) -> int:
        """Images of a folder that are annotated in this format. Asked only where a folder has several formats."""
        ...

    def find(self, search: Search, /) -> DataSource:
        """Find images, classes and splits. Raises `UserError` with the absolute paths that were tried."""
        ...


class TreeReader:
    """Base of readers for images in several folders. `files`: image id -> path below the tree's folder."""

    errors: Sequence[str] = ()

    def __init__(self, tree: ImageTree, annotation_dir: Path, files: Mapping[str, str]) -> None:
        self.tree, self.image_dir, self.annotation_dir = tree, tree.folder, annotation_dir
        self.files = files

    def find_image(self, image_id: str) -> Path:
        return self.image_dir / self.files[image_id]


class PairedReader(TreeReader):
    """Base of readers with one annotation file per image; images and annotations are listed once, then paired."""

    suffixes: ClassVar[Container[str]]
    kind: ClassVar[str]  # of file, for messages

    def warnings(self) -> list[str]:
        return unused_annotations_warning(self.unused_annotations(self.pairs), self.kind, self.annotation_dir)

    def find_annotation(self, image_id: str) -> Path | None:
        """The annotation file; None if there is none. Raises `DataError` if several fit."""
        image = self.files[image_id]
        if found := self.pairs.ambiguous.get(image):
            raise DataError(
                f"{self.image_dir / image}: several annotation files fit ({', '.join(found[:3])}); keep one of them"
            )
        path = self.pairs.annotation_of.get(image)
        return None if path is None else self.annotation_dir / path

    def usual_annotation(self, image_id: str, suffix: str) -> Path:
        """Where the annotation of an image usually is."""
        return self.annotation_dir / f"{usual_label_path(self.files[image_id])}{suffix}"

    @cached_property
    def pairs(self) -> Pairs:
        return pair(*self.paths_to_pair())

    def paths_to_pair(self) -> tuple[Iterable[str], Iterable[str]]:
        """Paths of all images and of all annotations that may belong together."""
        return dict.fromkeys([*self.tree.paths, *self.files.values()]), walk_files(self.annotation_dir, self.suffixes)

    def unused_annotations(self, pairs: Pairs) -> list[str]:
        """Annotation files without an image."""
        return pairs.unused


def unused_annotations_warning(paths: Sequence[str], kind: str, folder: Path) -> list[str]:
    """One sentence about annotation files without an image; an empty list if there are none."""
    if not paths:
        return []
    sentence = f"{counted(len(paths), kind)} below {folder} without an image of the same name, so objects are not used"
    return [f"{sentence}: {shown(paths)}; give the image and its annotation the same name"]


def check_class_list(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Strip and check class names. Raises `UserError`: no class, too many, an invalid or empty name, a duplicate."""
    names = tuple(name.strip() for name in names)
    if complaint := class_list(names):
        raise UserError(f"{where}: {complaint}")
    return names
