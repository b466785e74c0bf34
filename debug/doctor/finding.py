"""What a check found: one line that begins with ok, look or wrong, and says what to do."""

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


class _Ear(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        self.heard.append(record.getMessage())
        return False


@contextmanager
def overhearing() -> Iterator[list[str]]:
    """Within the block, what the program warns of is collected instead of printed: it becomes lines of the report."""
    ear = _Ear()
    log.addFilter(ear)
    try:
        yield ear.heard
    finally:
        log.removeFilter(ear)


def epochs_text(epochs: list[int] | tuple[int, ...]) -> str:
    """Epochs counted from 0 -> how people count them: 1 to 5, 8."""
    spans: list[list[int]] = []
    for epoch in sorted(set(epochs)):
        if spans and epoch == spans[-1][1] + 1:
            spans[-1][1] = epoch
        else:
            spans.append([epoch, epoch])
    return ", ".join(f"{a + 1}" if a == b else f"{a + 1} to {b + 1}" for a, b in spans)
