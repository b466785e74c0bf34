"""Validation figures that cannot be believed."""

import logging
import math
from collections.abc import Sequence
from typing import Any

log = logging.getLogger("mars")

PATIENCE = 10  # validations in which nothing is found before that is said


def finite_or_none(figure: float | None) -> float | None:
    """A figure that may be compared with others, or None, for NaN is neither better nor worse than any."""
    if figure is None or math.isfinite(figure):
        return figure
    log.warning("validation: mAP50-95 is %s; the epoch counts as not validated", figure)
    return None


def frozen_figure(history: Sequence[dict[str, Any]], epoch: int, figure: float | None) -> str | None:
    """What to say of an mAP50-95 that is bit for bit that of the last validated epoch in `history`; None: nothing.

    Said once, not at every epoch of a standstill. Everything found (1) comes again without a fault, nothing found (0)
    does `PATIENCE` times.
    """
    before = [row for row in history if row.get("map50_95") is not None]
    if figure == 0 and len(before) == PATIENCE - 1 and not any(row["map50_95"] for row in before):
        return (
            f"validation: mAP50-95 was 0 in each of {PATIENCE} epochs: nothing is found; `mars.py doctor` looks at "
            "labels, weights and learning rate"
        )
    if not before or figure in (None, 0.0, 1.0) or before[-1]["map50_95"] != figure:
        return None
    if len(before) > 1 and before[-2]["map50_95"] == figure:
        return None
    return (
        f"validation: mAP50-95 of epoch {epoch + 1} is that of epoch {before[-1]['epoch'] + 1} to the last bit "
        f"({figure!r}): are these the weights that are trained, all images of the split, and a learning rate above "
        "zero? On a handful of objects it may be chance"
    )
