"""The exception for mistakes that the user can correct, and messages for damaged files and for too little memory."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # torch raises a plain RuntimeError
# The solution where the system refuses to read a file. Its other errors come from damaged content: a wrong offset in a
# file is an invalid argument (EINVAL).
_SOLUTIONS = {
    errno.EACCES: "give this user the permission to read it",
    errno.EPERM: "give this user the permission to read it",
    errno.EMFILE: "raise the number of files that may be open (ulimit -n)",
    errno.ENFILE: "close other programs, because too many files are open on this machine",
    errno.EIO: "check the disk or the network that it lies on, then run again",
    errno.ESTALE: "check the network that it lies on, then run again",
    errno.ETIMEDOUT: "check the network that it lies on, then run again",
    errno.ENOENT: "it existed before and is gone: put it back, or name another file",
    errno.EISDIR: "it is a folder: name a file",
}


class UserError(ValueError):
    """A mistake that the user can correct: the message says what is wrong, where, and how to fix it.

    `mars.py` prints the message on stderr and exits with status 2, without a traceback.
    """


class UnknownField(UserError, AttributeError):
    """A config field that does not exist; also an AttributeError, as `hasattr` expects."""


def _is_out_of_gpu_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # of torch, which config does not import


def is_out_of_memory(error: BaseException) -> bool:
    """Did the GPU or the machine run out of memory? Then the file that was being read is not the cause."""
    is_of_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    is_of_cpu = isinstance(error, MemoryError) or _CPU_OUT_OF_MEMORY in str(error)
    return is_of_system or is_of_cpu or _is_out_of_gpu_memory(error)


def out_of_memory_message(error: BaseException) -> str | None:
    """One sentence with the solution when the GPU or the machine ran out of memory; None for another error."""
    if not is_out_of_memory(error):
        return None
    where = " on the GPU" if _is_out_of_gpu_memory(error) else ""
    requested = re.search(r"to allocate ([\d.]+ \w+)", str(error))
    amount = f" (another {requested[1]} were requested)" if requested else ""
    return f"out of memory{where}{amount}; set a smaller batchSize or inputShape, or end other programs that use memory"


@contextmanager
def reading(path: Path | str, expected: str) -> Iterator[None]:
    """Around code that reads a file of the user: any error becomes a `UserError` with the name of the file.

    Only errors of too little memory are raised as they are. `expected`: what the file should be, with an article:
    "a COCO json". For damaged or hostile files libraries raise errors of many kinds (`RecursionError`, `OverflowError`,
    `zipfile.BadZipFile`, ...), so no list of kinds is complete. Keep the block small, so that a bug of Mars is not
    reported as a damaged file.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason, solution = type(error).__name__, None
        if isinstance(error, OSError):
            reason, solution = error.strerror or reason, _SOLUTIONS.get(error.errno or 0)
        if solution:
            raise UserError(f"{path}: cannot be read ({reason}); {solution}") from error
        raise UserError(
            f"{path}: cannot be read as {expected} ({reason}); it is damaged, cut short or of another kind: "
            "use an undamaged copy"
        ) from error
