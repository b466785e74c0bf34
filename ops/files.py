"""Files that are either whole or not there: written under another name, flushed to the disk, then renamed."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from config.errors import UserError

_DRAFT_NAME = re.compile(r"\.(.+)\.(\d+)\.part")


@contextmanager
def atomic_writer(path: Path | str) -> Iterator[BinaryIO]:
    """Open `path` for writing, making its folder. A reader sees the old file or the new one, never a half.

    When the block raises, the old file stays as it was. When the block is left, the file is on the disk, and so is its
    name. Raises `UserError` for a full disk, a read-only place and the like.
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
            with contextlib.suppress(OSError):  # what went wrong before is what the user must hear
                draft.unlink(missing_ok=True)  # still there only when the writing failed


def write_atomic(path: Path | str, content: bytes | str) -> Path:
    """Write `content` to `path` in one piece; text as UTF-8. Returns the path. Raises as `atomic_writer` does."""
    with atomic_writer(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


def copy_atomic(source: Path, target: Path) -> None:
    """Copy a file, however large; `target` is the old file or a whole copy. Raises as `atomic_writer` does."""
    with open(source, "rb") as content, atomic_writer(target) as file:
        shutil.copyfileobj(content, file)


@contextmanager
def reporting_write_errors(path: Path, *others: Path) -> Iterator[None]:
    """Turn the system's refusals to write `path` (or `others`, its drafts) into a `UserError` with the way out."""
    try:
        yield
    except OSError as error:
        concerned = {str(one) for name in (path, *others) for one in (name, *name.parents)}
        if error.filename is not None and str(error.filename) not in concerned:
            raise  # the block's own business with another file
        reason = error.strerror or type(error).__name__
        raise UserError(f"{path}: cannot be written ({reason}); {_way_out(error)}; nothing was overwritten") from error


def _way_out(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space or choose another place (--root), then run the same command again"
    if error.errno == errno.EFBIG:
        return "raise the limit on the size of files (ulimit -f), then run the same command again"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "make the folder writable or choose another place (--root)"
    return "choose another place (--root)"


def make_folder(path: Path) -> None:
    """Make a folder and those above it, and see their names onto the disk. One that is there is left alone."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """See the names in a folder onto the disk: after a power cut a renamed file is under its new name."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder may be written to and yet not be listed
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that cannot do it
            raise
    finally:
        os.close(handle)


def hard_link_or_rename(path: Path, second: Path) -> None:
    """Let `second` be what `path` is now, without a copy. `path` stays, unless the file system has no hard links."""
    draft = second.with_name(f".{second.name}.{os.getpid()}.part")
    with reporting_write_errors(second, draft, path):
        try:
            draft.unlink(missing_ok=True)
            os.link(path, draft)
        except OSError:
            path.replace(second)
        else:
            draft.replace(second)
            draft.unlink(missing_ok=True)  # where both names were one file already, POSIX leaves the draft
        flush_folder(second.parent)


def remove_stale_drafts(folder: Path) -> list[Path]:
    """Remove what killed processes were writing below `folder`; returns what was removed.

    A draft of this process's number is a dead one's, too: call this before anything is written. One whose process lives
    is left alone.
    """
    removed = []
    for draft in sorted(folder.rglob(".*.part")):
        match = _DRAFT_NAME.fullmatch(draft.name)
        if match and (int(match[2]) == os.getpid() or not _is_alive(int(match[2]))):
            with contextlib.suppress(OSError):  # it costs space, no more
                draft.unlink()
                removed.append(draft)
    return removed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True
