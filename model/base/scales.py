"""The five sizes of YOLOv8. All of them scale one plan of depths and widths."""

import math
from typing import NamedTuple


class Scale(NamedTuple):
    """The factors by which a phase multiplies depth and width of the plan, and the limit of the planned width."""

    depth: float
    width: float
    max_channels: int

    def channels(self, planned: int) -> int:
        """Planned channels -> channels of this scale, rounded up to a multiple of 8 (fast on GPUs)."""
        return math.ceil(min(planned, self.max_channels) * self.width / 8) * 8

    def repeats(self, planned: int) -> int:
        """Planned bottlenecks of a C2f -> bottlenecks of this scale, at least one."""
        return max(round(planned * self.depth), 1)


# Values of `yolov8.yaml`, where the phases are called n, s, m, l and x. The limits of 768 and 512 keep the last layers
# of the large phases small; without them these layers would have most of the parameters.
SCALES = {
    "nano": Scale(0.33, 0.25, 1024),
    "small": Scale(0.33, 0.50, 1024),
    "medium": Scale(0.67, 0.75, 768),
    "large": Scale(1.00, 1.00, 512),
    "extra": Scale(1.00, 1.25, 512),
}
