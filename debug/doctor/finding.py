"""The result of a check: one line that begins with ok, look or wrong, and says what to do."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

OK, LOOK, WRONG = "ok", "look", "wrong"

log = logging.getLogger("mars")


class Finding(NamedTuple):
    """`level` is OK, LOOK or WRONG; `text` says what was found and what to do; `details` are lines below it."""

    level: str
    subject: str
    text: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = self.text.replace("\n", "\n       ")
        return "\n".join([f"{self.level:<6} {self.subject}: {text}", *(f"       {line}" for line in self.details)])


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Within the block, warnings of the program are collected instead of printed: they become lines of the report."""
    messages: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        """A filter of the logger: False drops the record."""
        if record.levelno < logging.WARNING:
            return True
        messages.append(record.getMessage())
        return False

    log.addFilter(collect)
    try:
        yield messages
    finally:
        log.removeFilter(collect)
