"""Only one process may use a run folder. The lock is released by the system when the process ends, for any reason."""

import contextlib
import errno
import json
import logging
import os
import socket
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType

from config.errors import UserError
from ops.files import make_folder, reporting_write_errors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_NAME = ".lock"

log = logging.getLogger("mars")


@dataclass
class _OpenLock:
    """A lock that this process has."""

    file: int  # descriptor
    num_users: int  # blocks of this process that share the lock


# Record locks (lockf) are used because a forked process does not inherit them. With flock, a data loader worker that
# survives a killed training would keep the folder locked. Record locks have another problem: closing any descriptor of
# the file releases the lock. Therefore this process opens each lock file only once, and remembers it here.
_open_locks: dict[Path, _OpenLock] = {}


class RunLock:
    """Within the block, only this process may use the folder. Nested blocks of the same process share the lock.

    Entering the block locks the folder if it exists. `hold` also creates it; call `hold` again after the folder was
    renamed. At the end, folders that `hold` created are removed if they contain nothing but the lock. Raises
    `UserError` if another process has the lock (the message says which one and since when) or if the folder cannot be
    written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._key: Path | None = None
        self._created: list[Path] = []  # folders, the innermost first

    def __enter__(self) -> "RunLock":
        if self.folder.is_dir():
            self.hold()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._key is None:
            return
        held = _open_locks[self._key]
        held.num_users -= 1
        if held.num_users == 0:
            del _open_locks[self._key]
            path = self.folder / LOCK_NAME
            # A process that just opened the lock file sees that it is gone and makes a new one.
            if self._created and _is_at(held.file, path) and os.listdir(self.folder) == [LOCK_NAME]:
                with contextlib.suppress(OSError):  # an empty folder that remains does no harm
                    path.unlink()
                    for folder in self._created:
                        folder.rmdir()
            os.close(held.file)  # the lock file stays for the next run, unless it was just removed
        self._key = None

    def hold(self) -> None:
        """Lock the folder that is at this path now. Create it if there is none."""
        if fcntl is None:
            _warn_once("this system has no file locks; make sure that no second run uses %s", self.folder)
            make_folder(self.folder)
            return
        self._created = self._created or [
            path for path in (self.folder, *self.folder.parents) if not os.path.exists(path)
        ]
        key = self.folder.resolve()
        held = _open_locks.get(key)
        if held is None:
            _open_locks[key] = _OpenLock(_locked_file(self.folder), 0)
        elif not _is_at(held.file, self.folder / LOCK_NAME):  # the folder was renamed and this is a new one
            old, held.file = held.file, _locked_file(self.folder)
            os.close(old)
        if self._key is None:
            self._key = key
            _open_locks[key].num_users += 1


@lru_cache
def _warn_once(text: str, folder: Path) -> None:
    log.warning(text, folder)


def _locked_file(folder: Path) -> int:
    """Open and lock the lock file of the folder; returns its descriptor."""
    path = folder / LOCK_NAME
    while True:
        with reporting_write_errors(path):
            make_folder(folder)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(file, folder)
            if _is_at(file, path):  # otherwise the folder was renamed between opening and locking: try again
                # For people and for the error message of other runs. The lock itself is in the system.
                since = time.strftime("%Y-%m-%d %H:%M:%S")
                holder = json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since})
                with reporting_write_errors(path):
                    os.ftruncate(file, 0)
                    os.pwrite(file, f"{holder}\n".encode(), 0)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, folder: Path) -> None:
    assert fcntl is not None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            log.warning(
                "%s: the folder cannot be locked (%s); make sure that no second run uses it", folder, error.strerror
            )
            return
        raise UserError(
            f"{folder}: another run uses this folder{_holder_text(file)}; wait for it, stop it, or use --name"
        ) from error


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _holder_text(file: int) -> str:
    """Who has the lock, for the error message; empty if this is not written yet or damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        holder = json.loads(os.pread(file, 1000, 0))
        process, host, since = (" ".join(str(holder[name]).split()) for name in ("process", "host", "since"))
        return f" (process {process} on {host} since {since})"
    return ""
