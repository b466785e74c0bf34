"""Files that are either whole or not there: written under another name, flushed to the disk, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def writing_whole(path: Path | str) -> Iterator[BinaryIO]:
    """Open `path` for writing, making its folder. A reader sees the old file or the new one, never a half.

    When the block raises, the old file stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(draft, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)  # still there only when the writing failed


def write_whole(path: Path | str, content: bytes | str) -> Path:
    """Write `content` to `path` in one piece; text as UTF-8. Returns the path."""
    with writing_whole(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)
