"""Images in several folders: what a line of a list means, and ids that stay apart."""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path

from config.errors import UserError
from dl.files import IMAGE_SUFFIXES, image_id, walk_files

IMAGE_FOLDERS = ("images", "jpegimages", "image", "imgs", "img")
ANNOTATION_FOLDERS = ("annotations", "annotation", "xmls", "xml")
LABEL_FOLDERS = ("labels", "label")
# Names that say what lies in a folder; an image and its annotation may differ in them.
KIND_FOLDERS = frozenset((*IMAGE_FOLDERS, *ANNOTATION_FOLDERS, *LABEL_FOLDERS))


class ImageTree:
    """The images below `folder` as relative paths, written with `/`.

    `known` are the paths that annotations speak of. None: the files on disk, which are listed once, and only when a
    line cannot be understood without.
    """

    def __init__(self, folder: Path, known: Collection[str] | None = None) -> None:
        self.folder = folder
        self._known = None if known is None else set(known)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """All of them, sorted."""
        return tuple(walk_files(self.folder, IMAGE_SUFFIXES) if self._known is None else sorted(self._known))

    def find(self, line: str, beside: Path | None = None) -> str:
        """The path that a line of a list means: relative to the tree or to `beside`, absolute, or a name alone.

        A line that fits no image comes back as it is, for the check to complain about. Raises `UserError` when a name
        alone fits several.
        """
        text = line.strip().replace("\\", "/")
        for start in (self.folder, beside):
            path = self.below(os.path.join(start, text)) if start else None
            if path is not None and self._has(path):
                return path
        found = self._of_stem.get(image_id(text, self._of_stem), [])
        exact = [path for path in found if f"/{path}".endswith("/" + text.lstrip("./"))]
        found = exact or found
        if len(found) > 1:
            raise UserError(
                f"{line}: several images below {self.folder} are called so ({', '.join(found[:3])}); "
                "write the folder in front and the suffix behind"
            )
        return found[0] if found else text

    def below(self, path: str | Path) -> str | None:
        """The path relative to the tree's folder, None for one that lies outside."""
        text = os.path.normpath(path)
        front = str(self.folder) + os.sep
        return text[len(front) :].replace(os.sep, "/") if text.startswith(front) else None

    def _has(self, path: str) -> bool:
        return os.path.isfile(self.folder / path) if self._known is None else path in self._known

    @cached_property
    def _of_stem(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            index[_stem(path)].append(path)
        return index


def name_images(paths: Iterable[str]) -> dict[str, str]:
    """Path -> image id: the stem; where stems are equal the folder in front (train/1), and if need be the suffix."""
    paths = list(dict.fromkeys(paths))
    ids = {path: _stem(path) for path in paths}
    for rename in (_with_folder, str):
        counts = Counter(ids.values())
        ids = {path: rename(path) if counts[name] > 1 else name for path, name in ids.items()}
    return ids


def _stem(path: str) -> str:
    return image_id(path)


def _with_folder(path: str) -> str:
    parts = os.path.splitext(path)[0].split("/")
    return "/".join(part for part in parts[:-1] if part.lower() not in IMAGE_FOLDERS) + "/" + parts[-1]
