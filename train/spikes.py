"""Steps whose loss or gradient is far above what is usual: named before they become NaN, and counted an epoch.

What is usual is the median of the logarithms of the last values, and their median absolute deviation (MAD), which a few
outliers do not move. On logarithms a spike is a factor, whatever the size of a loss; one that is zero, as the box loss
of a batch without boxes, says nothing about the others and is left out, and so is what is not finite. A part that is
usually next to nothing, as the box loss of a fresh network whose boxes overlap no object, is measured against the loss.
"""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

WINDOW = 100  # steps that count
WARM_UP = 20  # of them before anything is a spike
MADS = 6 * 1.4826  # deviations above the median; 1.4826 of them are a standard deviation of normal values
MAD_FLOOR = 0.02  # so that not every wobble of a steady loss is a spike
RELATIVE_FLOOR = 0.5  # above the median, at least
WHOLES = ("loss", "grad_norm")  # the others are parts of the loss
EXPLOSION = 100.0  # times the median is a spike during the warm-up, too,
FEWEST = 3  # once there are so many values
NEXT_TO_NOTHING = 0.1  # of the loss: what a part is measured against where it is usually less than that


class Spike(NamedTuple):
    """One value that is far above the median of those before it, by this factor."""

    name: str
    value: float
    times: float
    batch: int  # of the epoch, from 1

    def __str__(self) -> str:
        return f"batch {self.batch}: {self.name} {self.value:.4g} is {self.times:.3g} times what is usual"


class Spikes:
    """Takes the values of every step by name, each with a window of its own, and remembers an epoch's spikes."""

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
        """Take the values of one step; its spikes, the largest factor first. They count as one."""
        usual_loss = _middle(self._sorted["loss"]) if self._sorted.get("loss") else -math.inf
        least = {name: usual_loss + math.log(NEXT_TO_NOTHING) for name in values if name not in WHOLES}
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
        middle = _middle(in_order) if logs else log
        above = log - max(middle, least)
        is_spike = self._is_far(above, middle, logs)
        if len(logs) == self.window:
            del in_order[bisect_left(in_order, logs[0])]
        logs.append(log)  # a spike, too: where the level has changed for good, it is no spike for long
        insort(in_order, log)
        return Spike(name, value, math.exp(min(above, 700.0)), batch) if is_spike else None

    def _is_far(self, above: float, middle: float, logs: deque[float]) -> bool:
        """`above`: what is usual, in logarithms."""
        if len(logs) < self.warm_up:
            return len(logs) >= FEWEST and above > math.log(EXPLOSION)
        if above <= max(MADS * self.mad_floor, math.log1p(self.relative_floor)):
            return False  # whatever the deviation is, which takes longer to find out
        return above > MADS * median(abs(log - middle) for log in logs)

    def start_epoch(self) -> None:
        """Count anew; what is usual stays."""
        self.count, self.worst = 0, None

    def row(self) -> dict[str, Any]:
        """What `metrics.jsonl` says of the epoch: steps with spikes, and the worst of them."""
        worst = self.worst
        told = None if worst is None else {"name": worst.name, "times": round(worst.times, 3), "batch": worst.batch}
        return {"spikes": self.count, "worst_spike": told}

    def state_dict(self) -> dict[str, Any]:
        """Plain values; `load_state_dict` takes them back."""
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


def _middle(in_order: list[float]) -> float:
    """The median of sorted values."""
    half = len(in_order) // 2
    return in_order[half] if len(in_order) % 2 else (in_order[half - 1] + in_order[half]) / 2
