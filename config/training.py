"""Settings that one field sets together: `training=modern`, `distilling=modern`; and one that recipes may take.

The defaults of all these fields are those of the course assignment.
"""

from typing import Any

# No nominalBatch: steps of 64 images trained worse than steps of 16 on small data sets (docs/experiments.md).
MODERN: dict[str, Any] = {
    "augmentation": "modern",
    "schedulerType": "linear",
    "lossReduction": "sum",
    "useEMA": True,
}

# The response loss compares class by class, the boxes are distilled too, and both weigh more than in the assignment
# (docs/experiments.md). The maps of the backbone are left out: with them a step took 1.78 times as long as without a
# teacher, and one draw showed no difference in AP.
MODERN_DISTILLING: dict[str, Any] = {
    "distilFeatures": ("X", "Y", "Z"),
    "distilLossWeights": (1.0, 0.5, 1.0),
    "boxResponseWeight": 0.3,
    "responseMode": "binary",
    "temperature": 1.0,
    "unlabelledClasses": "mask",  # an unlabelled object of an old class is not background (docs/experiments.md)
}

# For a student that learns from few images: many small steps, at a low rate, because its weights are trained already.
FEW_IMAGES: dict[str, Any] = {
    "batchSize": 4,
    "baseLearningRate": 2e-3,
    "schedulerType": "cosine",
    "warmupEpochs": 0.0,
}

FIELD_GROUPS = {"training": MODERN, "distilling": MODERN_DISTILLING}  # field -> what its value "modern" sets
