"""One process a run: a lock on its folder that the system lets go when the process ends, however it ends."""

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
class _Held:
    file: int  # descriptor
    holders: int


# Of this process. Record locks (lockf) are chosen because a fork does not inherit them: with flock a loader's worker
# that outlives a killed training would hold the folder. They have a trap instead: closing any descriptor of the file
# lets the lock go, so this process opens the file of a folder it holds nowhere else.
_held: dict[Path, _Held] = {}


class RunLock:
    """The folder belongs to this process within the block, and inner blocks of the same process share it.

    Entering locks a folder that is there; `hold` makes one that is not, and is called again after the folder was moved
    aside. Folders that `hold` made are removed at the end when nothing but the lock came into them. Raises `UserError`,
    with who holds it since when, and `UserError` for a place that cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._key: Path | None = None
        self._made: list[Path] = []  # folders, the lowest first

    def __enter__(self) -> "RunLock":
        if self.folder.is_dir():
            self.hold()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._key is None:
            return
        held = _held[self._key]
        held.holders -= 1
        if held.holders == 0:
            del _held[self._key]
            if self._made:
                self._remove_unused(held.file)
            os.close(held.file)  # else the file stays, for the next run
        self._key = None

    def _remove_unused(self, file: int) -> None:
        """While the lock is held. A process that has opened this file sees that it is gone, and makes a new one."""
        is_unused = _is_at(file, self.folder / LOCK_NAME) and os.listdir(self.folder) == [LOCK_NAME]
        with contextlib.suppress(OSError):  # an empty folder more does no harm
            if is_unused:
                (self.folder / LOCK_NAME).unlink()
                for folder in self._made:
                    folder.rmdir()

    def hold(self) -> None:
        """Lock the folder that is at this path now, making it where there is none."""
        if fcntl is None:
            _warn_once("this system has no file locks: see to it yourself that no second run uses %s", self.folder)
            make_folder(self.folder)
            return
        self._made = self._made or [place for place in (self.folder, *self.folder.parents) if not os.path.exists(place)]
        key = self.folder.resolve()
        held = _held.get(key)
        if held is None:
            _held[key] = _Held(_locked_file(self.folder), 0)
        elif not _is_at(held.file, self.folder / LOCK_NAME):  # the folder was moved aside: this is a new one
            old, held.file = held.file, _locked_file(self.folder)
            os.close(old)
        if self._key is None:
            self._key = key
            _held[key].holders += 1


@lru_cache
def _warn_once(sentence: str, folder: Path) -> None:
    log.warning(sentence, folder)


def _locked_file(folder: Path) -> int:
    """Descriptor of the folder's lock file, locked by this process."""
    path = folder / LOCK_NAME
    while True:
        with reporting_write_errors(path):
            make_folder(folder)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(file, folder)
            if _is_at(file, path):  # else the folder was moved aside between opening and locking
                with reporting_write_errors(path):
                    _write_holder(file)
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
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"{folder}: another run is at work in it{_holder(file)}; let it finish, stop it, or use --name"
            ) from error
        log.warning("%s: no locks there (%s): see to it yourself that no second run uses it", folder, error.strerror)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(file: int) -> None:
    """For people, and for the sentence that refuses others; the lock itself is the system's."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    text = json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since})
    os.ftruncate(file, 0)
    os.pwrite(file, f"{text}\n".encode(), 0)


def _holder(file: int) -> str:
    # Not written yet, or damaged: then nobody is named.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        holder = json.loads(os.pread(file, 1000, 0))
        process, host, since = (" ".join(str(holder[name]).split()) for name in ("process", "host", "since"))
        return f" (process {process} on {host} since {since})"
    return ""
