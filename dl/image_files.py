"""Facts about image files from earlier checks, and copies of an image under another name.

`VerifiedImages` remembers which images were decoded without an error, so that a second start need not decode them
again. `find_copies` compares digests of files: it finds copies byte for byte, and links.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from config.errors import UserError
from dl.files import DataError, file_state, read_json
from dl.formats.source import DataSource
from dl.images import ImageInfo
from ops.files import file_digest, write_atomic
from ops.text import counted, shown

_VERSION = 2  # 2: with the largest value, further frames and a digest of the file


class VerifiedImages:
    """Facts about valid images by path, size and time of change; saved as JSON in `file`, or not saved (None)."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._entries: dict[str, list[Any]] = {}
        if file:
            with suppress(UserError):  # a missing or damaged file: all images are decoded
                content = read_json(file, "a list of checked images")
                entries = content.get("images") if isinstance(content, dict) else None
                if isinstance(entries, dict) and content.get("version") == _VERSION:
                    self._entries = {path: entry for path, entry in entries.items() if _is_entry(entry)}
        self._is_changed = False

    def get(self, path: Path) -> ImageInfo | None:
        """The facts about this file; None if it is new or was changed."""
        entry = self._entries.get(str(path))
        return ImageInfo(*entry[2:]) if entry and entry[:2] == [*file_state(path)] else None

    def add(self, path: Path, info: ImageInfo) -> None:
        self._entries[str(path)] = [*file_state(path), *info]
        self._is_changed = True

    def save(self) -> None:
        """Write the file if there are new entries."""
        if self._file is None or not self._is_changed:
            return
        write_atomic(self._file, json.dumps({"version": _VERSION, "images": self._entries}))
        self._is_changed = False


def _is_entry(entry: Any) -> bool:
    """Whether it is the size and time of a file, then the fields of `ImageInfo` with their types."""
    if not isinstance(entry, list) or len(entry) != 2 + len(ImageInfo._fields):
        return False
    *numbers, has_more_frames, digest = entry
    is_plain = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    return is_plain and type(has_more_frames) is bool and isinstance(digest, str)


class ImageCopy(NamedTuple):
    """Two ids of the same image, each with its split."""

    splits: tuple[str, str]
    image_ids: tuple[str, str]


def find_copies(
    source: DataSource, pairs: Iterable[tuple[str, str]], examined: Mapping[str, str], verified: VerifiedImages
) -> list[ImageCopy]:
    """Find images that are in both splits of a pair under different names, byte for byte.

    `examined`: id -> digest of its file. A split that was not examined is compared with one that was. Of its files
    only those are read whose size allows a copy, and whose digest `verified` does not know from an earlier start. An
    id that both splits list is no copy.
    """

    @cache
    def examined_sizes() -> set[int]:
        return {source.reader.find_image(image_id).stat().st_size for image_id in examined}

    @cache
    def digest_of(image_id: str) -> str | None:
        """None for an image that cannot be equal to an examined image, or that is unreadable."""
        if image_id in examined:
            return examined[image_id]
        try:
            path = source.reader.find_image(image_id)
            if path.stat().st_size not in examined_sizes():
                return None
            info = verified.get(path)
            return info.digest if info else file_digest(path)
        except (DataError, OSError):  # reported when the split of this image is examined
            return None

    copies = []
    for pair in pairs:
        first, second = (dict.fromkeys(source.splits[key]) for key in pair)
        only_first = [image_id for image_id in first if image_id not in second]
        only_second = [image_id for image_id in second if image_id not in first]
        if not any(image_id in examined for image_id in (*only_first, *only_second)):
            continue
        id_of = {digest: image_id for image_id in reversed(only_first) if (digest := digest_of(image_id))}
        same = ((id_of.get(digest_of(image_id) or ""), image_id) for image_id in only_second)
        copies += [ImageCopy(pair, (original, image_id)) for original, image_id in same if original is not None]
    return copies


def describe_copies(copies: Sequence[ImageCopy], source: DataSource) -> tuple[str, ...]:
    """One sentence for each pair of splits with copies: which images, and what to do."""
    sentences = []
    for (first, second), group in groupby(copies, key=lambda copy: copy.splits):
        images = [copy.image_ids for copy in group]
        named = shown([f"{source.files.get(a, a)} is {source.files.get(b, b)}" for a, b in images])
        sentences.append(
            f"splits '{first}' and '{second}' contain {counted(len(images), 'identical image')} under different names "
            f"(byte for byte): {named}; delete one file of each pair, or list both in the same split"
        )
    return tuple(sentences)
