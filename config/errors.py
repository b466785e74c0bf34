"""The one exception that means "the user can mend this"."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """A mistake the user can mend: the message names what, where and the way out.

    `mars.py` prints it as one sentence on stderr and leaves with status 2, without a traceback.
    """


class UnknownField(UserError, AttributeError):
    """A config field that does not exist; also an AttributeError, so that `hasattr` answers."""


@contextmanager
def reading(path: Path | str, wanted: str) -> Iterator[None]:
    """Around code that reads a file of the user: whatever it raises becomes a `UserError` that names the file.

    `wanted` says what the file should be, with an article: "a COCO json". Libraries raise errors of many kinds for
    damaged or hostile files (`RecursionError`, `OverflowError`, `zipfile.BadZipFile`, ...), and no list of them is
    ever complete. Keep the block small, so that no mistake of our own is taken for the user's.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise UserError(
            f"{path}: cannot be read as {wanted} ({reason or type(error).__name__}); it is damaged, cut short or of "
            "another kind: take a whole copy of it"
        ) from error
