"""The one exception that means "the user can mend this"."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OF_THE_CPU = "DefaultCPUAllocator: can't allocate memory"  # torch raises a plain RuntimeError there
# What the user can do where the system does not give out a file. Other errors of the system come from a damaged file:
# a wrong offset in it is an invalid argument (EINVAL).
_WAYS_OUT = {
    errno.EACCES: "give this user the permission to read it",
    errno.EPERM: "give this user the permission to read it",
    errno.EMFILE: "raise the number of files that may be open (ulimit -n)",
    errno.ENFILE: "close other programs, for too many files are open on this machine",
    errno.EIO: "check the disk or the network that it lies on, then run again",
    errno.ESTALE: "check the network that it lies on, then run again",
    errno.ETIMEDOUT: "check the network that it lies on, then run again",
    errno.ENOENT: "it was there before and is gone: put it back, or name another file",
    errno.EISDIR: "it is a folder: name a file",
}


class UserError(ValueError):
    """A mistake the user can mend: the message names what, where and the way out.

    `mars.py` prints it as one sentence on stderr and leaves with status 2, without a traceback.
    """


class UnknownField(UserError, AttributeError):
    """A config field that does not exist; also an AttributeError, so that `hasattr` answers."""


def is_out_of_memory(error: BaseException) -> bool:
    """Did the GPU or the machine run out of memory? Then the file that was being read is not the cause."""
    is_systems = isinstance(error, OSError) and error.errno == errno.ENOMEM
    # "OutOfMemoryError" is torch's own, by its name, because config does not import torch
    is_gpus = type(error).__name__ == "OutOfMemoryError"
    return is_systems or is_gpus or isinstance(error, MemoryError) or _OF_THE_CPU in str(error)


def out_of_memory_message(error: BaseException) -> str | None:
    """One sentence with the solution when the GPU or the machine ran out of memory; None for another error."""
    if not is_out_of_memory(error):
        return None
    where = " on the GPU" if type(error).__name__ == "OutOfMemoryError" else ""  # the class of torch, see above
    requested = re.search(r"to allocate ([\d.]+ \w+)", str(error))
    amount = f" (another {requested[1]} were requested)" if requested else ""
    return f"out of memory{where}{amount}; set a smaller batchSize or inputShape, or end other programs that use memory"


@contextmanager
def reading(path: Path | str, wanted: str) -> Iterator[None]:
    """Around code that reads a file of the user: whatever it raises becomes a `UserError` that names the file.

    Only memory that ran out is raised as it is.

    `wanted` says what the file should be, with an article: "a COCO json". Libraries raise errors of many kinds for
    damaged or hostile files (`RecursionError`, `OverflowError`, `zipfile.BadZipFile`, ...), and no list of them is
    ever complete. Keep the block small, so that no mistake of our own is taken for the user's.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = error.strerror if isinstance(error, OSError) else None
        way_out = _WAYS_OUT.get(error.errno or 0) if isinstance(error, OSError) else None
        if way_out:
            raise UserError(f"{path}: cannot be read ({reason}); {way_out}") from error
        raise UserError(
            f"{path}: cannot be read as {wanted} ({reason or type(error).__name__}); it is damaged, cut short or of "
            "another kind: take a whole copy of it"
        ) from error
