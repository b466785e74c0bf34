"""What `training=modern` sets: how detectors are trained today. The defaults of the fields are the assignment's way."""

from typing import Any

# No nominalBatch: steps of 64 images trained worse than steps of 16 on small data sets (docs/experiments.md).
MODERN: dict[str, Any] = {
    "augmentation": "modern",
    "schedulerType": "linear",
    "lossReduction": "sum",
    "useEMA": True,
}
