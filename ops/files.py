"""Atomic writes, and checksums that detect damaged files.

A file is written under a temporary name, flushed to the disk and then renamed.

A sealed file ends with the SHA-256 of all bytes before it. A zip archive has a checksum for each member, but torch does
not verify them, and the headers have none: a flipped bit in a weight would enter the training without a warning. The
checksum is stored as the comment of the zip, so that torch and `unzip` still read the file.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from config.errors import UserError

_FULL = "free some space or choose another place (--root), then run the same command again"
_FORBIDDEN = "make the folder writable or choose another place (--root)"
_SOLUTIONS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then run the same command again",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _FORBIDDEN),
}
_DRAFT_NAME = re.compile(r"\.(.+)\.(\d+)\.part")
_MARK = b"sha256 "
_DIGEST_LENGTH = 64  # hexadecimal digits
_END_OF_ZIP = b"PK\x05\x06"
_END_OF_ZIP_LENGTH = 22  # bytes of the last record of a zip without a comment
_BLOCK = 1 << 20


@contextmanager
def atomic_writer(path: Path | str) -> Generator[BinaryIO, None, None]:
    """Open `path` for writing and create its folder. A reader sees the old file or the new one, never a part.

    When the block raises, the old file stays. After the block, the file and its name are on the disk. Raises
    `UserError` when the system refuses to write: a full disk, a read-only folder.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    with reporting_write_errors(path, draft):
        make_folder(path.parent)
        try:
            with open(draft, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            flush_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):  # it must not replace the error that is being raised
                draft.unlink(missing_ok=True)  # it still exists only when writing failed


def write_atomic(path: Path | str, content: bytes | str) -> Path:
    """Write `content` to `path` atomically; text as UTF-8. Returns the path. Raises as `atomic_writer` does."""
    with atomic_writer(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


def file_name_of(text: str, max_letters: int, max_bytes: int) -> str:
    """The text with `_` for characters that a file system forbids in names, cut to this length. Empty: ""."""
    name = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", text)[:max_letters]
    return name.encode()[:max_bytes].decode(errors="ignore")


def copy_atomic(source: Path, target: Path) -> None:
    """Copy a file of any size atomically. Raises as `atomic_writer` does."""
    with open(source, "rb") as content, atomic_writer(target) as file:
        shutil.copyfileobj(content, file)


@contextmanager
def reporting_write_errors(path: Path, *other_paths: Path) -> Generator[None, None, None]:
    """Replace an `OSError` about `path`, or about `other_paths` that the block writes, by a `UserError` with advice."""
    try:
        yield
    except OSError as error:
        own_names = {str(name) for file in (path, *other_paths) for name in (file, *file.parents)}
        if error.filename is not None and str(error.filename) not in own_names:
            raise  # the error is about another file that the block uses
        reason = error.strerror or type(error).__name__
        solution = _SOLUTIONS.get(error.errno or 0, "choose another place (--root)")
        raise UserError(f"{path}: cannot be written ({reason}); {solution}; nothing was overwritten") from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents, and flush their names to the disk. Nothing happens when it exists."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, so that a renamed file has its new name after a power failure."""
    if os.name != "posix":  # other systems cannot open a folder
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder can be writable and not readable
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # the file system does not support it
            raise
    finally:
        os.close(handle)


def hard_link_or_rename(path: Path, second: Path) -> None:
    """Give the file `path` the second name `second` without a copy. Without hard links it is renamed instead."""
    draft = second.with_name(f".{second.name}.{os.getpid()}.part")
    with reporting_write_errors(second, draft, path):
        try:
            draft.unlink(missing_ok=True)
            os.link(path, draft)
        except OSError:
            path.replace(second)
        else:
            draft.replace(second)
            draft.unlink(missing_ok=True)  # if both names are the same file already, POSIX keeps the draft
        flush_folder(second.parent)


def remove_stale_drafts(folder: Path) -> list[Path]:
    """Remove the unfinished files that killed processes left below `folder`. Returns the removed files.

    Files of running processes stay. A file with the id of this process comes from an earlier one with the same id, so
    call this before this process writes anything.
    """
    removed: list[Path] = []
    for draft in sorted(folder.rglob(".*.part")):
        match = _DRAFT_NAME.fullmatch(draft.name)
        if match and (int(match[2]) == os.getpid() or not _is_alive(int(match[2]))):
            with contextlib.suppress(OSError):  # a file that cannot be removed only takes space
                draft.unlink()
                removed.append(draft)
    return removed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def sealed(archive: bytes) -> bytes:
    """The zip archive with its checksum. Raises `ValueError` for other content and for a zip that has a comment."""
    if not archive[-_END_OF_ZIP_LENGTH:].startswith(_END_OF_ZIP):
        raise ValueError("only a zip archive without a comment can be sealed")
    comment_length = (len(_MARK) + _DIGEST_LENGTH).to_bytes(2, "little")
    content = archive[:-2] + comment_length + _MARK
    return content + hashlib.sha256(content).hexdigest().encode("ascii")


def has_seal(path: Path) -> bool:
    """Does the file end with a checksum? The checksum is not verified. Raises `OSError` if the file cannot be read."""
    with open(path, "rb") as file:
        return _length_before_digest(file) is not None


def is_intact(path: Path) -> bool | None:
    """True: the file has not changed since it was sealed. False: it has changed. None: it has no checksum.

    Raises `OSError` if the file cannot be read.
    """
    with open(path, "rb") as file:
        length = _length_before_digest(file)
        if length is None:
            return None
        digest = file.read()
        file.seek(0)
        return _digest(file, length) == digest


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return _digest(file, os.fstat(file.fileno()).st_size).decode("ascii")


def _length_before_digest(file: BinaryIO) -> int | None:
    """Number of bytes before the digest, where the file is then positioned; None without a seal."""
    length = os.fstat(file.fileno()).st_size - _DIGEST_LENGTH
    if length < len(_MARK):
        return None
    file.seek(length - len(_MARK))
    return length if file.read(len(_MARK)) == _MARK else None


def _digest(file: BinaryIO, length: int) -> bytes:
    """SHA-256 of the next `length` bytes, read block by block."""
    digest = hashlib.sha256()
    while length > 0 and (block := file.read(min(length, _BLOCK))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode("ascii")
