"""The five sizes of YOLOv8, as multiples of one plan."""

import math
from typing import NamedTuple


class Scale(NamedTuple):
    """How much of the plan's depth and width a phase takes, and where its width stops growing."""

    depth: float
    width: float
    max_channels: int

    def channels(self, planned: int) -> int:
        """Planned width -> this scale's, rounded up to a multiple of 8."""
        return math.ceil(min(planned, self.max_channels) * self.width / 8) * 8

    def repeats(self, planned: int) -> int:
        """Planned bottlenecks of a C2f -> this scale's, at least one."""
        return max(round(planned * self.depth), 1)


SCALES = {
    "nano": Scale(0.33, 0.25, 1024),
    "small": Scale(0.33, 0.50, 1024),
    "medium": Scale(0.67, 0.75, 768),
    "large": Scale(1.00, 1.00, 512),
    "extra": Scale(1.00, 1.25, 512),
}
