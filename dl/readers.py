"""From an image id to the image's file and what was written about it, for each format (`dl.source.Reader`)."""

import glob
import os
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from dl.annotations import Written, read_voc
from dl.coco import CocoFile
from dl.faults import DataFault
from dl.files import IMAGE_SUFFIXES, XML_SUFFIXES, index_by_stem, walk_files
from dl.pairing import Pairs, pair, usual_place
from dl.tree import LABEL_FOLDERS, ImageTree
from dl.yolo import LABEL_SUFFIXES, looks_like_labels, read_yolo
from ops.text import counted, shown

Size = tuple[int, int]  # width, height

_NO_XML = "no such annotation (an image without objects has an xml without <object>)"


class VocFolder:
    """Images in one folder, an xml of the same stem in another; both are listed once."""

    def __init__(self, image_dir: Path, annotation_dir: Path, suffix: str) -> None:
        self.image_dir, self.annotation_dir = image_dir, annotation_dir
        self.images = index_by_stem(image_dir, IMAGE_SUFFIXES)
        self.annotations = index_by_stem(annotation_dir, XML_SUFFIXES)
        waiting = {stem.lower(): stem for stem in self.images if stem not in self.annotations}
        for stem in [stem for stem in self.annotations if stem not in self.images and stem.lower() in waiting]:
            self.annotations[waiting[stem.lower()]] = self.annotations.pop(stem)  # img_1.xml of IMG_1.JPG
        self.suffix = suffix  # wins when one stem has several image files

    @property
    def ids(self) -> Collection[str]:
        """Stems of images and of xml files."""
        return self.images.keys() | self.annotations.keys()

    def image(self, image_id: str) -> Path:
        paths = self.images.get(image_id, [])
        if not paths:
            others = sorted(path.name for path in self.image_dir.glob(f"{glob.escape(image_id)}.*"))
            hint = f"; {', '.join(others)} is no image that can be read" if others else ", nor with another suffix"
            raise DataFault(f"{self.image_dir / image_id}{self.suffix}: no such image{hint}")
        if len(paths) > 1:
            paths = [path for path in paths if path.suffix.lower() == self.suffix.lower()] or paths
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise DataFault(f"{self.image_dir / image_id}: several images of that name ({names}); set suffix")
        return paths[0]

    def written(self, image_id: str, size: Size | None) -> tuple[Path, Written]:
        path = self._annotation(image_id)
        return path, read_voc(path)

    def faults(self) -> list[str]:
        return []

    def remarks(self) -> list[str]:
        unused = [path.name for stem, paths in self.annotations.items() if stem not in self.images for path in paths]
        return [_belonging_to_none(unused, "xml file", self.annotation_dir)] if unused else []

    def _annotation(self, image_id: str) -> Path:
        paths = self.annotations.get(image_id)
        if not paths:
            raise DataFault(f"{self.annotation_dir / image_id}.xml: {_NO_XML}")
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise DataFault(f"{self.annotation_dir / image_id}: several annotations of that name ({names})")
        return paths[0]


class _Files:
    """Images by their path below the folder of `tree`, which are those on disk."""

    def __init__(self, tree: ImageTree, annotation_dir: Path, files: Mapping[str, str]) -> None:
        self.tree, self.image_dir, self.annotation_dir = tree, tree.folder, annotation_dir
        self.files = files

    def image(self, image_id: str) -> Path:
        return self.image_dir / self.files[image_id]

    def faults(self) -> list[str]:
        return []


class _Pairs(_Files):
    """An annotation file for each image, found by its path below `annotation_dir`; both folders are listed once."""

    suffixes: ClassVar[Container[str]]
    kind: ClassVar[str]

    def _annotation(self, image_id: str) -> Path | None:
        """The annotation's file, None when there is none. Raises `DataFault` when several fit."""
        image = self.files[image_id]
        if found := self._pairs.ambiguous.get(image):
            raise DataFault(f"{self.image_dir / image}: several annotations fit it ({', '.join(found[:3])}); leave one")
        path = self._pairs.annotation_of.get(image)
        return None if path is None else self.annotation_dir / path

    def _usual(self, image_id: str, suffix: str) -> Path:
        return self.annotation_dir / f"{usual_place(self.files[image_id])}{suffix}"

    def remarks(self) -> list[str]:
        unused = self._unused(self._pairs)
        return [_belonging_to_none(unused, self.kind, self.annotation_dir)] if unused else []

    def _unused(self, pairs: Pairs) -> list[str]:
        return pairs.unused

    def _unpaired(self) -> tuple[Iterable[str], Iterable[str]]:
        """Paths of images and of annotations that may belong together."""
        images = dict.fromkeys([*self.tree.paths, *self.files.values()])
        return images, walk_files(self.annotation_dir, self.suffixes)

    @cached_property
    def _pairs(self) -> Pairs:
        return pair(*self._unpaired())


class VocTree(_Pairs):
    """An xml for each image, beside it or at the same place in another folder."""

    suffixes, kind = XML_SUFFIXES, "xml file"

    def written(self, image_id: str, size: Size | None) -> tuple[Path, Written]:
        path = self._annotation(image_id)
        if path is None:
            path = (self.annotation_dir / self.files[image_id]).with_suffix(".xml")
            raise DataFault(f"{path}: {_NO_XML}")
        return path, read_voc(path)


class YoloTree(_Pairs):
    """A label file for each image, in a folder `labels` where the image lies in `images`, or beside the image."""

    suffixes, kind = LABEL_SUFFIXES, "label file"

    def __init__(
        self,
        tree: ImageTree,
        annotation_dir: Path,
        files: Mapping[str, str],
        names: Mapping[int, str],
        has_keypoints: bool = False,
        is_whole: bool = True,
    ) -> None:
        """`is_whole`: all below the tree's folder belongs to the data set; else only folders of its images do."""
        super().__init__(tree, annotation_dir, files)
        self.names, self.has_keypoints, self.is_whole = names, has_keypoints, is_whole

    def written(self, image_id: str, size: Size | None) -> tuple[Path, Written]:
        path = self._annotation(image_id)
        if path is None:
            beside = self.image(image_id).with_suffix(".txt")  # as labelImg and darknet save them
            path = beside if os.path.exists(beside) else self._usual(image_id, ".txt")
        return path, read_yolo(path, self.names, size or (1, 1), self.has_keypoints)

    def _unpaired(self) -> tuple[Iterable[str], Iterable[str]]:
        if self.is_whole:
            return super()._unpaired()
        images = list(self.files.values())
        folders = sorted({os.path.dirname(path) for image in images for path in (image, usual_place(image))})
        places = [(folder, self.annotation_dir / folder) for folder in folders]
        found = [(folder, index_by_stem(place, self.suffixes)) for folder, place in places if place.is_dir()]
        labels = [
            os.path.join(folder, path.name) for folder, index in found for paths in index.values() for path in paths
        ]
        return images, labels

    def _unused(self, pairs: Pairs) -> list[str]:
        """Only what is a label for sure: other texts lie in a data set, too, such as lists of splits and a README."""
        homes = {os.path.dirname(path) for path in pairs.annotation_of.values()}
        near = [path for path in pairs.unused if os.path.dirname(path) in homes or _is_below_labels(path)]
        return [path for path in near if looks_like_labels(self.annotation_dir / path)]


class CocoFiles(_Files):
    """Objects out of json files. `entries`: path below the tree's folder -> its json and its name there."""

    def __init__(
        self,
        tree: ImageTree,
        annotation_dir: Path,
        files: Mapping[str, str],
        entries: Mapping[str, tuple[CocoFile, str]],
        faults: list[str],
    ) -> None:
        super().__init__(tree, annotation_dir, files)
        self.entries, self._faults = entries, faults

    def written(self, image_id: str, size: Size | None) -> tuple[Path, Written]:
        entry = self.entries.get(self.files[image_id])
        if entry is None:
            raise DataFault(f"{self.image(image_id)}: no entry of images in {self._names} names it")
        return entry[0].path, entry[0].written(entry[1])

    def faults(self) -> list[str]:
        return self._faults

    def remarks(self) -> list[str]:
        unnamed = [path for path in self.tree.paths if path not in self.entries]
        if not unnamed:
            return []
        images = counted(len(unnamed), "image")
        return [f"{images} below {self.image_dir} without an entry in {self._names}: {shown(unnamed)}"]

    @property
    def _names(self) -> str:
        return ", ".join(sorted({file.path.name for file, _ in self.entries.values()}))


def _belonging_to_none(paths: Sequence[str], kind: str, folder: Path) -> str:
    return (
        f"{counted(len(paths), kind)} below {folder} with no image of that name, so the objects are not used: "
        f"{shown(paths)}; give image and annotation the same name"
    )


def _is_below_labels(path: str) -> bool:
    return any(folder.lower() in LABEL_FOLDERS for folder in path.split("/")[:-1])
