"""A loss of your own, without a recipe: python -m examples.custom_loss [DATA]

The part also pulls the centres of the boxes to the right place. It is logged as `centre`.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from benchmarks.squares import draw_squares
from config.load import load_config
from dl.formats.discover import as_overrides, locate
from train.loss import LossInputs
from train.trainer import Trainer


@dataclass(frozen=True)
class CentreLoss:
    """Mean L1 distance between the centres of predicted and assigned boxes, in strides."""

    weight: float = 0.2
    name = "centre"

    def __call__(self, inputs: LossInputs) -> Tensor:
        centres, targets = ((box[..., :2] + box[..., 2:]) / 2 for box in (inputs.pred_boxes, inputs.target_boxes))
        distance = (centres - targets).abs().sum(dim=-1)
        return (distance * inputs.weight).sum() / inputs.normaliser


def main(data: Path, root: Path, epochs: int = 2, size: int = 64) -> list[float]:
    """Returns the mean of the part in each epoch."""
    if not data.exists():
        draw_squares(data)
    fields = {"inputShape": size, "maxEpoch": epochs, "lossParts": [CentreLoss(weight=0.2)]}
    mcfg = load_config("voc.nano.full", root=root, data=data, overrides=fields, name="centre")
    run = Trainer(mcfg.with_values(**as_overrides(locate(mcfg)))).run()
    values = [json.loads(line)["centre"] for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    print("centre:", *(f"{value:.3f}" for value in values))
    return values


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../squares"), Path("../mars-running"))
