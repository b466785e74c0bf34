"""The result of a check: one line that begins with ok, look or wrong, and says what to do."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch

from ops.batch import Batch

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


def select_images(batch: Batch, count: int) -> Batch:
    """A batch of `count` of its images, those with the most objects first; images repeat if there are fewer."""
    order = batch.valid.sum(dim=1).argsort(descending=True, stable=True)
    rows = order[torch.arange(count) % len(batch)]
    values = {name: getattr(batch, name)[rows] for name in ("images", "boxes", "labels", "valid")}
    labelled = None if batch.labelled is None else batch.labelled[rows]
    ids = tuple(batch.image_ids[row] for row in rows.tolist())
    return replace(batch, **values, labelled=labelled, image_ids=ids, letterboxes=())
