"""Which images were already decoded without a fault, so that a second start of a run need not read them again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.errors import UserError, reading
from dl.files import read_text
from dl.images import ImageFacts
from ops.files import write_atomic

_VERSION = 2  # 2: with the largest value, further frames and a digest of the file


class VerifiedImages:
    """Facts of sound images by path, size and time of change; kept as JSON in `file`, or only in memory for None."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._entries: dict[str, list[Any]] = _load(file) if file else {}
        self._is_changed = False

    def get(self, path: Path) -> ImageFacts | None:
        """The facts of this very file, None when it is new or was changed."""
        entry = self._entries.get(str(path))
        return ImageFacts(*entry[2:]) if entry and entry[:2] == _stamp(path) else None

    def add(self, path: Path, facts: ImageFacts) -> None:
        self._entries[str(path)] = [*_stamp(path), *facts]
        self._is_changed = True

    def save(self) -> None:
        """Write what is new."""
        if self._file is None or not self._is_changed:
            return
        write_atomic(self._file, json.dumps({"version": _VERSION, "images": self._entries}))
        self._is_changed = False


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:  # a dangling link: reading the image will say so
        return []
    return [status.st_size, status.st_mtime_ns]


def _load(file: Path) -> dict[str, list[Any]]:
    """Entries of an earlier run; a file that is missing, torn or of another version costs only the time to decode."""
    try:
        text = read_text(file)
        with reading(file, "a list of checked images"):
            content = json.loads(text)
    except UserError:
        return {}
    if not isinstance(content, Mapping) or content.get("version") != _VERSION:
        return {}
    entries = content.get("images")
    return {path: entry for path, entry in entries.items() if _is_entry(entry)} if isinstance(entries, dict) else {}


def _is_entry(entry: Any) -> bool:
    """Size and time of a file, then the fields of `ImageFacts` in their types."""
    if not isinstance(entry, list) or len(entry) != 2 + len(ImageFacts._fields):
        return False
    *numbers, has_more_frames, digest = entry
    is_plain = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    return is_plain and type(has_more_frames) is bool and isinstance(digest, str)
