"""Spikes: steps whose loss or gradient norm is far above its recent values. Often the first sign of a later NaN.

A value is compared with the median of the last values and their median absolute deviation (MAD), which a few outliers
do not change. Both use logarithms, so that a spike is a factor, whatever the size of the loss. Values that are zero,
such as the box loss of a batch without boxes, or not finite are left out. A loss part that is usually very small, such
as the box loss of a new network whose boxes overlap no object, is compared with a share of the loss.
"""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

WINDOW = 100  # last steps that are compared with
WARM_UP = 20  # steps before the first spike
MADS = 6 * 1.4826  # above the median; 1.4826 MAD are one standard deviation of a normal distribution
MAD_FLOOR = 0.02  # so that small changes of a steady loss are no spikes
RELATIVE_FLOOR = 0.5  # a spike is at least 1.5 times the median
TOTALS = ("loss", "grad_norm")  # all other values are parts of the loss
EXPLOSION = 100.0  # times the median is a spike during warm-up, too
FEWEST = 3  # values before an explosion can be recognised
SMALL_PART = 0.1  # a part with a smaller share of the loss is compared with this share


class Spike(NamedTuple):
    """A value far above the median of the values before it: `times` as large."""

    name: str
    value: float
    times: float
    batch: int  # of the epoch, from 1

    def __str__(self) -> str:
        return f"batch {self.batch}: {self.name} {self.value:.4g} is {self.times:.3g} times its recent median"


class Spikes:
    """Compares the values of every step with their recent values, each name separately, and counts spikes per epoch."""

    def __init__(
        self,
        window: int = WINDOW,
        warm_up: int = WARM_UP,
        mad_floor: float = MAD_FLOOR,
        relative_floor: float = RELATIVE_FLOOR,
    ):
        self.window, self.warm_up = window, warm_up
        self.mad_floor, self.relative_floor = mad_floor, relative_floor
        self._logs: dict[str, deque[float]] = {}
        self._sorted: dict[str, list[float]] = {}  # the same, so that a median is looked up and not computed
        self.count = 0
        self.worst: Spike | None = None

    def add(self, values: Mapping[str, float], batch: int) -> list[Spike]:
        """Add the values of one step. Returns its spikes, the largest first; together they count as one."""
        median_loss = _median_of(self._sorted["loss"]) if self._sorted.get("loss") else -math.inf
        least = {name: median_loss + math.log(SMALL_PART) for name in values if name not in TOTALS}
        found = [
            spike
            for name, value in values.items()
            if (spike := self._add(name, float(value), batch, least.get(name, -math.inf)))
        ]
        found.sort(key=lambda spike: -spike.times)
        if found:
            self.count += 1
            self.worst = max(self.worst or found[0], found[0], key=lambda spike: spike.times)
        return found

    def _add(self, name: str, value: float, batch: int, least: float) -> Spike | None:
        if not (math.isfinite(value) and value > 0):
            return None
        log, logs = math.log(value), self._logs.setdefault(name, deque(maxlen=self.window))
        in_order = self._sorted.setdefault(name, [])
        middle = _median_of(in_order) if logs else log
        above = log - max(middle, least)
        is_spike = self._is_far(above, middle, logs)
        if len(logs) == self.window:
            del in_order[bisect_left(in_order, logs[0])]
        logs.append(log)  # spikes, too: after a lasting change the new level soon is the median
        insort(in_order, log)
        return Spike(name, value, math.exp(min(above, 700.0)), batch) if is_spike else None

    def _is_far(self, above: float, middle: float, logs: deque[float]) -> bool:
        """`above`: distance from the median, in logarithms."""
        if len(logs) < self.warm_up:
            return len(logs) >= FEWEST and above > math.log(EXPLOSION)
        if above <= max(MADS * self.mad_floor, math.log1p(self.relative_floor)):
            return False  # the MAD takes longer to compute and is not needed
        return above > MADS * median(abs(log - middle) for log in logs)

    def start_epoch(self) -> None:
        """Start counting from 0. The recent values stay."""
        self.count, self.worst = 0, None

    def row(self) -> dict[str, Any]:
        """For `metrics.jsonl`: the number of steps with spikes, and the worst spike."""
        worst = self.worst
        values = None if worst is None else {"name": worst.name, "times": round(worst.times, 3), "batch": worst.batch}
        return {"spikes": self.count, "worst_spike": values}

    def state_dict(self) -> dict[str, Any]:
        """Plain values for `load_state_dict`."""
        return {
            "logs": {name: list(logs) for name, logs in self._logs.items()},
            "count": self.count,
            "worst": None if self.worst is None else list(self.worst),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._logs = {name: deque(logs, maxlen=self.window) for name, logs in state["logs"].items()}
        self._sorted = {name: sorted(logs) for name, logs in self._logs.items()}
        self.count = state["count"]
        self.worst = None if state["worst"] is None else Spike(*state["worst"])


def _median_of(in_order: list[float]) -> float:
    """The median of sorted values."""
    half = len(in_order) // 2
    return in_order[half] if len(in_order) % 2 else (in_order[half - 1] + in_order[half]) / 2
