"""From an image id to the image's file and what was written about it, for each format (`dl.source.Reader`)."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from dl.annotations import Written, read_voc
from dl.coco import CocoFile
from dl.faults import DataFault
from dl.files import IMAGE_SUFFIXES, XML_SUFFIXES, index_by_stem
from dl.yolo import label_path, read_yolo

Size = tuple[int, int]  # width, height


class VocFolder:
    """Images in one folder, an xml of the same stem in another; both are listed once."""

    def __init__(self, image_dir: Path, annotation_dir: Path, suffix: str) -> None:
        self.image_dir, self.annotation_dir = image_dir, annotation_dir
        self.images = index_by_stem(image_dir, IMAGE_SUFFIXES)
        self.annotations = index_by_stem(annotation_dir, XML_SUFFIXES)
        self.suffix = suffix  # wins when one stem has several image files

    @property
    def ids(self) -> Collection[str]:
        """Stems of images and of xml files."""
        return self.images.keys() | self.annotations.keys()

    def image(self, image_id: str) -> Path:
        paths = self.images.get(image_id, [])
        if not paths:
            raise DataFault(f"{self.image_dir / image_id}{self.suffix}: no such image, nor with another suffix")
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

    def _annotation(self, image_id: str) -> Path:
        paths = self.annotations.get(image_id)
        if not paths:
            path = self.annotation_dir / f"{image_id}.xml"
            raise DataFault(f"{path}: no such annotation (an image without objects has an xml without <object>)")
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise DataFault(f"{self.annotation_dir / image_id}: several annotations of that name ({names})")
        return paths[0]


class _Files:
    """Images by their path below `image_dir`."""

    def __init__(self, image_dir: Path, annotation_dir: Path, files: Mapping[str, str]) -> None:
        self.image_dir, self.annotation_dir = image_dir, annotation_dir
        self.files = files

    def image(self, image_id: str) -> Path:
        return self.image_dir / self.files[image_id]

    def faults(self) -> list[str]:
        return []


class VocTree(_Files):
    """An xml for each image, beside it or at the same place in another folder."""

    def written(self, image_id: str, size: Size | None) -> tuple[Path, Written]:
        path = (self.annotation_dir / self.files[image_id]).with_suffix(".xml")
        return path, read_voc(path)


class YoloTree(_Files):
    """A label file for each image, in a folder `labels` where the image lies in `images`, or beside the image."""

    def __init__(
        self,
        image_dir: Path,
        annotation_dir: Path,
        files: Mapping[str, str],
        names: Mapping[int, str],
        has_keypoints: bool = False,
    ) -> None:
        super().__init__(image_dir, annotation_dir, files)
        self.names, self.has_keypoints = names, has_keypoints

    def written(self, image_id: str, size: Size | None) -> tuple[Path, Written]:
        path = self.annotation_dir / label_path(self.files[image_id])
        found = self._read(path, size)
        beside = self.image(image_id).with_suffix(".txt")
        if found.is_missing and beside != path and beside.exists():  # as labelImg and darknet save them
            return beside, self._read(beside, size)
        return path, found

    def _read(self, path: Path, size: Size | None) -> Written:
        return read_yolo(path, self.names, size or (1, 1), self.has_keypoints)


class CocoFiles(_Files):
    """Objects out of json files. `entry_of`: path below `image_dir` -> its json and its name there."""

    def __init__(
        self,
        image_dir: Path,
        annotation_dir: Path,
        files: Mapping[str, str],
        entry_of: Callable[[str], tuple[CocoFile, str] | None],
        json_files: Collection[CocoFile],
    ) -> None:
        super().__init__(image_dir, annotation_dir, files)
        self.entry_of, self.json_files = entry_of, json_files

    def written(self, image_id: str, size: Size | None) -> tuple[Path, Written]:
        entry = self.entry_of(self.files[image_id])
        if entry is None:
            names = ", ".join(file.path.name for file in self.json_files)
            raise DataFault(f"{self.image(image_id)}: no entry of images in {names} names it")
        return entry[0].path, entry[0].written(entry[1])

    def faults(self) -> list[str]:
        return [fault for file in self.json_files for fault in file.faults]
